"""Remembering many: one outcome for each draft, all or none, whatever the batch."""

import asyncio
import pickle
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pytest
from sqlalchemy.orm import selectinload, undefer

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, ForeignKeyError, InvalidInputError
from ibex_db_memory import Memory, MemoryDraft, MemoryRepository, MemoryStatus, RememberedMany

Sent = Callable[[], AbstractContextManager[list[str]]]
Vector = Callable[[int], list[float]]

PAST = datetime.now(UTC) - timedelta(hours=1)
FUTURE = datetime.now(UTC) + timedelta(days=30)


def said(agent_id: UUID, content: str, **more: object) -> Mapping[str, object]:
    return {"agent_id": agent_id, "content": content, "category": "factual", **more}


def shuffled(contents: list[str], seed: int) -> list[str]:
    return [contents[at] for at in np.random.default_rng(seed).permutation(len(contents))]


async def test_mappings_and_drafts_are_the_same_to_it(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    done = await memories.remember_many(
        [
            MemoryDraft(agent_id=agent_id, content="One.", category="factual", tags=["A", "b"], embedding=vector(1)),
            said(agent_id, "Two.", tags=["b"], metadata={"turn": 2}, confidence=0.5, expires_at=FUTURE),
            MemoryDraft(agent_id=agent_id, content="Three.", category="episodic"),
        ]
    )

    rows = await memories.get_many(
        [outcome.id for outcome in done.outcomes], options=[selectinload(Memory.tags), undefer(Memory.embedding)]
    )
    assert (done.created, done.duplicates) == (3, 0)
    assert [row.content for row in rows] == ["One.", "Two.", "Three."]
    assert [[tag.tag for tag in row.tags] for row in rows] == [["a", "b"], ["b"], []]
    assert [row.metadata_ for row in rows] == [{}, {"turn": 2}, {}]
    assert [float(row.confidence) for row in rows] == [0.8, 0.5, 0.8]
    assert [row.expires_at for row in rows] == [None, FUTURE, None]
    assert [row.embedding for row in rows] == [vector(1), None, None]
    assert all(row.valid_from == row.created_at for row in rows)


async def test_what_may_be_left_out_may_be_none(memories: MemoryRepository, agent_id: UUID) -> None:
    nothing = dict.fromkeys(
        ("metadata", "source", "status", "confidence", "usefulness_score", "session_id", "embedding", "id")
    )
    done = await memories.remember_many([said(agent_id, "One.", **nothing)])

    (row,) = await memories.get_many([outcome.id for outcome in done.outcomes])
    assert (row.metadata_, row.source, row.status) == ({}, "extracted", "active")


async def test_generators_are_read_as_it_goes(memories: MemoryRepository, agent_id: UUID) -> None:
    read: list[int] = []
    done: list[tuple[int, int]] = []

    def generate() -> Iterator[Mapping[str, object]]:
        for number in range(25):
            read.append(number)
            yield said(agent_id, f"Number {number}.")

    found = await memories.remember_many(
        generate(), batch_size=10, progress=lambda count: done.append((count, len(read)))
    )

    assert found.created == 25
    assert done == [(10, 10), (20, 20), (25, 25)]


async def test_async_generators_will_do(memories: MemoryRepository, agent_id: UUID) -> None:
    async def generate() -> AsyncIterator[Mapping[str, object]]:
        for number in range(5):
            await asyncio.sleep(0)
            yield said(agent_id, f"Number {number}.")

    assert (await memories.remember_many(generate(), batch_size=2)).created == 5


@pytest.mark.parametrize("batch_size", [1, 2, 3, 1000])
async def test_outcomes_keep_the_order_whatever_the_batch(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, batch_size: int
) -> None:
    known = (await memories.remember(agent_id=agent_id, content="Known.", category="factual")).memory.id
    done = await memories.remember_many(
        [
            said(agent_id, "New."),
            said(agent_id, "KNOWN."),
            said(agent_id, " new. "),
            said(other_agent_id, "New."),
            said(agent_id, "Newer."),
            said(agent_id, "New."),
        ],
        batch_size=batch_size,
    )

    ids = [outcome.id for outcome in done.outcomes]
    assert [outcome.created for outcome in done.outcomes] == [True, False, False, True, True, False]
    assert ids[1] == known
    assert ids[0] == ids[2] == ids[5]
    assert len(set(ids)) == 4
    assert [row.content for row in await memories.get_many(ids)] == ["New.", "Known.", "New.", "New.", "Newer.", "New."]


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
async def test_an_expired_twin_swallows_nothing_not_even_in_its_own_batch(
    memories: MemoryRepository, agent_id: UUID, batch_size: int
) -> None:
    done = await memories.remember_many(
        [
            said(agent_id, "Tea.", expires_at=PAST),
            said(agent_id, "Tea.", expires_at=PAST),
            said(agent_id, "Tea.", expires_at=FUTURE),
            said(agent_id, "Tea."),
            said(agent_id, "Tea.", expires_at=PAST),
        ],
        batch_size=batch_size,
    )

    ids = [outcome.id for outcome in done.outcomes]
    assert [outcome.created for outcome in done.outcomes] == [True, True, True, False, False]
    assert ids[2] == ids[3] == ids[4]
    assert [memory.id for memory in await memories.find()] == [ids[2]]


@pytest.mark.parametrize("batch_size", [1, 1000])
async def test_only_active_drafts_have_twins(memories: MemoryRepository, agent_id: UUID, batch_size: int) -> None:
    done = await memories.remember_many(
        [said(agent_id, "Tea.", status=status) for status in ("pending_review", "active", MemoryStatus.PENDING_REVIEW)],
        batch_size=batch_size,
    )

    assert [outcome.created for outcome in done.outcomes] == [True, True, True]
    assert len({outcome.id for outcome in done.outcomes}) == 3


@pytest.mark.parametrize("batch_size", [1, 1000])
async def test_the_same_draft_with_its_id_twice_is_created_once(
    memories: MemoryRepository, agent_id: UUID, batch_size: int
) -> None:
    draft = said(agent_id, "Tea.", id=uuid4())
    done = await memories.remember_many([draft, draft], batch_size=batch_size)

    assert [outcome.created for outcome in done.outcomes] == [True, False]


@pytest.mark.parametrize("batch_size", [1, 1000])
@pytest.mark.parametrize("status", ["active", "pending_review"])
async def test_one_id_for_two_memories_is_refused_by_position(
    memories: MemoryRepository, agent_id: UUID, batch_size: int, status: str
) -> None:
    ident = uuid4()

    with pytest.raises(InvalidInputError, match="is that of another draft") as caught:
        await memories.remember_many(
            [said(agent_id, "Zero."), *(said(agent_id, one, id=ident, status=status) for one in ("One.", "Two."))],
            batch_size=batch_size,
        )
    assert (caught.value.field, caught.value.value, caught.value.index) == ("id", ident, 2)
    assert await memories.count() == 0


@pytest.mark.parametrize("batch_size", [1, 1000])
async def test_what_only_the_database_knows_is_wrong_is_named_by_position_too(
    memories: MemoryRepository, agent_id: UUID, rival_agent_id: UUID, batch_size: int
) -> None:
    taken, nobody = uuid4(), uuid4()
    await memories.remember(agent_id=agent_id, content="Here.", category="factual", id=taken)
    fine = [said(agent_id, "One."), said(agent_id, "Here.", id=taken)]
    for bad, field, value in (
        (said(rival_agent_id, "Two."), "agent_id", rival_agent_id),
        (said(agent_id, "Two.", session_id=nobody), "session_id", nobody),
        (said(agent_id, "Two.", id=taken), "id", taken),
    ):
        with pytest.raises((ForeignKeyError, ConflictError), match=f"^item 2: {field} {value} is ") as caught:
            await memories.remember_many([*(fine if field != "id" else [fine[0]] * 2), bad], batch_size=batch_size)
        assert (caught.value.index, caught.value.values) == (2, {field: value})
        assert pickle.loads(pickle.dumps(caught.value)).index == 2  # noqa: S301 - our own
    assert await memories.count() == 1


@pytest.mark.parametrize("bad", [5, None, "Tea."])
async def test_what_is_no_list_of_drafts_is_refused(memories: MemoryRepository, bad: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await memories.remember_many(bad)

    assert caught.value.field == "drafts"


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"content": ""}, "content"),
        ({"category": "gossip"}, "category"),
        ({"colour": "red"}, "colour"),
        ({"tags": ["fine", "x" * 65]}, "tag"),
        ({"embedding": [1.0, 2.0]}, "embedding"),
    ],
)
async def test_a_bad_draft_is_named_by_its_position_and_nothing_is_kept(
    ibex_db: Database, org_id: UUID, agent_id: UUID, bad: Mapping[str, object], field: str
) -> None:
    drafts = [said(agent_id, f"Number {number}.") for number in range(7)]
    drafts[5] = {**drafts[5], **bad}
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        await memories.remember(agent_id=agent_id, content="Before.", category="factual")
        with pytest.raises(InvalidInputError) as caught:
            await memories.remember_many(drafts, batch_size=2)
        await memories.remember(agent_id=agent_id, content="After.", category="factual")

    assert (caught.value.field, caught.value.index) == (field, 5)
    assert str(caught.value).startswith("item 5: ")
    async with ibex_db.tenant(org_id) as session:
        assert {memory.content for memory in await MemoryRepository(session).find()} == {"Before.", "After."}


