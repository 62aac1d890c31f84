"""The pool under strain: bursts over its size, connections that cannot be made, a new pool while tasks wait."""

# pyright: reportPrivateUsage=false

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import cast
from uuid import UUID

import asyncpg
import pytest
from pools import ONE, hear, pool_of, turns
from sqlalchemy import event, text

from ibex_db_core import ConnectionLostError, Database, EngineSettings, IbexError
from ibex_db_core.connection import FoldedConnection
from ibex_db_core.testing import TestDatabase


async def ask(db: Database, org: UUID) -> int:
    async with db.tenant(org) as session:
        return int((await session.execute(ONE)).scalar_one())


async def test_what_a_burst_opened_is_closed_quietly(
    toy_database: TestDatabase, acme: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """It was not: out of a greenlet, SQLAlchemy could not wait for the end of a connection that was one too many."""
    caplog.set_level(logging.ERROR)

    async def work(db: Database, number: int) -> None:
        for turn in range(10):
            async with db.tenant(acme) as session:
                await session.execute(ONE)
                await asyncio.sleep(0.001 * ((number * 7 + turn * 3) % 5))
            await asyncio.sleep(0.001 * ((number * 3 + turn) % 11))

    async with toy_database.connect(EngineSettings(pool_size=2, max_overflow=3)) as db:
        await asyncio.gather(*(work(db, number) for number in range(8)))
        assert (pool_of(db).checkedin(), pool_of(db).checkedout()) == (2, 0)

    assert caplog.records == []


async def test_a_turn_that_nobody_takes_loses_no_connection(toy_database: TestDatabase, acme: UUID) -> None:
    """Given one, and cancelled as another came back: there was room for one, and the other was lost for good."""
    async with toy_database.connect(EngineSettings(pool_size=1, max_overflow=1, pool_timeout=2.0)) as db:
        first, second = db.tenant(acme), db.tenant(acme)
        await first.__aenter__()
        await second.__aenter__()
        waits = asyncio.create_task(ask(db, acme))
        await turns()
        await first.__aexit__(None, None, None)
        await second.__aexit__(None, None, None)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits

        async with db.tenant(acme), db.tenant(acme):
            assert pool_of(db).checkedout() == 2
        assert pool_of(db).checkedout() == 0


@pytest.mark.parametrize("overflow", [0, 1])
async def test_who_waits_for_a_connection_that_could_not_be_made_tries_in_turn(
    toy_database: TestDatabase, acme: UUID, monkeypatch: pytest.MonkeyPatch, overflow: int
) -> None:
    """They sat there until pool_timeout, and were told that all connections were in use."""
    connect = cast("Callable[..., Awaitable[object]]", asyncpg.connect)
    refused = 0

    async def refuse(*arguments: object, **options: object) -> object:
        nonlocal refused
        if refused <= overflow:
            refused += 1
            await asyncio.sleep(0.2)
            raise ConnectionRefusedError("not yet")
        return await connect(*arguments, **options)

    settings = EngineSettings(pool_size=1, max_overflow=overflow, pool_timeout=30.0)
    async with toy_database.connect(settings) as db, asyncio.timeout(10):
        await ask(db, acme)
        await db.engine.dispose()
        monkeypatch.setattr(asyncpg, "connect", refuse)

        ended = await asyncio.gather(*(ask(db, acme) for _ in range(6)), return_exceptions=True)

    assert sum(isinstance(one, IbexError) for one in ended) == 1 + overflow
    assert ended.count(1) == 6 - 1 - overflow


async def test_a_connection_that_could_not_be_made_is_not_tried_before_one_that_is_there(
    toy_database: TestDatabase, acme: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_arguments: object, **_options: object) -> object:
        raise ConnectionRefusedError("for good")

    async with toy_database.connect(EngineSettings(pool_size=2, max_overflow=0)) as db:
        async with db.tenant(acme) as session:
            await session.execute(ONE)
            monkeypatch.setattr(asyncpg, "connect", refuse)
            with pytest.raises(IbexError):
                await ask(db, acme)

        assert pool_of(db).checkedin() == 1
        assert [await ask(db, acme) for _ in range(3)] == [1, 1, 1]


async def test_who_waits_as_the_pool_is_disposed_of_is_served(toy_database: TestDatabase, acme: UUID) -> None:
    """The connection that they waited for died, and its slot stayed with the old pool, which nobody asked any more."""
    async with toy_database.connect(EngineSettings(pool_size=1, max_overflow=0)) as db, asyncio.timeout(10):
        tasks: list[asyncio.Task[int]] = []
        with pytest.raises(ConnectionLostError):
            async with db.tenant(acme) as session:
                driver = (await (await session.connection()).get_raw_connection()).driver_connection
                assert isinstance(driver, FoldedConnection)
                tasks += (asyncio.create_task(ask(db, acme)) for _ in range(3))
                await turns()
                await db.engine.dispose()
                driver.terminate()
                await session.execute(ONE)

        assert await asyncio.gather(*tasks) == [1, 1, 1]


async def test_a_slot_that_comes_free_goes_to_whom_waits(toy_database: TestDatabase, acme: UUID) -> None:
    """One that began to wait while a connection too many was being closed."""
    async with toy_database.connect(EngineSettings(pool_size=1, max_overflow=0)) as db:
        pool = pool_of(db)
        async with asyncio.timeout(10), db.tenant(acme):
            waits = asyncio.create_task(ask(db, acme))
            await turns()
            pool._dec_overflow()  # as the end of one too many does; here, one is allowed more than there are

            assert await waits == 1


@pytest.mark.parametrize("listened", [False, True], ids=["lent", "by SQLAlchemy"])
@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_to_the_tasks_the_pool_stays_whole(
    toy_database: TestDatabase, acme: UUID, *, seed: int, listened: bool
) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same in each run
    settings = EngineSettings(pool_size=2, max_overflow=2, pool_timeout=0.5)

    async def work(db: Database) -> None:
        async with db.tenant(acme) as session:
            lot = chance.random()
            if lot < 0.3:
                await session.execute(ONE)
            if lot < 0.1:
                raise ZeroDivisionError
            await asyncio.sleep(chance.random() * 0.004)
            if lot > 0.9:
                await session.execute(text("SELECT pg_sleep(0.003)"))
            elif lot > 0.85:
                await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    async def drive(db: Database) -> None:
        for _ in range(40):
            task = asyncio.create_task(work(db))
            if chance.random() < 0.4:
                await asyncio.sleep(chance.random() * 0.006)
                task.cancel()
            try:
                async with asyncio.timeout(chance.choice([0.002, 0.01, 5])):
                    await task
            except (asyncio.CancelledError, TimeoutError, ZeroDivisionError, IbexError):
                pass  # each of them is meant to come to pass

    async with toy_database.connect(settings) as db, asyncio.timeout(120):
        if listened:
            event.listen(db.engine.sync_engine, "begin", hear)
        await asyncio.gather(*(drive(db) for _ in range(14)))

        assert pool_of(db).checkedout() == 0
        async with db.tenant(acme), db.tenant(acme), db.tenant(acme), db.tenant(acme):
            assert pool_of(db).checkedout() == 4
