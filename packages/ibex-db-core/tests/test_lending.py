"""A unit of work lends its connection, and no rule of the tenant's is weaker for it."""

import asyncio
from contextlib import nullcontext
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session
from toys import AddBot, Bot, Bots
from wire import Wire

from ibex_db_core import (
    ConflictError,
    Database,
    EngineSettings,
    NotFoundError,
    ScopedSession,
    TenantError,
)
from ibex_db_core.lending import LendingPool, plain
from ibex_db_core.tenant import SyncScopedSession
from ibex_db_core.testing import TestDatabase


def half(session: ScopedSession) -> SyncScopedSession:
    sync = session.sync_session
    assert isinstance(sync, SyncScopedSession)
    return sync


@pytest.fixture
async def warm(single: Database, acme: UUID) -> Database:
    """One connection, made and idle in the pool."""
    async with single.tenant(acme):
        pass
    return single


async def test_the_sessions_of_a_database_are_as_lending_expects_them(warm: Database, acme: UUID) -> None:
    async with warm.tenant(acme) as session:
        assert plain(half(session))  # otherwise every test below would be of SQLAlchemy's own way
        assert half(session).lease is not None


async def test_a_verb_needs_nothing_of_sqlalchemys_transaction(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)

    async with warm.tenant(acme) as session:
        await Bots(session).get(ident)

        assert half(session).lease is not None
        assert session.in_transaction()


async def test_what_a_verb_has_begun_any_statement_goes_on_with(
    warm: Database, acme: UUID, globex: UUID, add_bot: AddBot
) -> None:
    mine = await add_bot(acme)
    await add_bot(globex)

    async with warm.tenant(acme) as session:
        await Bots(session).get(mine)
        first = await session.scalar(text("SELECT txid_current()"))
        seen = (await session.execute(text("SELECT id FROM ibex_core.bots"))).scalars().all()
        await Bots(session).get(mine)
        last = await session.scalar(text("SELECT txid_current()"))

        assert half(session).lease is None
    assert seen == [mine]
    assert first == last


async def test_the_tenant_is_sent_once_however_the_unit_of_work_begins(
    wired: Database, wire: Wire, acme: UUID, add_bot: AddBot
) -> None:
    ident = await add_bot(acme)
    async with wired.tenant(acme) as session:
        await Bots(session).get(ident)
    wire.clear()

    async with wired.tenant(acme) as session:
        await Bots(session).get(ident)
        await session.execute(text("SELECT 1"))

    begins = [statement for statement in wire.statements if str(acme) in statement]
    assert len(begins) == 1
    assert "CLOSE ALL; DISCARD TEMP" in begins[0]


async def test_a_verb_in_a_unit_of_work_costs_three_round_trips(
    wired: Database, wire: Wire, acme: UUID, add_bot: AddBot
) -> None:
    ident = await add_bot(acme)
    for _ in range(2):
        wire.clear()
        async with wired.tenant(acme) as session:
            await Bots(session).get(ident)

    assert wire.round_trips == 3


async def test_one_unit_of_work_checks_one_connection_out(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)
    counted: list[object] = []
    event.listen(warm.engine.sync_engine, "checkout", lambda *_args: counted.append(None))

    async with warm.tenant(acme) as session:
        await Bots(session).get(ident)
        session.add(Bot(slug="second"))
        await session.flush()
        async with session.begin_nested():
            await Bots(session).get(ident)

    assert len(counted) == 1
    pool = warm.engine.pool
    assert isinstance(pool, LendingPool)
    assert (pool.checkedin(), pool.checkedout()) == (1, 0)


async def test_a_rollback_in_between_undoes_what_a_verb_did(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)

    async with warm.tenant(acme) as session:
        bots = Bots(session)
        bot = await bots.get(ident)
        bot.rank = 5
        await session.flush()
        await session.rollback()

        assert (await bots.get(ident)).rank == 0


