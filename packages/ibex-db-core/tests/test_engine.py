"""The engine: connections that are healthy when lent, settings that ride in BEGIN, errors that are ours."""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pgvector
import pytest
from sqlalchemy import text
from toys import BotRepository
from wire import Wire

from ibex_db_core import ConfigurationError, ConnectionLostError, Database, EngineSettings, PoolExhaustedError
from ibex_db_core.engine import create_engine
from ibex_db_core.testing import TestDatabase
from ibex_db_core.url import parse


async def gone(admin: asyncpg.Connection, pid: object) -> None:
    """Poll until the server has ended a backend."""
    for _ in range(500):
        if not await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"backend {pid} is still there")


async def test_a_connection_that_the_server_closed_is_replaced_at_checkout_without_an_error(
    single: Database, acme: UUID, admin: asyncpg.Connection
) -> None:
    async with single.tenant(acme) as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        driver = (await (await session.connection()).get_raw_connection()).driver_connection
    assert isinstance(driver, asyncpg.Connection)
    assert await admin.fetchval("SELECT pg_terminate_backend($1)", pid)
    await gone(admin, pid)
    async with asyncio.timeout(10):
        while not driver.is_closed():  # it leaves the server's list before its socket  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async with single.tenant(acme) as session:
        assert await BotRepository(session).count() == 0
        assert await session.scalar(text("SELECT pg_backend_pid()")) != pid


async def test_checking_a_connection_out_costs_no_round_trip(wired: Database, wire: Wire) -> None:
    async with wired.engine.connect():
        assert wire.messages == []


async def test_a_connection_left_in_a_transaction_is_not_lent_again(single: Database, acme: UUID) -> None:
    async with single.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        driver = raw.driver_connection
        assert isinstance(driver, asyncpg.Connection)
        pid = driver.get_server_pid()
        await driver.execute("BEGIN")

    async with single.tenant(acme) as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) != pid


async def test_a_connection_that_breaks_in_use_is_told_as_lost(
    db: Database, acme: UUID, admin: asyncpg.Connection
) -> None:
    with pytest.raises(ConnectionLostError):
        async with db.tenant(acme) as session:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            await admin.fetchval("SELECT pg_terminate_backend($1)", pid)
            await gone(admin, pid)
            await BotRepository(session).count()

    async with db.tenant(acme) as session:
        assert await BotRepository(session).count() == 0


async def test_a_server_that_has_said_farewell_is_lost_though_the_connection_has_not_closed_yet(
    wired: Database, wire: Wire, acme: UUID, admin: asyncpg.Connection
) -> None:
    """asyncpg refuses whatever follows FATAL with an error of its own inside, which is no defect of anybody's."""
    async with wired.tenant(acme) as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
    wire.clear()
    wire.lingers = True
    assert await admin.fetchval("SELECT pg_terminate_backend($1)", pid)
    async with asyncio.timeout(10):
        while not any(message.kind == "E" for message in wire.messages):  # noqa: ASYNC110 - the wire wakes nobody
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # from the wire to the driver

    with pytest.raises(ConnectionLostError, match="the server has ended it") as caught:
        async with wired.tenant(acme) as session:
            await BotRepository(session).count()
    assert "another operation (2)" in str(caught.value.__cause__), "or this was not what it is about"

    wire.lingers = False
    async with wired.tenant(acme) as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) != pid


