"""Tasks that outlive their block, and blocks that end badly: whose rows, whose connection, whose exception."""

import asyncio
from uuid import UUID

import asyncpg
import pytest
from pools import hear, pool_of
from sqlalchemy import event, text
from sqlalchemy.exc import InvalidRequestError, ResourceClosedError
from toys import AddBot, Bots

from ibex_db_core import ConnectionLostError, Database, DatabaseError, IbexError, ScopedSession

ALL = text("SELECT org_id FROM ibex_core.bots")


@pytest.fixture
async def both(single: Database, acme: UUID, globex: UUID, add_bot: AddBot) -> dict[UUID, UUID]:
    """A bot each, and every statement below prepared on the one connection, as on any that has served for a while."""
    bots = {acme: await add_bot(acme), globex: await add_bot(globex)}
    for org, ident in bots.items():
        async with single.tenant(org) as session:
            await Bots(session).get(ident)
            await session.execute(ALL)
    return bots


async def seen_by(db: Database, org: UUID) -> set[UUID]:
    async with db.tenant(org) as session:
        return set((await session.scalars(ALL)).all())


@pytest.mark.parametrize("listened", [False, True], ids=["lent", "by SQLAlchemy"])
@pytest.mark.parametrize("verb", ["repository", "text"])
@pytest.mark.parametrize("passes", range(8))
async def test_what_a_task_that_outlives_its_block_began_no_other_tenant_is_in(
    single: Database, acme: UUID, globex: UUID, both: dict[UUID, UUID], *, passes: int, verb: str, listened: bool
) -> None:
    """It was: its BEGIN was under way as the connection went back, and the next tenant's statement followed it."""
    if listened:
        event.listen(single.engine.sync_engine, "begin", hear)

    async def work(session: ScopedSession) -> None:
        if verb == "text":
            await session.execute(ALL)
        else:
            await Bots(session).get(both[acme])

    left: list[asyncio.Task[None]] = []
    with pytest.raises(LookupError):
        async with single.tenant(acme) as session:
            left.append(asyncio.create_task(work(session)))
            for _ in range(passes):
                await asyncio.sleep(0)
            raise LookupError
    rows = await seen_by(single, globex)

    assert rows == {globex}
    (ended,) = await asyncio.gather(*left, return_exceptions=True)
    # It got its answer before; or it was told, by us or by what SQLAlchemy had of the session then.
    assert ended is None or isinstance(ended, IbexError | InvalidRequestError)
    assert await seen_by(single, acme) == {acme}
    assert pool_of(single).checkedout() == 0


async def test_a_block_is_not_left_well_while_a_statement_is_under_way(
    single: Database, acme: UUID, globex: UUID, both: dict[UUID, UUID]
) -> None:
    async def slow(session: ScopedSession) -> None:
        await session.execute(text("SELECT pg_sleep(30)"))

    left: list[asyncio.Task[None]] = []
    with pytest.raises(DatabaseError, match="await that task inside the block"):
        async with single.tenant(acme) as session:
            left.append(asyncio.create_task(slow(session)))
            await asyncio.sleep(0.05)

    with pytest.raises((ConnectionLostError, ResourceClosedError)):  # as far as it has come
        await left[0]
    assert await seen_by(single, globex) == {globex}
    assert both


async def test_a_task_in_the_middle_of_a_savepoint_costs_no_connection(
    single: Database, acme: UUID, globex: UUID, both: dict[UUID, UUID]
) -> None:
    async def inside(session: ScopedSession) -> None:
        async with session.begin_nested():
            await Bots(session).get(both[acme])

    for passes in range(24):
        left: list[asyncio.Task[None]] = []
        with pytest.raises(LookupError):
            async with single.tenant(acme) as session:
                left.append(asyncio.create_task(inside(session)))
                for _ in range(passes):
                    await asyncio.sleep(0)
                raise LookupError
        await asyncio.wait(left)
        left[0].exception()

        assert pool_of(single).checkedout() == 0
        assert await seen_by(single, globex) == {globex}


# -- what a block says is what its caller is told


async def test_a_blocks_own_exception_is_told_though_its_connection_is_gone(
    single: Database, acme: UUID, admin: asyncpg.Connection
) -> None:
    with pytest.raises(LookupError, match="mine") as told:
        async with single.tenant(acme) as session:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            await admin.execute("SELECT pg_terminate_backend($1)", pid)
            raise LookupError("mine")

    assert not isinstance(told.value, ConnectionLostError)
    assert pool_of(single).checkedout() == 0


async def test_work_that_fails_by_itself_is_not_tried_again_because_its_connection_is_gone(
    single: Database, acme: UUID, admin: asyncpg.Connection
) -> None:
    tries: list[int] = []

    async def work(session: ScopedSession) -> None:
        tries.append(await session.scalar(text("SELECT pg_backend_pid()")) or 0)
        await admin.execute("SELECT pg_terminate_backend($1)", tries[-1])
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await single.run(acme, work)

    assert len(tries) == 1


async def test_a_cancelled_unit_of_work_stays_cancelled_though_its_connection_is_gone(
    single: Database, acme: UUID, admin: asyncpg.Connection
) -> None:
    begun = asyncio.Event()

    async def work(session: ScopedSession) -> None:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await admin.execute("SELECT pg_terminate_backend($1)", pid)
        begun.set()
        await asyncio.sleep(60)

    running = asyncio.create_task(single.run(acme, work))
    await begun.wait()
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
