"""Who waits for a connection gets one before who asks later, and a turn that nobody takes loses none."""

# pyright: reportPrivateUsage=false

import asyncio
from uuid import UUID

import pytest
from pools import ONE, hear, pool_of, turns
from sqlalchemy import event, text
from sqlalchemy.util.concurrency import greenlet_spawn
from sqlalchemy.util.queue import Empty, Full

from ibex_db_core import Database
from ibex_db_core.connection import FoldedConnection
from ibex_db_core.fair_queue import FairQueue
from ibex_db_core.tenant import SyncScopedSession


@pytest.mark.parametrize("listened", [False, True], ids=["lent", "by SQLAlchemy"])
async def test_who_waits_is_served_before_who_goes_straight_on(single: Database, acme: UUID, *, listened: bool) -> None:
    if listened:
        event.listen(single.engine.sync_engine, "begin", hear)
    done = 0
    served = asyncio.Event()

    async def go_on() -> None:
        nonlocal done
        while not served.is_set():
            async with single.tenant(acme) as session:
                await session.execute(ONE)
            done += 1

    async def wait() -> int:
        before = done
        async with single.tenant(acme) as session:
            await session.execute(ONE)
            return done - before

    greedy = asyncio.create_task(go_on())
    while done < 3:  # noqa: ASYNC110 - counted, not signalled
        await asyncio.sleep(0)
    try:
        async with asyncio.timeout(5):
            meanwhile = await wait()
    finally:
        served.set()
        await greedy

    assert meanwhile <= 1, "only the one that was under way"


async def test_they_are_served_in_the_order_in_which_they_came(single: Database, acme: UUID) -> None:
    order: list[int] = []

    async def wait(number: int) -> None:
        async with single.tenant(acme) as session:
            await session.execute(ONE)
            order.append(number)

    async with asyncio.TaskGroup() as tasks, single.tenant(acme) as session:
        await session.execute(ONE)
        for number in range(5):
            tasks.create_task(wait(number))
            await turns()

    assert order == [0, 1, 2, 3, 4]


async def test_a_connection_given_to_a_task_that_is_cancelled_goes_to_the_next(single: Database, acme: UUID) -> None:
    async def wait() -> None:
        async with single.tenant(acme) as session:
            await session.execute(ONE)

    async with single.tenant(acme) as session:
        await session.execute(ONE)
        first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
        await turns()
    first.cancel()  # it has the connection, and has not run since

    async with asyncio.timeout(5):
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
    assert (pool_of(single).checkedin(), pool_of(single).checkedout()) == (1, 0)


async def test_a_connection_that_was_waited_for_is_lent(single: Database, acme: UUID) -> None:
    async def wait() -> bool:
        async with single.tenant(acme) as session:
            sync = session.sync_session
            assert isinstance(sync, SyncScopedSession)
            return sync.lease is not None

    async with single.tenant(acme):
        waits = asyncio.create_task(wait())
        await turns()

    assert await waits


async def test_a_connection_that_died_before_it_came_back_is_made_anew(single: Database, acme: UUID) -> None:
    async def wait() -> int:
        async with single.tenant(acme) as session:
            return int((await session.execute(text("SELECT pg_backend_pid()"))).scalar_one())

    async with asyncio.timeout(10), single.tenant(acme) as session:
        first, second = (asyncio.create_task(wait()) for _ in range(2))
        await turns()
        pooled = (await session.connection()).sync_connection
        assert pooled is not None
        driver = pooled.connection.driver_connection
        assert isinstance(driver, FoldedConnection)
        before = driver.get_server_pid()
        await session.commit()
        driver.terminate()

    assert await first == await second != before
    assert (pool_of(single).checkedin(), pool_of(single).checkedout()) == (1, 0)


async def test_what_comes_as_time_is_up_is_taken() -> None:
    queue = FairQueue[str](1)
    waits = asyncio.create_task(greenlet_spawn(queue.get, block=True, timeout=0.0))
    await asyncio.sleep(0)
    queue.put_nowait("given")

    assert await waits == "given"
    assert queue.empty()


async def test_who_waited_in_vain_is_passed_over() -> None:
    queue = FairQueue[str](1)
    with pytest.raises(Empty):
        await greenlet_spawn(queue.get, block=True, timeout=0.01)

    queue.put("kept")

    assert (queue.qsize(), queue.full(), queue.get_nowait()) == (1, True, "kept")


async def test_a_connection_from_another_thread_is_taken_at_once() -> None:
    """The garbage collector may run anywhere; the loop has to be woken, too."""
    queue = FairQueue[str](1)
    waits = asyncio.create_task(queue.turn(30.0))
    await turns()

    async with asyncio.timeout(5):
        await asyncio.to_thread(queue.put_nowait, "found")
        assert await waits == "found"


def test_who_waited_in_a_loop_that_is_closed_is_passed_over() -> None:
    queue = FairQueue[str](1)
    loop = asyncio.new_event_loop()
    queue._waiting.append(loop.create_future())  # as turn() does; its task would complain that it never ends
    loop.close()

    queue.put_nowait("kept")

    assert queue.get_nowait() == "kept"


async def test_no_more_than_its_size_lies_in_it() -> None:
    queue = FairQueue[str](1)
    queue.put_nowait("first")

    with pytest.raises(Full):
        queue.put_nowait("second")
    assert queue.get(block=False) == "first"
    with pytest.raises(Empty):
        queue.get(block=False)


@pytest.mark.parametrize(("lifo", "first"), [(False, "old"), (True, "new")])
def test_the_order_of_what_lies_in_it_is_as_asked(*, lifo: bool, first: str) -> None:
    queue = FairQueue[str](use_lifo=lifo)
    queue.put("old")
    queue.put("new")

    assert queue.get() == first