async def test_a_rollback_undoes_what_was_sent_directly(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)
    write = "UPDATE ibex_core.bots SET rank = 7 RETURNING id"

    async with warm.tenant(acme) as session:
        assert await Bots(session).rows(write) == [(ident,)]
        assert half(session).lease is not None
        await session.rollback()
        assert (await Bots(session).get(ident)).rank == 0

    with pytest.raises(RuntimeError):
        async with warm.tenant(acme) as session:
            await Bots(session).rows(write)
            raise RuntimeError
    async with warm.tenant(acme) as session:
        assert (await Bots(session).get(ident)).rank == 0
        await Bots(session).rows(write)
    async with warm.tenant(acme) as session:
        assert (await Bots(session).get(ident)).rank == 7


@pytest.mark.parametrize("ending", ["close", "reset", "invalidate"])
async def test_whatever_ends_the_session_ends_what_was_sent_directly(
    warm: Database, acme: UUID, add_bot: AddBot, ending: str
) -> None:
    ident = await add_bot(acme)

    with nullcontext() if ending == "reset" else pytest.raises(InvalidRequestError, match="permanently closed"):
        async with warm.tenant(acme) as session:
            await Bots(session).rows("UPDATE ibex_core.bots SET rank = 7 RETURNING id")
            await getattr(session, ending)()

    async with warm.tenant(acme) as session:
        assert (await Bots(session).get(ident)).rank == 0


async def test_a_commit_in_between_keeps_what_was_sent_directly(
    warm: Database, acme: UUID, add_bot: AddBot, admin: asyncpg.Connection
) -> None:
    ident = await add_bot(acme)

    async with warm.tenant(acme) as session:
        await Bots(session).rows("UPDATE ibex_core.bots SET rank = 7 RETURNING id")
        await session.commit()
        assert await admin.fetchval("SELECT rank FROM ibex_core.bots WHERE id = $1", ident) == 7
        assert (await Bots(session).get(ident)).rank == 7  # the next transaction has the tenant too


async def test_a_session_that_holds_a_connection_has_begun_already(warm: Database, acme: UUID) -> None:
    async with warm.tenant(acme) as session:
        with pytest.raises(InvalidRequestError, match="already begun"):
            await session.begin()


async def test_the_next_tenant_on_the_connection_sees_its_own_rows_only(
    warm: Database, acme: UUID, globex: UUID, add_bot: AddBot
) -> None:
    mine, theirs = await add_bot(acme), await add_bot(globex)

    pids: set[object] = set()
    for org_id, own, others in ((acme, mine, theirs), (globex, theirs, mine)) * 4:
        async with warm.tenant(org_id) as session:
            bots = Bots(session)
            assert (await bots.get(own)).id == own
            with pytest.raises(NotFoundError):
                await bots.get(others)
            # Past the repository's own filter the policy alone decides.
            every = "SELECT id FROM ibex_core.bots WHERE id = ANY(ARRAY[CAST(:a AS uuid), CAST(:b AS uuid)])"
            assert await bots.rows(every, a=mine, b=theirs) == [(own,)]
            pids.update(await bots.rows("SELECT pg_backend_pid()"))
            assert half(session).lease is not None
    assert len(pids) == 1


async def test_an_unused_unit_of_work_leaves_no_tenant_on_the_connection(warm: Database, acme: UUID) -> None:
    async with warm.tenant(acme):
        pass

    async with warm.engine.connect() as connection:
        found = await connection.scalar(text("SELECT current_setting('app.current_org_id', true)"))
    assert not found