@pytest.mark.parametrize("missing", ["agent_id", "content", "category"])
async def test_a_missing_field_is_named(memories: MemoryRepository, agent_id: UUID, missing: str) -> None:
    draft = {name: value for name, value in said(agent_id, "One.").items() if name != missing}

    with pytest.raises(InvalidInputError, match="is required") as caught:
        await memories.remember_many([said(agent_id, "Fine."), draft])
    assert (caught.value.field, caught.value.index) == (missing, 1)


async def test_what_is_no_draft_at_all_is_refused(memories: MemoryRepository) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await memories.remember_many(["Prefers tea."])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]

    assert (caught.value.field, caught.value.index) == ("draft", 0)


async def test_what_the_database_refuses_leaves_nothing_half_written(
    ibex_db: Database, org_id: UUID, agent_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        with pytest.raises(ForeignKeyError):
            await memories.remember_many(
                [said(agent_id, "One."), said(agent_id, "Two."), said(rival_agent_id, "Three.")], batch_size=1
            )
        after = await memories.count()

    assert after == 0


async def test_an_error_of_the_callers_own_undoes_it_too(memories: MemoryRepository, agent_id: UUID) -> None:
    def stop(_count: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await memories.remember_many([said(agent_id, "One.")], progress=stop)
    assert await memories.count() == 0


async def test_nothing_in_nothing_out(memories: MemoryRepository) -> None:
    done = await memories.remember_many([])

    assert (list(done.outcomes), done.created, done.duplicates) == ([], 0, 0)


@pytest.mark.parametrize("batch_size", [0, -1, 10_001, 2.5, True])
async def test_a_batch_has_1_to_10_000_rows(memories: MemoryRepository, batch_size: int) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await memories.remember_many([], batch_size=batch_size)

    assert caught.value.field == "batch_size"


async def test_one_statement_a_batch_within_one_savepoint(
    memories: MemoryRepository, agent_id: UUID, sent: Sent
) -> None:
    with sent() as statements:
        await memories.remember_many(
            [said(agent_id, f"Number {number % 30}.", tags=["t"]) for number in range(40)], batch_size=10
        )

    assert [statement.split()[0] for statement in statements] == ["SAVEPOINT", *["WITH"] * 4, "RELEASE"]


async def test_the_same_contents_in_any_order_make_one_row_each(
    small_pool: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    contents = [f"Number {number}." for number in range(200)]
    async with small_pool.tenant(org_id) as session:  # half of them are known, and have expired
        await MemoryRepository(session).remember_many(
            [said(agent_id, content, expires_at=PAST) for content in contents[::2]]
        )

    async def write(seed: int) -> RememberedMany:
        order = shuffled(contents, seed)
        async with small_pool.tenant(org_id) as session:
            done = await MemoryRepository(session).remember_many([said(agent_id, one, tags=["t"]) for one in order])
        by_content = dict(zip(order, done.outcomes, strict=True))
        return RememberedMany([by_content[content] for content in contents])

    found = await asyncio.gather(*(write(seed) for seed in range(16)))

    live = await owner.fetch("SELECT id, content FROM ibex_core.memories WHERE deleted_at IS NULL")
    ids = {row["content"]: row["id"] for row in live}
    assert len(live) == 200
    assert all([outcome.id for outcome in done.outcomes] == [ids[content] for content in contents] for done in found)
    assert sum(done.created for done in found) == 200
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memory_tags") == 200


async def test_units_of_several_batches_that_cross_are_run_again(
    small_pool: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    contents = [f"Number {number}." for number in range(60)]

    async def write(session: object, seed: int) -> int:
        order = shuffled(contents, seed)
        memories = MemoryRepository(session)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        return (await memories.remember_many([said(agent_id, one) for one in order], batch_size=10)).created

    # Rows of the first batch stay locked until the last: two units can wait for each other, and one gives way.
    created = await asyncio.gather(*(small_pool.run(org_id, write, seed) for seed in range(2)))

    assert sum(created) == 60
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memories") == 60


async def test_memory_stays_flat_whatever_the_number(memories: MemoryRepository, agent_id: UUID) -> None:
    padding = "words " * 40
    high: list[int] = []

    def generate() -> Iterator[Mapping[str, object]]:
        for number in range(20_000):
            yield said(agent_id, f"Number {number}. {padding}")

    tracemalloc.start()
    try:
        done = await memories.remember_many(
            generate(), progress=lambda _: high.append(tracemalloc.get_traced_memory()[0])
        )
    finally:
        tracemalloc.stop()

    # What grows is the outcomes: two ids and a flag, some 300 bytes each, not the drafts of 1.5 kB.
    assert done.created == 20_000
    assert (high[-1] - high[4]) / 15_000 < 400