async def test_an_exhausted_pool_is_told_at_the_door(toy_database: TestDatabase, acme: UUID) -> None:
    settings = EngineSettings(pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with toy_database.connect(settings) as db, db.tenant(acme) as held:
        with pytest.raises(PoolExhaustedError, match="pool_size"):
            async with db.tenant(acme):
                raise AssertionError("no connection was free")

        assert await BotRepository(held).count() == 0


@pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"])
async def test_a_timeout_holds_on_every_connection_and_costs_no_transaction_anything(
    toy_database: TestDatabase, acme: UUID, setting: str
) -> None:
    settings = EngineSettings(pool_size=1, statement_timeout=7, lock_timeout=7, idle_timeout=7)
    async with toy_database.connect(settings) as db:
        async with db.tenant(acme) as session:
            assert await session.scalar(text(f"SHOW {setting}")) == "7s"
        async with db.engine.connect() as connection:
            assert await connection.scalar(text(f"SHOW {setting}")) == "7s"

    assert settings.each_transaction == ""


async def test_behind_pgbouncer_a_timeout_rides_in_begin_and_leaves_nothing_on_the_connection(
    toy_database: TestDatabase, acme: UUID
) -> None:
    async with toy_database.connect(EngineSettings(pool_size=1, statement_timeout=7, statement_cache_size=0)) as db:
        async with db.tenant(acme) as session:
            assert await session.scalar(text("SHOW statement_timeout")) == "7s"
            assert await session.scalar(text("SHOW plan_cache_mode")) == "force_custom_plan"
        async with db.engine.connect() as connection:
            assert await connection.scalar(text("SHOW statement_timeout")) == "0"
            assert await connection.scalar(text("SHOW plan_cache_mode")) == "auto"


async def test_every_transaction_plans_for_its_own_values_and_searches_the_index_deeply(
    db: Database, acme: UUID
) -> None:
    async with db.tenant(acme) as session:
        shown = {
            name: await session.scalar(text(f"SELECT current_setting('{name}')"))
            for name in ("plan_cache_mode", "hnsw.ef_search", "hnsw.iterative_scan")
        }

    assert shown == {
        "plan_cache_mode": "force_custom_plan",
        "hnsw.ef_search": "100",
        "hnsw.iterative_scan": "relaxed_order",
    }


async def test_the_application_is_named_by_the_url_or_else_by_the_settings(service_address: str) -> None:
    async def name(address: str, settings: EngineSettings) -> object:
        engine = create_engine(parse(address), settings)
        async with engine.connect() as connection:
            found = await connection.scalar(text("SHOW application_name"))
        await engine.dispose()
        return found

    named = f"{service_address}{'&' if '?' in service_address else '?'}application_name=billing"
    assert await name(service_address, EngineSettings()) == "ibex-db"
    assert await name(service_address, EngineSettings(application_name="sweeper")) == "sweeper"
    assert await name(named, EngineSettings()) == "billing"
    assert await name(service_address, EngineSettings(connect_args={"server_settings": {"jit": "off"}})) == "ibex-db"


async def test_an_engine_without_a_statement_cache_works_as_behind_pgbouncer(
    toy_database: TestDatabase, acme: UUID
) -> None:
    async with toy_database.connect(EngineSettings(pool_size=1, statement_cache_size=0)) as db:
        for _ in range(3):
            async with db.tenant(acme) as session:
                assert await BotRepository(session).count() == 0


async def test_a_connection_made_before_the_vector_extension_works_without_its_codec(
    empty_database: TestDatabase,
) -> None:
    engine = create_engine(parse(empty_database.cluster.url(empty_database.name)), EngineSettings())

    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await engine.dispose()


async def test_rule_22_vectors_travel_in_binary_wherever_the_extension_lives(empty_database: TestDatabase) -> None:
    engine = create_engine(parse(empty_database.cluster.url(empty_database.name)), EngineSettings(pool_size=1))
    async with engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA extras"))
        await connection.execute(text("CREATE EXTENSION vector SCHEMA extras"))
    await engine.dispose()

    async with engine.connect() as connection:
        found = await connection.scalar(text("SELECT '[1,2]'::extras.vector"))
    await engine.dispose()
    assert isinstance(found, pgvector.Vector)


async def test_a_server_that_is_not_there_is_told_as_a_lost_connection() -> None:
    engine = create_engine(parse("postgresql://ann@127.0.0.1:1/ibex"), EngineSettings())

    with pytest.raises(ConnectionLostError, match="no connection to the database"):
        async with engine.connect():
            pass
    await engine.dispose()


async def test_a_login_or_a_database_that_is_not_there_is_told_as_configuration(toy_database: TestDatabase) -> None:
    nobody = toy_database.cluster.url(toy_database.name, user=f"nobody_{uuid4().hex[:8]}")
    nowhere = toy_database.cluster.url(f"nowhere_{uuid4().hex[:8]}")

    for address in (nobody, nowhere):
        engine = create_engine(parse(address), EngineSettings())
        with pytest.raises(ConfigurationError, match="check user, password and database") as caught:
            async with engine.connect():
                pass
        assert isinstance(caught.value.__cause__, asyncpg.PostgresError)
        await engine.dispose()


async def test_a_url_that_asks_for_what_the_driver_cannot_do_is_told_as_configuration() -> None:
    engine = create_engine(parse("postgresql://ann@127.0.0.1/ibex?sslmode=sometimes"), EngineSettings())

    with pytest.raises(ConfigurationError, match="sslmode"):
        async with engine.connect():
            pass
    await engine.dispose()


async def test_connect_timeout_is_kept(wire: Wire) -> None:
    callers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_unix_server(
        lambda _reader, writer: callers.append(writer), f"{wire.folder}/.s.PGSQL.9999"
    )
    address = f"postgresql:///ibex?host={wire.folder}&port=9999&user=ann&connect_timeout=0.1"
    engine = create_engine(parse(address), EngineSettings())

    with pytest.raises(ConnectionLostError):
        async with engine.connect():
            pass
    await engine.dispose()
    silent.close()
    for writer in callers:
        writer.close()


def test_settings_for_migrations_use_a_connection_and_one_more_to_see_who_is_in_its_way() -> None:
    settings = EngineSettings(pool_size=7, application_name="billing").for_migrations()

    assert (settings.pool_size, settings.max_overflow, settings.application_name) == (2, 0, "billing")
