"""The tenant rides in BEGIN, once for every transaction, and one session serves one organization for life."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import func, insert, make_url, select, text, update as sql_update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import selectinload
from toys import AddBot, Bot, BotRepository, Note, NoteRepository
from wire import Wire

from ibex_db_core import (
    AccessDeniedError,
    Database,
    EngineSettings,
    IbexError,
    InvalidInputError,
    ScopedSession,
    TenantError,
    TenantMismatchError,
    TenantMissingError,
)
from ibex_db_core.engine import create_engine
from ibex_db_core.policies import TENANT_SETTING
from ibex_db_core.tenant import scope
from ibex_db_core.testing import TestDatabase
from ibex_db_core.url import parse

SETTING = text(f"SELECT current_setting('{TENANT_SETTING}', true)")


@pytest.fixture
async def plain(wire: Wire, service_address: str) -> AsyncIterator[AsyncEngine]:
    """Somebody else's engine with one connection, seen through the wire; past its first connection's questions."""
    url = wire.address(make_url(service_address)).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    wire.clear()
    yield engine
    await engine.dispose()


def began(wire: Wire) -> list[str]:
    """The first statement of every transaction on the wire."""
    return [statement for statement in wire.statements if statement.startswith("BEGIN")]


# -- BEGIN carries the tenant


async def test_a_tenant_transaction_of_one_statement_costs_three_round_trips(
    wired: Database, wire: Wire, acme: UUID
) -> None:
    async with wired.tenant(acme) as session:
        await BotRepository(session).count()  # prepares the statement
    wire.clear()

    async with wired.tenant(acme) as session:
        await BotRepository(session).count()

    assert wire.round_trips == 3
    first, query, last = wire.statements
    assert f"COMMIT; BEGIN; SET LOCAL {TENANT_SETTING} = '{acme}'" in first
    assert "bots" in query
    assert last == "COMMIT;"


async def test_the_counter_sees_the_fourth_round_trip_of_a_set_config(
    plain: AsyncEngine, wire: Wire, acme: UUID
) -> None:
    for _ in range(2):  # the second time with every statement prepared
        wire.clear()
        async with AsyncSession(plain) as session:
            await BotRepository(session, acme).count()
            await session.commit()

    assert wire.round_trips == 4
    assert f"set_config('{TENANT_SETTING}'" in wire.statements[1]


async def test_rule_2_every_transaction_of_a_session_carries_the_tenant(
    wired: Database, wire: Wire, acme: UUID
) -> None:
    async with wired.tenant(acme) as session:
        bots = BotRepository(session)
        await bots.add(Bot(slug="robin"))
        await session.commit()
        assert await bots.count() == 1
        await session.rollback()
        assert await bots.count() == 1

    assert len(began(wire)) == 3
    assert all(f"{TENANT_SETTING} = '{acme}'" in statement for statement in began(wire))
    assert all(before in ("COMMIT;", "ROLLBACK;") for before in _before_each_begin(wire))


def _before_each_begin(wire: Wire) -> list[str]:
    statements = wire.statements
    return [statements[at - 1] for at, statement in enumerate(statements) if at and statement.startswith("BEGIN")]


async def test_rule_3_add_first_and_query_second_flushes_under_the_tenant(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        session.add(Bot(slug="robin"))

        assert await session.scalar(select(func.count()).select_from(Bot)) == 1


async def test_every_way_to_read_sees_the_tenants_rows_and_no_other(
    db: Database, acme: UUID, globex: UUID, admin: asyncpg.Connection
) -> None:
    for org_id in (acme, globex):
        async with db.tenant(org_id) as session:
            bot = await BotRepository(session).add(Bot(slug="robin"))
            await NoteRepository(session).add(Note(bot_id=bot.id, number=1))
    both = await admin.fetchval("SELECT count(*) FROM ibex_core.bots WHERE org_id = ANY($1)", [acme, globex])
    assert both == 2  # there is something to leak

    async with db.tenant(acme) as session:
        mine = (await session.scalars(select(Bot).options(selectinload(Bot.notes)))).one()
        assert mine.org_id == acme
        assert [note.org_id for note in mine.notes] == [acme]
        await session.refresh(mine)
        assert [row.org_id async for row in await session.stream_scalars(select(Bot))] == [acme]
        assert (await session.scalars(text("SELECT org_id FROM ibex_core.bots"))).all() == [acme]
        connection = await session.connection()
        assert (await connection.scalars(select(Bot.__table__.c.org_id))).all() == [acme]
        merged = await session.merge(Bot(org_id=acme, id=mine.id, rank=3))
        assert merged is mine
        assert (await session.get_one(Bot, mine.id)) is mine


async def test_rule_4_a_release_of_a_savepoint_keeps_the_tenant_and_so_does_its_rollback(
    db: Database, acme: UUID
) -> None:
    async with db.tenant(acme) as session:
        bots = BotRepository(session)
        async with session.begin_nested():
            await bots.add(Bot(slug="robin"))
        undone = await session.begin_nested()
        await bots.add(Bot(slug="wren"))
        await undone.rollback()

        assert await session.scalar(SETTING) == str(acme)
        assert [bot.slug for bot in await bots.find()] == ["robin"]


async def test_a_savepoint_may_come_first(wired: Database, wire: Wire, acme: UUID) -> None:
    async with wired.tenant(acme) as session, session.begin_nested():
        assert await BotRepository(session).count() == 0

    assert TENANT_SETTING in wire.statements[0]


async def test_one_connection_carries_nothing_from_one_tenant_to_the_next(
    single: Database, acme: UUID, globex: UUID
) -> None:
    pids: set[object] = set()
    for org_id, other in ((acme, globex), (globex, acme)):
        async with single.tenant(org_id) as session:
            await BotRepository(session).add(Bot(slug="robin"))
            pids.add(await session.scalar(text("SELECT pg_backend_pid()")))
            assert await session.scalar(SETTING) == str(org_id)
            seen = (await session.scalars(text("SELECT org_id FROM ibex_core.bots"))).all()
            assert seen == [org_id]
            assert other not in seen
    async with single.engine.connect() as connection:
        pids.add(await connection.scalar(text("SELECT pg_backend_pid()")))
        assert await connection.scalar(SETTING) == ""
        assert await connection.scalar(text("SELECT count(*) FROM ibex_core.bots")) == 0

    assert len(pids) == 1


@pytest.mark.parametrize("end", ["exception", "cancelled", "timeout"])
async def test_an_interrupted_transaction_leaves_no_tenant_and_no_row_behind(
    single: Database, acme: UUID, globex: UUID, end: str
) -> None:
    async def work() -> None:
        async with single.tenant(acme) as session:
            await BotRepository(session).add(Bot(slug="robin"))
            if end == "exception":
                raise LookupError
            await session.execute(text("SELECT pg_sleep(30)"))

    if end == "exception":
        with pytest.raises(LookupError):
            await work()
    elif end == "timeout":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work(), 0.2)
    else:
        task = asyncio.create_task(work())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async with single.engine.connect() as connection:
        assert await connection.scalar(SETTING) in (None, "")
    async with single.tenant(globex) as session:
        assert await BotRepository(session).count() == 0
    async with single.tenant(acme) as session:
        assert await BotRepository(session).count() == 0


async def test_many_tenants_at_once_over_few_connections_see_their_own_rows_only(
    toy_database: TestDatabase, admin: asyncpg.Connection
) -> None:
    orgs = [uuid4() for _ in range(5)]
    await admin.executemany("INSERT INTO ibex_core.organizations (id, name) VALUES ($1, 'x')", [(o,) for o in orgs])
    settings = EngineSettings(pool_size=3, max_overflow=0, pool_timeout=60)

    async def work(db: Database, turn: int) -> list[UUID]:
        async with db.tenant(orgs[turn % 5]) as session:
            await BotRepository(session).add(Bot(slug=f"bot-{turn}"))
            await asyncio.sleep(0)
            return list((await session.scalars(text("SELECT DISTINCT org_id FROM ibex_core.bots"))).all())

    async with toy_database.connect(settings) as db:
        seen = await asyncio.gather(*(work(db, turn) for turn in range(60)))

    assert seen == [[orgs[turn % 5]] for turn in range(60)]


# -- AUTOCOMMIT


@pytest.mark.parametrize("prepared", [False, True], ids=["cold", "prepared before"])
async def test_rule_6_autocommit_is_refused_on_our_session_before_sql(
    wired: Database, wire: Wire, acme: UUID, *, prepared: bool
) -> None:
    if prepared:  # by a tenant: what is prepared is not prepared again, so asks nobody
        async with wired.tenant(acme) as before:
            await BotRepository(before).count()
    sent = sum("bots" in statement for statement in wire.statements)

    async with wired.session_factory(acme) as session:
        with pytest.raises(TenantError, match="AUTOCOMMIT"):
            await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})

    assert sum("bots" in statement for statement in wire.statements) == sent
    async with wired.tenant(acme) as after:
        assert await BotRepository(after).count() == 0  # the connection is fit for use


async def test_rule_6_autocommit_that_somebody_left_on_a_connection_reaches_nobody(
    single: Database, acme: UUID, add_bot: AddBot
) -> None:
    await add_bot(acme)
    async with single.tenant(acme) as session:
        assert await BotRepository(session).count() == 1  # prepared on the one connection
    async with single.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        assert raw.dbapi_connection is not None
        setattr(raw.dbapi_connection, "isolation_level", "autocommit")  # noqa: B010 - pyright knows no such attribute

    async with single.tenant(acme) as session:
        assert await BotRepository(session).count() == 1  # and not none at all, as without the tenant


async def test_rule_6_autocommit_is_refused_on_a_plain_session_before_a_query(
    plain: AsyncEngine, wire: Wire, acme: UUID
) -> None:
    async with AsyncSession(plain.execution_options(isolation_level="AUTOCOMMIT")) as session:
        with pytest.raises(TenantError, match="AUTOCOMMIT"):
            await BotRepository(session, acme).count()

    assert not any("bots" in statement for statement in wire.statements)


# -- identity


async def test_get_takes_the_bare_id_the_pair_or_the_names(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot = await BotRepository(session).add(Bot(slug="robin"))
    async with db.tenant(acme) as session:
        found = await session.get(Bot, bot.id)

        assert found is not None
        assert found.id == bot.id
        assert await session.get(Bot, (acme, bot.id)) is found
        assert await session.get(Bot, {"org_id": acme, "id": bot.id}) is found
        assert await session.get(Bot, {"id": bot.id}) is found
        assert await session.get(Bot, str(bot.id)) is found
        assert await session.get(Bot, (str(acme), str(bot.id))) is found
        assert await session.get(Bot, uuid4()) is None


@pytest.mark.parametrize("ident", [(1, 2, 3), (), {"slug": "robin"}, "nonsense", 7, None])
async def test_what_identifies_nothing_is_refused_before_sql(
    wired: Database, wire: Wire, acme: UUID, ident: object
) -> None:
    async with wired.tenant(acme) as session:
        with pytest.raises(InvalidInputError):
            await session.get(Bot, ident)
        assert wire.statements == []


async def test_the_identity_of_another_organization_is_refused_before_sql(
    wired: Database, wire: Wire, acme: UUID, globex: UUID
) -> None:
    async with wired.tenant(acme) as session:
        with pytest.raises(TenantMismatchError, match=str(globex)):
            await session.get(Bot, (globex, uuid4()))
        with pytest.raises(TenantMismatchError):
            await session.get_one(Bot, {"org_id": globex, "id": uuid4()})
        with pytest.raises(TenantMismatchError):
            await session.merge(Bot(org_id=globex, id=uuid4(), slug="robin"))
        assert wire.statements == []


async def test_a_cross_tenant_session_wants_the_whole_identity(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot = await BotRepository(session).add(Bot(slug="robin"))

    async with db.platform(reason="test") as session:
        with pytest.raises(TenantMissingError, match="give both"):
            await session.get(Bot, bot.id)
        assert (await session.get_one(Bot, (acme, bot.id))).slug == "robin"


# -- one session, one organization


async def test_an_object_is_given_its_organization(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot = Bot(slug="robin", notes=[Note(number=1)])
        session.add(bot)
        await session.flush()

        assert bot.org_id == acme
        assert bot.notes[0].org_id == acme


async def test_an_object_of_another_organization_is_refused_before_sql(
    wired: Database, wire: Wire, acme: UUID, globex: UUID
) -> None:
    async with wired.tenant(acme) as session:
        with pytest.raises(TenantMismatchError, match=str(globex)):
            session.add(Bot(org_id=globex, slug="robin"))
        with pytest.raises(TenantMismatchError):
            await BotRepository(session).add(Bot(org_id=globex, slug="robin"))
        with pytest.raises(TenantMismatchError):
            await BotRepository(session).add_many([Bot(slug="wren"), Bot(org_id=globex, slug="robin")])
        with pytest.raises(TenantMismatchError):
            await BotRepository(session).upsert(Bot(org_id=globex, slug="robin"), on="bots_nickname_live")
        late = Bot(slug="robin")
        session.add(late)
        late.org_id = globex
        with pytest.raises(TenantMismatchError):
            await session.flush()
        assert wire.statements == []
        session.expunge_all()


async def test_a_row_that_changes_its_organization_is_refused_before_sql(
    wired: Database, wire: Wire, acme: UUID, globex: UUID
) -> None:
    async with wired.tenant(acme) as session:
        bot = await BotRepository(session).add(Bot(slug="robin"))
        wire.clear()
        bot.org_id = globex

        with pytest.raises(TenantMismatchError):
            await session.flush()
        assert wire.statements == []
        session.expunge_all()


async def test_rule_5_a_session_is_never_bound_again(db: Database, acme: UUID, globex: UUID) -> None:
    async with db.tenant(acme) as session:
        with pytest.raises(TenantMismatchError):
            scope(session, globex, "SET LOCAL x.y = 1")
        with pytest.raises(TenantMismatchError):
            BotRepository(session, globex)
        assert BotRepository(session, acme).org_id == acme
        assert BotRepository(session).org_id == acme


async def test_a_session_that_nobody_bound_is_refused(db: Database) -> None:
    async with ScopedSession(db.engine) as session:
        with pytest.raises(TenantMissingError, match=r"db\.tenant"):
            await session.execute(text("SELECT 1"))


async def test_our_session_on_somebody_elses_engine_is_refused(plain: AsyncEngine, acme: UUID) -> None:
    session = ScopedSession(plain)
    scope(session, acme, "SET LOCAL x.y = 1")

    async with session:
        with pytest.raises(TenantError, match=r"db\.tenant"):
            await session.execute(text("SELECT 1"))


async def test_rule_21_the_sessions_own_filter_holds_where_the_policy_would_not(
    own_database: TestDatabase,
) -> None:
    admin = await asyncpg.connect(own_database.cluster.url(own_database.name).render_as_string(hide_password=False))
    orgs = [uuid4(), uuid4()]
    await admin.executemany("INSERT INTO ibex_core.organizations (id, name) VALUES ($1, 'x')", [(o,) for o in orgs])
    await admin.executemany("INSERT INTO ibex_core.bots (org_id, slug) VALUES ($1, 'robin')", [(o,) for o in orgs])
    await admin.execute("ALTER TABLE ibex_core.bots DISABLE ROW LEVEL SECURITY")
    await admin.close()

    async with own_database.connect() as db:
        for org_id in orgs:  # the same statements, so that a cached one would show the first tenant's value
            async with db.tenant(org_id) as session:
                raw = (await session.scalars(text("SELECT org_id FROM ibex_core.bots"))).all()
                assert sorted(raw) == sorted(orgs)  # the leak

                assert [bot.org_id for bot in await session.scalars(select(Bot))] == [org_id]
                changed = await session.execute(sql_update(Bot).values(rank=5).returning(Bot.org_id))
                assert changed.scalars().all() == [org_id]
                assert [bot.org_id for bot in await BotRepository(session).find()] == [org_id]


async def test_a_core_insert_for_another_organization_is_refused_by_the_server(
    db: Database, acme: UUID, globex: UUID
) -> None:
    with pytest.raises(AccessDeniedError, match="row-level security"):
        async with db.tenant(acme) as session:
            await session.execute(insert(Bot).values(org_id=globex, slug="robin"))


# -- a setting that fails


@pytest.mark.parametrize("settings", ["SET LOCAL ROLE ibex_owner", "SET LOCAL statement_timeout = 'soon'"])
async def test_a_setting_that_fails_in_begin_leaves_no_transaction_behind(
    single: Database, acme: UUID, settings: str
) -> None:
    async with single.tenant(acme) as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))

    failing = ScopedSession(single.engine)
    scope(failing, acme, settings)
    async with failing:
        with pytest.raises(IbexError):
            await failing.execute(text("SELECT 1"))

    async with single.tenant(acme) as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) == pid  # the same connection, in good health
        assert await BotRepository(session).count() == 0


async def test_an_armed_connection_that_began_nothing_is_disarmed_when_it_is_lent_again(
    single: Database, acme: UUID
) -> None:
    async with single.tenant(acme):
        pass  # armed, and no statement followed

    async with single.engine.connect() as connection:
        assert await connection.scalar(SETTING) in (None, "")


# -- plain sessions


async def test_a_plain_session_is_given_its_tenant_before_every_other_query(
    plain: AsyncEngine, wire: Wire, acme: UUID
) -> None:
    async with AsyncSession(plain) as session:
        bots = BotRepository(session, acme)
        await bots.add(Bot(slug="robin"))
        await session.commit()
        assert await bots.count() == 1
        await session.rollback()
        assert await session.scalar(select(func.count()).select_from(Bot)) == 1  # not even through the repository
        await session.commit()

    statements = wire.statements
    starts = [at for at, statement in enumerate(statements) if statement.startswith("BEGIN")]
    assert len(starts) == 3
    assert all("set_config" in statements[at + 1] for at in starts)
    assert sum(f"set_config('{TENANT_SETTING}'" in statement for statement in statements) == 3


async def test_rule_4_a_plain_sessions_tenant_outlives_the_savepoint_that_it_was_set_in(
    plain: AsyncEngine, acme: UUID
) -> None:
    async with AsyncSession(plain) as session:
        await session.execute(text("SELECT 1"))
        savepoint = await session.begin_nested()
        bots = BotRepository(session, acme)
        await bots.add(Bot(slug="robin"))
        await savepoint.rollback()
        assert not await session.scalar(SETTING)  # the rollback undid it

        await bots.add(Bot(slug="wren"))

        assert await session.scalar(SETTING) == str(acme)
        assert [bot.slug for bot in await bots.find()] == ["wren"]


async def test_a_plain_session_keeps_its_tenant_where_the_savepoint_is_released(plain: AsyncEngine, acme: UUID) -> None:
    async with AsyncSession(plain) as session:
        bots = BotRepository(session, acme)
        async with session.begin_nested():
            await bots.add(Bot(slug="robin"))

        assert await bots.count() == 1


async def test_rule_5_a_plain_session_serves_one_organization_for_life(
    plain: AsyncEngine, acme: UUID, globex: UUID
) -> None:
    async with AsyncSession(plain) as session:
        BotRepository(session, acme)
        BotRepository(session, acme)

        with pytest.raises(TenantMismatchError):
            BotRepository(session, globex)


async def test_a_plain_session_names_its_organization(plain: AsyncEngine) -> None:
    async with AsyncSession(plain) as session:
        with pytest.raises(TenantMissingError, match=r"BotRepository\(session, org_id\)"):
            BotRepository(session)


async def test_our_engine_without_a_tenant_sees_nothing(db: Database, acme: UUID, service_address: str) -> None:
    async with db.tenant(acme) as session:
        await BotRepository(session).add(Bot(slug="robin"))
    engine = create_engine(parse(service_address), EngineSettings())

    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM ibex_core.bots")) == 0
    await engine.dispose()
