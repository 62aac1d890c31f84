"""Bookkeeping: counted in one statement, and never through the vector index."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from uuid import UUID, uuid4

import asyncpg

from ibex_db_core.database import Database
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
