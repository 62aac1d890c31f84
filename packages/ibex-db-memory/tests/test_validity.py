"""When a statement holds in the world: half-open, a filter like the others."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from ibex_db_core.errors import InvalidInputError
from ibex_db_memory import Memory, MemoryRepository

Vector = Callable[[int], list[float]]

MARCH, APRIL, MAY, JUNE = (datetime(2026, month, 1, tzinfo=UTC) for month in (3, 4, 5, 6))
INSTANT = timedelta(microseconds=1)


async def fill(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> None:
    for content, since, until in (("Tea in April.", APRIL, MAY), ("Tea from May.", MAY, None)):
        await memories.remember(
            agent_id=agent_id,
            content=content,
            category="factual",
            embedding=vector(1),
            valid_from=since,
            valid_until=until,
            tags=["drinks"],
        )


@pytest.mark.parametrize(
    ("moment", "holding"),
    [
        (MARCH, []),
        (APRIL - INSTANT, []),
        (APRIL, ["Tea in April."]),
        (MAY - INSTANT, ["Tea in April."]),
        (MAY, ["Tea from May."]),
        (JUNE, ["Tea from May."]),
    ],
)
async def test_from_its_first_instant_up_to_its_last_exclusive(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, moment: datetime, holding: list[str]
) -> None:
    """Every verb that finds, and beside other filters."""
    await fill(memories, agent_id, vector)

    for query in ({"text": "tea"}, {"embedding": vector(1)}, {"text": "tea", "embedding": vector(1)}):
        hits = await memories.search(**query, valid_at=moment, tags_all=["drinks"], categories=["factual"])
        assert [hit.memory.content for hit in hits] == holding
    similar = await memories.find_similar(vector(1), threshold=0.9, valid_at=moment)
    assert [hit.memory.content for hit in similar] == holding
    assert [found.memory.content for found in await memories.hot(agent_id, valid_at=moment)] == holding
    page = await memories.list(Memory.holds_at(moment))
    assert [memory.content for memory in page.items] == holding


async def test_without_it_all_are_found(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> None:
    await fill(memories, agent_id, vector)

    assert len(await memories.search(text="tea")) == 2


async def test_a_naive_moment_is_refused(memories: MemoryRepository, agent_id: UUID) -> None:
    naive = datetime(2026, 5, 1)  # noqa: DTZ001 - what is refused

    with pytest.raises(InvalidInputError, match="valid_at"):
        await memories.search(text="tea", valid_at=naive)
    with pytest.raises(InvalidInputError, match="valid_at"):
        await memories.hot(agent_id, valid_at=naive)
    with pytest.raises(InvalidInputError, match="moment"):
        Memory.holds_at(naive)
