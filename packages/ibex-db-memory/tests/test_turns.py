"""Turns: sessions of one process that count the same memories follow one another, and none waits for ever."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from uuid import UUID

import asyncpg
import pytest
from alone import ALONE
from homes import Home
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_core.errors import DeadlockError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import MemoryRepository
from ibex_db_memory.repositories.memory import turns

Vector = Callable[[int], list[float]]


@dataclass(frozen=True)
class Rows:
    """Some memories of one organization, and sessions that count them."""

    database: Database
    org_id: UUID
    ids: list[UUID]

    def first(self, count: int) -> "Rows":
        return replace(self, ids=self.ids[:count])

    def session(self) -> AbstractAsyncContextManager[ScopedSession]:
        return self.database.tenant(self.org_id)

    async def count(self) -> None:
        """Count each once, in a session of its own."""
        async with self.session() as session:
            await MemoryRepository(session).record_retrieval(self.ids)
            await session.execute(text("SELECT pg_stat_force_next_flush()"))

    async def counts(self) -> list[int]:
        async with self.session() as session:
            return [row.retrieval_count for row in await MemoryRepository(session).get_many(self.ids)]


@pytest.fixture
async def ten(ibex_db: Database, home: Home, vector: Vector) -> Rows:
    async with ibex_db.tenant(home.org_id) as session:
        done = await MemoryRepository(session).remember_many(
            {"agent_id": home.agent_id, "content": f"Number {n}.", "category": "factual", "embedding": vector(n)}
            for n in range(10)
        )
    return Rows(ibex_db, home.org_id, [outcome.id for outcome in done.outcomes])


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody goes to Postgres before its turn."""
    monkeypatch.setattr(turns, "_PATIENCE_SECONDS", 3600.0)


async def waiters(owner: asyncpg.Connection, count: int) -> None:
    """Return when so many sessions wait for a lock."""
    while await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < count:  # noqa: ASYNC110 - Postgres's
        await asyncio.sleep(0.01)


async def updates(owner: asyncpg.Connection) -> tuple[int, int]:
    await owner.execute("SELECT pg_stat_clear_snapshot()")
    row = await owner.fetchrow(
        "SELECT sum(n_tup_upd)::int, sum(n_tup_hot_upd)::int FROM pg_stat_user_tables WHERE relname LIKE 'memories_p%'"
    )
    assert row is not None
    return row[0], row[1]


@ALONE
@pytest.mark.usefixtures("patient")
async def test_many_tasks_that_count_the_same_rows_lose_no_count_and_stay_hot(
    ten: Rows, owner: asyncpg.Connection
) -> None:
    async def task() -> None:
        for _ in range(10):
            await ten.count()

    await asyncio.gather(*(task() for _ in range(16)))

    assert await ten.counts() == [160] * 10
    assert await updates(owner) == (1600, 1600)


async def test_whoever_waits_in_postgres_makes_updates_leave_their_page(
    ten: Rows, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What turns are for: a waiting statement's snapshot keeps versions, and the page has room for two of each row."""
    monkeypatch.setattr(turns, "_PATIENCE_SECONDS", 0.0)
    async with ten.session() as first:
        await MemoryRepository(first).record_retrieval(ten.ids)
        waiting = [asyncio.create_task(ten.count()) for _ in range(4)]
        await waiters(owner, 4)
        await first.execute(text("SELECT pg_stat_force_next_flush()"))
    await asyncio.gather(*waiting)

    made, hot = await updates(owner)
    assert await ten.counts() == [5] * 10
    assert made == 50
    assert hot < made


@pytest.mark.usefixtures("patient")
async def test_other_memories_are_counted_without_waiting(ten: Rows) -> None:
    two = ten.first(2)
    async with two.session() as first:
        await MemoryRepository(first).record_retrieval(two.ids[:1])
        await replace(two, ids=two.ids[1:]).count()
        # A savepoint that ends is not the end of the turn, and counting again is no waiting.
        async with first.begin_nested():
            await MemoryRepository(first).record_retrieval(two.ids)
        waiting = asyncio.create_task(two.count())
        await asyncio.sleep(0.05)
        assert not waiting.done()
    await waiting

    assert await two.counts() == [3, 3]


@pytest.mark.usefixtures("patient")
async def test_a_turn_ends_with_a_rollback_and_with_a_cancelled_wait(ten: Rows) -> None:
    one = ten.first(1)
    async with one.session() as first:
        await MemoryRepository(first).record_retrieval(one.ids)
        gone = asyncio.create_task(one.count())
        await asyncio.sleep(0.02)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await first.rollback()
        await one.count()

    assert await one.counts() == [1]


async def test_whoever_has_waited_for_long_goes_to_postgres(
    ten: Rows, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_PATIENCE_SECONDS", 0.01)
    one = ten.first(1)
    async with one.session() as first:
        await MemoryRepository(first).record_retrieval(one.ids)
        waiting = asyncio.create_task(one.count())
        await waiters(owner, 1)
    await waiting

    assert await one.counts() == [2]


@pytest.mark.usefixtures("patient")
async def test_two_that_want_each_others_rows_are_told_apart_by_postgres(ten: Rows) -> None:
    two = ten.first(2)
    both = asyncio.Barrier(2)

    async def cross(one: UUID, other: UUID) -> None:
        async with two.session() as session:
            memories = MemoryRepository(session)
            await memories.record_retrieval([one])
            await both.wait()
            await memories.record_retrieval([other])

    ended = await asyncio.gather(cross(*two.ids), cross(*reversed(two.ids)), return_exceptions=True)

    assert [type(end) for end in ended if end is not None] == [DeadlockError]
    assert await two.counts() == [1, 1]
