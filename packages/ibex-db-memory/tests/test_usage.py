"""Bookkeeping: counted in one statement, and never through the vector index."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from uuid import UUID, uuid4

import asyncpg
import pytest
from alone import ALONE

from ibex_db_core.database import Database
from ibex_db_core.errors import InvalidInputError
from ibex_db_memory import MemoryRepository

Sent = Callable[[], AbstractContextManager[list[str]]]
Vector = Callable[[int], list[float]]


async def remembered(memories: MemoryRepository, agent_id: UUID, vector: Vector, count: int) -> list[UUID]:
    done = await memories.remember_many(
        {"agent_id": agent_id, "content": f"Number {n}.", "category": "factual", "embedding": vector(n), "tags": ["t"]}
        for n in range(count)
    )
    return [outcome.id for outcome in done.outcomes]


async def test_each_memory_is_counted_once_with_the_time(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, sent: Sent
) -> None:
    ids = await remembered(memories, agent_id, vector, 3)
    with sent() as statements:
        counted = await memories.record_retrieval([ids[0], ids[1], ids[0], uuid4()])
    await memories.record_retrieval(ident for ident in ids[:1])

    rows = await memories.get_many(ids)
    assert (counted, len(statements)) == (2, 1)
    assert [row.retrieval_count for row in rows] == [2, 1, 0]
    assert [row.last_retrieved_at is not None for row in rows] == [True, True, False]


async def test_nothing_to_count_is_no_statement(memories: MemoryRepository, sent: Sent) -> None:
    with sent() as statements:
        counted = await memories.record_retrieval([])

    assert (counted, statements) == (0, [])


async def test_another_organizations_memories_are_not_counted(
    ibex_db: Database, memories: MemoryRepository, rival_id: UUID, rival_agent_id: UUID, vector: Vector
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        ids = await remembered(MemoryRepository(rival), rival_agent_id, vector, 2)

    assert await memories.record_retrieval(ids) == 0


async def test_counting_is_no_version(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> None:
    (ident,) = await remembered(memories, agent_id, vector, 1)
    await memories.record_retrieval([ident])

    assert len(await memories.history(ident)) == 1


@ALONE
async def test_every_count_is_a_hot_update(
    ibex_db: Database, org_id: UUID, agent_id: UUID, vector: Vector, owner: asyncpg.Connection
) -> None:
    async with ibex_db.tenant(org_id) as session:
        ids = await remembered(MemoryRepository(session), agent_id, vector, 50)
    for at in range(10):
        async with ibex_db.tenant(org_id) as session:
            await MemoryRepository(session).record_retrieval(ids[at * 5 : at * 5 + 10])
            await session.run_sync(lambda sync: sync.connection().exec_driver_sql("SELECT pg_stat_force_next_flush()"))

    await owner.execute("SELECT pg_stat_clear_snapshot()")
    found = await owner.fetch(
        "SELECT sum(n_tup_upd) AS updates, sum(n_tup_hot_upd) AS hot FROM pg_stat_user_tables"
        " WHERE relname LIKE 'memories_p%'"
    )
    assert (found[0]["updates"], found[0]["hot"]) == (95, 95)


async def test_calls_in_opposite_orders_do_not_wait_for_each_other(
    ibex_db: Database, org_id: UUID, agent_id: UUID, vector: Vector
) -> None:
    async with ibex_db.tenant(org_id) as session:
        ids = await remembered(MemoryRepository(session), agent_id, vector, 100)

    async def count(order: list[UUID]) -> int:
        async with ibex_db.tenant(org_id) as session:
            return await MemoryRepository(session).record_retrieval(order)

    counted = await asyncio.gather(*(count(ids[::step]) for step in (1, -1) * 10))

    assert counted == [100] * 20
    async with ibex_db.tenant(org_id) as session:
        assert {row.retrieval_count for row in await MemoryRepository(session).find()} == {20}


# -- injections


async def test_an_injection_is_noted_and_not_counted(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    ids = await remembered(memories, agent_id, vector, 2)
    counted = await memories.record_injection([ids[0], ids[0], uuid4()])

    injected, other = await memories.get_many(ids)
    assert counted == 1
    assert injected.last_injected_at is not None
    assert (injected.retrieval_count, injected.last_retrieved_at, other.last_injected_at) == (0, None, None)


# -- feedback


@pytest.mark.parametrize(("for_", "against"), [(0, 1), (1, 0), (2, 1), (0, 5), (7, 0), (3, 3), (4, 9)])
async def test_usefulness_follows_the_rule_of_succession(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, for_: int, against: int
) -> None:
    (ident,) = await remembered(memories, agent_id, vector, 1)
    for _ in range(for_):
        await memories.give_feedback(helpful=[ident])
    for _ in range(against):
        await memories.give_feedback(unhelpful=[ident])

    row = await memories.get(ident)
    assert (row.positive_feedback, row.negative_feedback) == (for_, against)
    assert abs(Fraction(row.usefulness_score) - Fraction(for_ + 1, for_ + against + 2)) <= Fraction(1, 2000)


async def test_both_lists_are_counted_in_one_statement(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, sent: Sent
) -> None:
    good, bad, other = await remembered(memories, agent_id, vector, 3)
    with sent() as statements:
        counted = await memories.give_feedback(helpful=[good, good, uuid4()], unhelpful=iter([bad]))

    rows = await memories.get_many([good, bad, other])
    assert (counted, len(statements)) == (2, 1)
    assert [(row.positive_feedback, row.negative_feedback) for row in rows] == [(1, 0), (0, 1), (0, 0)]
    assert [float(row.usefulness_score) for row in rows] == [0.667, 0.333, 0.5]


async def test_no_memory_is_helpful_and_unhelpful_at_once(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, sent: Sent
) -> None:
    a, b = await remembered(memories, agent_id, vector, 2)
    with sent() as statements, pytest.raises(InvalidInputError) as caught:
        await memories.give_feedback(helpful=[a, b], unhelpful=[b])

    assert (caught.value.field, caught.value.value, statements) == ("unhelpful", b, [])
    assert await memories.give_feedback() == 0


async def test_feedback_at_once_loses_nothing(ibex_db: Database, org_id: UUID, agent_id: UUID, vector: Vector) -> None:
    async with ibex_db.tenant(org_id) as session:
        ids = await remembered(MemoryRepository(session), agent_id, vector, 5)

    async def judge(n: int) -> int:
        async with ibex_db.tenant(org_id) as session:
            order = ids[:: 1 if n % 2 else -1]
            memories = MemoryRepository(session)
            return await (memories.give_feedback(helpful=order) if n % 3 else memories.give_feedback(unhelpful=order))

    assert await asyncio.gather(*(judge(n) for n in range(30))) == [5] * 30
    async with ibex_db.tenant(org_id) as session:
        rows = await MemoryRepository(session).find()
    assert {(row.positive_feedback, row.negative_feedback, float(row.usefulness_score)) for row in rows} == {
        (20, 10, 0.656)
    }


async def test_loaded_memories_see_the_new_counts(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> None:
    (ident,) = await remembered(memories, agent_id, vector, 1)
    loaded = await memories.get(ident)
    before = loaded.updated_at

    await memories.give_feedback(helpful=[ident])
    await memories.record_retrieval([ident])
    await memories.record_injection([ident])

    assert (loaded.positive_feedback, float(loaded.usefulness_score), loaded.retrieval_count) == (1, 0.667, 1)
    assert loaded.last_retrieved_at is not None
    assert loaded.last_injected_at is not None
    assert loaded.updated_at >= before
    assert not memories.session.is_modified(loaded)


async def test_a_change_that_was_not_written_yet_is_not_lost(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    (ident,) = await remembered(memories, agent_id, vector, 1)
    (await memories.get(ident)).metadata_ = {"turn": 1}
    await memories.give_feedback(helpful=[ident])

    row = await memories.get(ident)
    assert (row.metadata_, row.positive_feedback) == ({"turn": 1}, 1)


async def test_another_organizations_memories_are_not_judged(
    ibex_db: Database, memories: MemoryRepository, rival_id: UUID, rival_agent_id: UUID, vector: Vector
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        ids = await remembered(MemoryRepository(rival), rival_agent_id, vector, 2)

    assert await memories.give_feedback(helpful=ids[:1], unhelpful=ids[1:]) == 0
    assert await memories.record_injection(ids) == 0


@ALONE
async def test_feedback_and_injections_are_hot_updates_and_no_versions(
    ibex_db: Database, org_id: UUID, agent_id: UUID, vector: Vector, owner: asyncpg.Connection
) -> None:
    async with ibex_db.tenant(org_id) as session:
        ids = await remembered(MemoryRepository(session), agent_id, vector, 30)
    for verb in ("helpful", "unhelpful", "injection"):
        async with ibex_db.tenant(org_id) as session:
            memories = MemoryRepository(session)
            await (memories.record_injection(ids) if verb == "injection" else memories.give_feedback(**{verb: ids}))
            await session.run_sync(lambda sync: sync.connection().exec_driver_sql("SELECT pg_stat_force_next_flush()"))

    await owner.execute("SELECT pg_stat_clear_snapshot()")
    found = await owner.fetchrow(
        "SELECT sum(n_tup_upd) AS updates, sum(n_tup_hot_upd) AS hot FROM pg_stat_user_tables"
        " WHERE relname LIKE 'memories_p%'"
    )
    assert found is not None
    assert (found["updates"], found["hot"]) == (90, 90)
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memory_versions") == 30