async def test_an_error_of_a_direct_statement_is_ours_and_chained(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    await add_bot(acme, "taken")
    again = "INSERT INTO ibex_core.bots (org_id, slug, nickname) VALUES (CAST(:org AS uuid), :slug, :nickname)"
    async with warm.tenant(acme) as session:
        session.add(Bot(slug="other", nickname="Rob"))

    with pytest.raises(ConflictError) as caught:
        async with warm.tenant(acme) as session:
            await Bots(session).rows(again, org=acme, slug="third", nickname="Rob")

    assert caught.value.constraint == "bots_nickname_live"
    assert caught.value.values["nickname"] == "Rob"
    assert caught.value.__cause__ is not None
    assert isinstance(caught.value.__cause__.__cause__, asyncpg.UniqueViolationError)
    async with warm.tenant(acme) as session:
        assert await Bots(session).count() == 2


async def test_a_failure_within_a_savepoint_undoes_itself_only(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)

    async with warm.tenant(acme) as session:
        bots = Bots(session)
        await bots.rows("UPDATE ibex_core.bots SET rank = 7 RETURNING id")
        with pytest.raises(Exception, match="division by zero"):
            async with session.begin_nested():
                await bots.rows("UPDATE ibex_core.bots SET rank = 8 RETURNING id")
                await bots.rows("SELECT 1 / 0")
        assert await bots.rows("SELECT rank FROM ibex_core.bots") == [(7,)]
    async with warm.tenant(acme) as session:
        assert (await Bots(session).get(ident)).rank == 7


async def test_a_failure_that_was_swallowed_is_not_a_success(warm: Database, acme: UUID) -> None:
    with pytest.raises(Exception, match="nothing was committed"):
        async with warm.tenant(acme) as session:
            bots = Bots(session)
            with pytest.raises(Exception, match="division by zero"):
                await bots.rows("SELECT 1 / 0")
            assert session.in_transaction()


async def test_a_cancelled_statement_takes_its_connection_along(
    warm: Database, acme: UUID, globex: UUID, add_bot: AddBot
) -> None:
    theirs = await add_bot(globex)
    begun = asyncio.Event()
    pids: list[object] = []

    async def slow() -> None:
        async with warm.tenant(acme) as session:
            pids.extend(await Bots(session).rows("SELECT pg_backend_pid()"))
            begun.set()
            await Bots(session).rows("SELECT pg_sleep(60)")

    task = asyncio.create_task(slow())
    await begun.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with warm.tenant(globex) as session:
        bots = Bots(session)
        assert [found.id for found in await bots.find()] == [theirs]
        assert await bots.rows("SELECT pg_backend_pid()") != pids
    pool = warm.engine.pool
    assert isinstance(pool, LendingPool)
    assert pool.checkedout() == 0


async def test_a_terminated_backend_is_a_lost_connection_and_the_next_is_sound(
    warm: Database, acme: UUID, add_bot: AddBot, admin: asyncpg.Connection
) -> None:
    ident = await add_bot(acme)

    with pytest.raises(Exception, match="connection broke"):
        async with warm.tenant(acme) as session:
            ((pid,),) = await Bots(session).rows("SELECT pg_backend_pid()")
            await admin.execute("SELECT pg_terminate_backend($1)", pid)
            await Bots(session).rows("SELECT 1 FROM pg_sleep(5)")

    async with warm.tenant(acme) as session:
        assert (await Bots(session).get(ident)).id == ident


async def test_a_backend_that_was_terminated_in_the_pool_is_replaced(
    warm: Database, acme: UUID, add_bot: AddBot, admin: asyncpg.Connection
) -> None:
    ident = await add_bot(acme)
    async with warm.tenant(acme) as session:
        ((pid,),) = await Bots(session).rows("SELECT pg_backend_pid()")
    await admin.execute("SELECT pg_terminate_backend($1)", pid)
    await asyncio.sleep(0.1)

    async with warm.tenant(acme) as session:
        assert half(session).lease is None  # it had to be connected anew, which SQLAlchemy does
        assert (await Bots(session).get(ident)).id == ident
    async with warm.tenant(acme) as session:
        assert half(session).lease is not None


async def test_a_connection_that_is_due_for_recycling_is_not_lent(
    toy_database: TestDatabase, acme: UUID, add_bot: AddBot
) -> None:
    ident = await add_bot(acme)
    pids: set[object] = set()

    async with toy_database.connect(EngineSettings(pool_size=1, max_overflow=0, pool_recycle=0)) as database:
        for _ in range(3):
            async with database.tenant(acme) as session:
                assert half(session).lease is None
                assert (await Bots(session).get(ident)).id == ident
                pids.update(await Bots(session).rows("SELECT pg_backend_pid()"))
    assert len(pids) == 3


async def test_a_session_that_is_over_refuses_verbs(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)
    async with warm.tenant(acme) as session:
        bot = await Bots(session).get(ident)

    assert bot not in session
    assert bot.slug == "robin"
    with pytest.raises(TenantError, match="ended"):
        await Bots(session).get(ident)


async def test_whoever_listens_to_the_engine_is_told_of_every_statement(
    warm: Database, acme: UUID, add_bot: AddBot
) -> None:
    ident = await add_bot(acme)
    told: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        told.append(statement)

    async with warm.tenant(acme) as session:
        bots = Bots(session)
        await bots.get(ident)
        event.listen(warm.engine.sync_engine, "before_cursor_execute", note)
        session.expunge_all()
        await bots.get(ident)
        event.remove(warm.engine.sync_engine, "before_cursor_execute", note)
        await bots.get(ident)
    assert len(told) == 1


async def test_whoever_listens_to_the_session_within_a_block_is_told_of_what_is_loaded(
    warm: Database, acme: UUID, add_bot: AddBot
) -> None:
    ident = await add_bot(acme)
    told: list[object] = []

    def tell(_session: object, loaded: object) -> None:
        told.append(loaded)

    async with warm.tenant(acme) as session:
        bots = Bots(session)
        await bots.rows("SELECT 1")
        assert half(session).lease is not None
        event.listen(session.sync_session, "loaded_as_persistent", tell)
        bot = await bots.get(ident)

    assert told == [bot]


@pytest.mark.parametrize("name", ["before_commit", "after_commit"])
async def test_whoever_waits_for_a_commit_is_told_of_it(warm: Database, acme: UUID, add_bot: AddBot, name: str) -> None:
    ident = await add_bot(acme)
    told: list[object] = []

    async with warm.tenant(acme) as session:
        await Bots(session).get(ident)
        event.listen(session.sync_session, name, told.append)

    assert told == [session.sync_session]


@pytest.mark.parametrize(
    ("target", "name"), [(Session, "before_commit"), (Session, "after_begin"), (Engine, "commit"), (Engine, "begin")]
)
async def test_whoever_listens_to_the_class_is_told_of_units_of_work_that_come_later(
    warm: Database, acme: UUID, add_bot: AddBot, target: type, name: str
) -> None:
    ident = await add_bot(acme)
    told: list[object] = []

    def tell(*of: object) -> None:
        told.append(of)

    event.listen(target, name, tell)
    try:
        async with warm.tenant(acme) as session:
            await Bots(session).get(ident)
    finally:
        event.remove(target, name, tell)
    async with warm.tenant(acme) as session:
        assert half(session).lease is not None
        await Bots(session).get(ident)

    assert len(told) == 1


async def test_whoever_listens_to_the_class_of_engines_is_told_of_every_statement(
    warm: Database, acme: UUID, add_bot: AddBot
) -> None:
    ident = await add_bot(acme)
    told: list[object] = []

    def tell(*of: object) -> None:
        told.append(of)

    async with warm.tenant(acme) as session:
        await Bots(session).get(ident)
        event.listen(Engine, "after_cursor_execute", tell)
        try:
            await Bots(session).get(ident)
        finally:
            event.remove(Engine, "after_cursor_execute", tell)

    assert len(told) == 1


async def test_a_block_is_entered_once(warm: Database, acme: UUID) -> None:
    block = warm.tenant(acme)
    async with block:
        pass

    with pytest.raises(TenantError, match="open another one"):
        async with block:
            pass


async def test_concurrent_verbs_of_one_session_share_its_transaction(
    warm: Database, acme: UUID, add_bot: AddBot
) -> None:
    first, second = await add_bot(acme, "one"), await add_bot(acme, "two")

    async with warm.tenant(acme) as session:
        bots = Bots(session)
        found = await asyncio.gather(bots.get(first), bots.get(second))

    assert [bot.id for bot in found] == [first, second]
