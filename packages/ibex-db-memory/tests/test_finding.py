"""Searching by vector: the order, what is hidden, and how the answer was found."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
from homes import Home
from sqlalchemy.orm import undefer

from ibex_db_core.database import Database
from ibex_db_core.errors import InvalidInputError, NotLoadedError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import Hit, Memory, MemoryCategory, MemoryRepository, MemoryStatus

Sent = Callable[[], AbstractContextManager[list[str]]]
Vector = Callable[[int], list[float]]

NOW = datetime.now(UTC)


async def remembered(memories: MemoryRepository, agent_id: UUID, vector: Vector, seeds: Sequence[int]) -> list[UUID]:
    done = await memories.remember_many(
        {"agent_id": agent_id, "content": f"Number {n}.", "category": "factual", "embedding": vector(n)} for n in seeds
    )
    return [outcome.id for outcome in done.outcomes]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    a, b = np.array(one), np.array(other)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("limit", [1, 10, 60, 1000])
async def test_hits_are_the_nearest_best_first(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, limit: int
) -> None:
    await remembered(memories, agent_id, vector, range(60))
    hits = await memories.search(embedding=vector(100), limit=limit)

    similar = {f"Number {n}.": cosine(vector(n), vector(100)) for n in range(60)}
    assert [hit.memory.content for hit in hits] == sorted(similar, key=similar.__getitem__, reverse=True)[:limit]
    assert [hit.similarity for hit in hits] == pytest.approx([similar[hit.memory.content] for hit in hits], abs=1e-6)
    assert [hit.score for hit in hits] == [hit.similarity for hit in hits]


async def test_a_vector_may_be_given_in_any_form_and_length(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await remembered(memories, agent_id, vector, [1, 2])
    forms = [
        vector(1),
        tuple(vector(1)),
        np.array(vector(1), dtype=np.float64) * 1e6,
        np.array(vector(1), dtype=np.float32),
    ]

    for form in forms:
        hits = await memories.search(embedding=form)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert hits[0].memory.content == "Number 1."
        assert hits[0].similarity == pytest.approx(1, abs=1e-5)


async def test_memories_without_a_vector_are_found_by_no_vector(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await memories.remember(agent_id=agent_id, content="Tea.", category="factual")

    assert len(await memories.search(embedding=vector(1))) == 0


@pytest.mark.parametrize("least", [-1.0, 0.0, 0.02, 0.999, 1.0])
async def test_min_similarity_keeps_the_hits_at_or_above_it(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, least: float
) -> None:
    await remembered(memories, agent_id, vector, range(30))
    everything = await memories.search(embedding=vector(100), limit=30)
    hits = await memories.search(embedding=vector(100), limit=30, min_similarity=least)

    assert [hit.memory.id for hit in hits] == [hit.memory.id for hit in everything if hit.score >= least]


async def test_find_similar_is_a_search_above_a_threshold(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, vector: Vector
) -> None:
    await remembered(memories, agent_id, vector, range(10))
    await remembered(memories, other_agent_id, vector, [3])
    near = np.array(vector(3)) + 0.2 * np.array(vector(50))

    assert [hit.memory.content for hit in await memories.find_similar(near)] == ["Number 3."] * 2
    assert len(await memories.find_similar(near, agent_id=agent_id)) == 1
    assert len(await memories.find_similar(near, limit=1)) == 1
    assert len(await memories.find_similar(near, threshold=0.999)) == 0


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"expires_at": NOW - timedelta(seconds=1)}, {"include_expired": True}),
        ({"deleted_at": NOW}, {"include_deleted": True}),
        ({"status": "superseded"}, {"statuses": ["superseded"]}),
        ({"status": "merged"}, {"statuses": [MemoryStatus.MERGED]}),
        ({"status": "archived"}, {"statuses": "archived"}),
        ({"status": "pending_review"}, {"statuses": ["active", "pending_review"]}),
    ],
    ids=lambda case: ", ".join(map(str, case)),
)
async def test_what_is_gone_is_hidden_unless_asked_for(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, change: dict[str, object], asked: dict[str, object]
) -> None:
    if "status" in change:  # of any status from the start, for no step leads from active to all of them
        row = Memory(agent_id=agent_id, content="Number 1.", category="factual", embedding=vector(1), **change)
        ident = (await memories.add(row)).id
    elif "deleted_at" in change:
        (ident,) = await remembered(memories, agent_id, vector, [1])
        await memories.forget(ident)
    else:
        (ident,) = await remembered(memories, agent_id, vector, [1])
        await memories.update(ident, **change)

    for exact in (False, True):
        hidden = await memories.search(embedding=vector(1), exact=exact)
        found = await memories.search(embedding=vector(1), exact=exact, **asked)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert [hit.memory.id for hit in hidden] == []
        assert [hit.memory.id for hit in found] == [ident]


async def test_a_mix_of_embedding_models_is_refused(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> None:
    for number, model in enumerate(["minilm", "minilm", "other"]):
        await memories.remember(
            agent_id=agent_id,
            content=str(number),
            category="factual",
            embedding=vector(number),
            embedding_model=model,
        )

    with pytest.raises(InvalidInputError, match="minilm, other") as caught:
        await memories.search(embedding=vector(1))
    assert caught.value.field == "embedding_model"
    assert len(await memories.search(embedding=vector(1), embedding_model="minilm")) == 2
    assert len(await memories.search(embedding=vector(1), embedding_model="third")) == 0


async def test_embeddings_are_read_only_when_asked_for(
    ibex_db: Database, org_id: UUID, agent_id: UUID, vector: Vector
) -> None:
    async with ibex_db.tenant(org_id) as session:
        await remembered(MemoryRepository(session), agent_id, vector, [1])
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        found = (await memories.search(embedding=vector(1)))[0].memory

        with pytest.raises(NotLoadedError, match=r"Memory\.embedding"):
            _ = found.embedding
        read = await memories.get(found.id, options=[undefer(Memory.embedding)])
        assert read.embedding == vector(1)


async def test_hits_are_a_sequence(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> None:
    await remembered(memories, agent_id, vector, range(5))
    hits = await memories.search(embedding=vector(1))

    assert isinstance(hits, Sequence)
    assert len(hits) == 5
    assert list(hits) == [hits[at] for at in range(5)]
    assert next(reversed(hits)) is hits[-1]
    assert hits[1:3] == [hits[1], hits[2]]
    assert hits[2] in hits
    assert hits.index(hits[3]) == 3
    assert isinstance(hits[0], Hit)
    assert hits
    assert not await memories.search(embedding=vector(1), created_before=NOW - timedelta(days=9))
    assert repr(hits) == "<Hits 5, exact: 5 rows in scope, at most 5000>"
    with pytest.raises(IndexError):
        _ = hits[5]


async def test_pending_objects_of_the_session_are_found(session: ScopedSession, agent_id: UUID, vector: Vector) -> None:
    mine = Memory(agent_id=agent_id, content="Tea.", category=MemoryCategory.PREFERENCE, embedding=vector(1))
    session.add(mine)
    hits = await MemoryRepository(session).search(embedding=vector(1))

    assert [hit.memory for hit in hits] == [mine]


async def test_another_organizations_identical_vectors_are_never_returned(
    ibex_db: Database, home: Home, other_home: Home, vector: Vector
) -> None:
    async with ibex_db.tenant(other_home.org_id) as rival:
        await remembered(MemoryRepository(rival), other_home.agent_id, vector, range(20))
    async with ibex_db.tenant(home.org_id) as session:
        memories = MemoryRepository(session)
        mine = await remembered(memories, home.agent_id, vector, range(20))
        both = [home.agent_id, other_home.agent_id]

        for exact in (False, True):
            hits = await memories.search(embedding=vector(1), limit=1000, exact=exact)
            assert {hit.memory.id for hit in hits} == set(mine)
            assert {hit.memory.org_id for hit in hits} == {home.org_id}
            assert len(await memories.search(embedding=vector(1), agent_id=other_home.agent_id, exact=exact)) == 0
        assert len(await memories.find_similar(vector(1), agent_id=both)) == 1
        assert await memories.hot(other_home.agent_id) == []
        assert {hot.memory.org_id for hot in await memories.hot(both, limit=1000)} == {home.org_id}


async def test_one_statement_once_the_size_of_the_scope_is_known(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, sent: Sent
) -> None:
    await remembered(memories, agent_id, vector, range(5))
    counts: list[int] = []
    for fields in ({}, {}, {"agent_id": agent_id}, {"agent_id": [agent_id]}, {"tags_any": ["a"]}, {"exact": True}):
        with sent() as statements:
            await memories.search(embedding=vector(1), **fields)  # pyright: ignore[reportArgumentType]
        counts.append(len(statements))

    # Nothing is tagged so: before a search says that there is nothing, it asks whether the organization has moved.
    assert counts == [2, 1, 2, 1, 2, 1]
