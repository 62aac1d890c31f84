"""Database: transactions that end as promised, logins that cannot see past the policies, work that is retried."""

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import URL, select, text
from toys import Bot, BotRepository, Org, OrgRepository
from wire import Wire

from ibex_db_core import (
    AccessDeniedError,
    CommitUnknownError,
    ConfigurationError,
    ConflictError,
    ConnectionLostError,
    Database,
    DatabaseError,
    EngineSettings,
    InvalidInputError,
    MigrationError,
    ScopedSession,
    SerializationError,
    UnsafeRoleError,
)
from ibex_db_core.policies import OWNER_ROLE, PLATFORM_ROLE, SEARCH_ROLE
from ibex_db_core.provisioning import SERVICE_LOGIN, Cluster, replace_login
from ibex_db_core.testing import TestDatabase


async def slugs(admin: asyncpg.Connection, org_id: UUID) -> list[str]:
    """What is really in the table, policies or not."""
    rows = await admin.fetch("SELECT slug FROM ibex_core.bots WHERE org_id = $1 ORDER BY slug", org_id)
    return [row["slug"] for row in rows]


# -- how a transaction ends


async def test_leaving_the_block_commits(db: Database, acme: UUID, admin: asyncpg.Connection) -> None:
    async with db.tenant(acme) as session:
        session.add(Bot(slug="robin"))

    assert await slugs(admin, acme) == ["robin"]


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError, KeyboardInterrupt])
async def test_an_exception_rolls_back_and_passes_as_it_is(
    db: Database, acme: UUID, admin: asyncpg.Connection, error: type[BaseException]
) -> None:
    raised = error("mine")

    with pytest.raises(error) as caught:
        async with db.tenant(acme) as session:
            await BotRepository(session).add(Bot(slug="robin"))
            raise raised

    assert caught.value is raised
    assert await slugs(admin, acme) == []


@pytest.mark.parametrize("error", [FileNotFoundError("a file"), TimeoutError("an upstream"), ConnectionResetError()])
async def test_an_error_of_the_callers_own_work_is_not_taken_for_the_databases(
    db: Database, acme: UUID, error: OSError
) -> None:
    with pytest.raises(type(error)) as caught:
        async with db.tenant(acme):
            raise error

    assert caught.value is error


@pytest.mark.parametrize("error", [FileNotFoundError("a file"), TimeoutError("an upstream"), ConnectionResetError()])
async def test_an_error_of_the_callers_own_beside_migrations_is_not_taken_for_the_databases(
    db: Database, error: OSError
) -> None:
    with pytest.raises(type(error)) as caught:
        async with db.migrator():
            raise error

    assert caught.value is error


async def test_the_callers_own_time_limit_beside_migrations_is_not_taken_for_the_databases(db: Database) -> None:
    with pytest.raises(TimeoutError):
        async with db.migrator() as migrator, asyncio.timeout(0.01):
            await migrator.current()
            await asyncio.Event().wait()


async def test_a_connection_of_migrations_that_breaks_anywhere_is_told_as_ours(
    wire: Wire, toy_database: TestDatabase
) -> None:
    """At the door, in what each new connection asks, and in the work itself."""
    address = wire.address(toy_database.cluster.url(toy_database.name))
    async with Database(address, owner_url=address, step_down=True) as db:
        for messages in range(50):
            wire.break_after = messages
            with pytest.raises(ConnectionLostError):
                async with db.migrator() as migrator:
                    while True:
                        await migrator.current()


async def test_a_server_for_dry_runs_that_is_not_there_is_told_as_ours(db: Database) -> None:
    with pytest.raises(ConnectionLostError, match="check host and port"):
        async with db.migrator() as migrator:
            await migrator.plan("base", down=True, scratch="postgresql://nobody@127.0.0.1:1/postgres")


async def test_a_session_may_commit_and_roll_back_in_between(
    db: Database, acme: UUID, admin: asyncpg.Connection
) -> None:
    async with db.tenant(acme) as session:
        bots = BotRepository(session)
        await bots.add(Bot(slug="kept"))
        await session.commit()
        await bots.add(Bot(slug="undone"))
        await session.rollback()
        await bots.add(Bot(slug="last"))

    assert await slugs(admin, acme) == ["kept", "last"]


async def test_what_was_read_is_still_there_after_the_commit(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot = await BotRepository(session).add(Bot(slug="robin"))

    assert (bot.slug, bot.org_id) == ("robin", acme)
    assert bot.created_at is not None


async def test_a_conflict_at_the_end_of_the_block_is_ours(db: Database, acme: UUID, admin: asyncpg.Connection) -> None:
    with pytest.raises(ConflictError, match="bots_slug_live"):
        async with db.tenant(acme) as session:
            session.add_all([Bot(slug="robin"), Bot(slug="robin")])

    assert await slugs(admin, acme) == []


async def test_a_failure_that_was_swallowed_is_not_a_success(
    db: Database, acme: UUID, admin: asyncpg.Connection
) -> None:
    with pytest.raises(DatabaseError, match="nothing was committed"):
        async with db.tenant(acme) as session:
            await BotRepository(session).add(Bot(slug="robin"))
            with pytest.raises(DatabaseError, match="division by zero"):
                await session.execute(text("SELECT 1/0"))

    assert await slugs(admin, acme) == []


async def test_a_failure_in_a_savepoint_may_be_swallowed(db: Database, acme: UUID, admin: asyncpg.Connection) -> None:
    async with db.tenant(acme) as session:
        await BotRepository(session).add(Bot(slug="robin"))
        with pytest.raises(ConflictError):
            async with session.begin_nested():
                await BotRepository(session).add(Bot(slug="robin"))

    assert await slugs(admin, acme) == ["robin"]


async def test_a_read_only_transaction_reads_and_refuses_to_write(db: Database, acme: UUID, globex: UUID) -> None:
    async with db.tenant(acme) as session:
        await BotRepository(session).add(Bot(slug="robin"))

    async with db.tenant(acme, read_only=True) as session:
        assert await BotRepository(session).count() == 1
    async with db.tenant(globex, read_only=True) as session:
        assert await BotRepository(session).count() == 0
    with pytest.raises(AccessDeniedError, match="read_only=True") as caught:
        async with db.tenant(acme, read_only=True) as session:
            await BotRepository(session).add(Bot(slug="wren"))
    assert caught.value.sqlstate == "25006"


async def test_a_read_only_transaction_costs_three_round_trips_as_well(wired: Database, wire: Wire, acme: UUID) -> None:
    for _ in range(2):  # the second time with the statement prepared
        wire.clear()
        async with wired.tenant(acme, read_only=True) as session:
            await BotRepository(session).count()

    assert wire.round_trips == 3


async def test_an_empty_block_sends_nothing(wired: Database, wire: Wire, acme: UUID) -> None:
    async with wired.tenant(acme):
        pass

    assert wire.messages == []


async def test_a_connection_that_breaks_during_commit_leaves_the_outcome_unknown(
    wired: Database, wire: Wire, acme: UUID
) -> None:
    with pytest.raises(CommitUnknownError, match="may or may not"):
        async with wired.tenant(acme) as session:
            await BotRepository(session).add(Bot(slug="robin"))
            wire.break_on = "COMMIT"

    wire.break_on = None
    async with wired.tenant(acme) as session:
        assert await BotRepository(session).count() == 0


async def test_a_connection_that_breaks_before_commit_has_surely_committed_nothing(
    wired: Database, wire: Wire, acme: UUID
) -> None:
    with pytest.raises(ConnectionLostError):
        async with wired.tenant(acme) as session:
            await BotRepository(session).count()
            wire.cut()
            session.add(Bot(slug="robin"))  # flushed at the end of the block


async def test_a_session_of_ones_own_commits_when_told(db: Database, acme: UUID, admin: asyncpg.Connection) -> None:
    async with db.session_factory(acme) as session:
        await BotRepository(session).add(Bot(slug="robin"))
        assert await slugs(admin, acme) == []
        await session.commit()
        await BotRepository(session).add(Bot(slug="undone"))

    assert await slugs(admin, acme) == ["robin"]


# -- the platform


async def test_the_platform_sees_every_organization_and_a_tenant_its_own(
    db: Database, acme: UUID, globex: UUID
) -> None:
    for org_id in (acme, globex):
        async with db.tenant(org_id) as session:
            await BotRepository(session).add(Bot(slug="robin"))

    async with db.platform(reason="test") as session:
        seen = set(await session.scalars(select(Bot.org_id)))
        assert {acme, globex} <= seen
        assert session.org_id is None
        assert await BotRepository(session, acme).count() == 1
    async with db.tenant(acme) as session:
        assert set(await session.scalars(select(Bot.org_id))) == {acme}


async def test_the_platform_logs_its_reason_at_warning(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ibex_db.platform"):
        async with db.platform(reason="sign-up of Acme"):
            pass

    (record,) = [record for record in caplog.records if record.name == "ibex_db.platform"]
    assert record.levelno == logging.WARNING
    assert "sign-up of Acme" in record.getMessage()
    assert record.__dict__["reason"] == "sign-up of Acme"


@pytest.mark.parametrize("reason", ["", "   ", None, 7])
async def test_the_platform_wants_a_reason(db: Database, reason: object) -> None:
    with pytest.raises(InvalidInputError, match="reason"):
        async with db.platform(reason=reason):  # type: ignore[arg-type]
            pass


async def test_the_platform_makes_organizations_and_a_tenant_cannot(db: Database, acme: UUID) -> None:
    async with db.platform(reason="sign-up") as session:
        org = await OrgRepository(session).add(Org(name="Initech"))
    with pytest.raises(AccessDeniedError):
        async with db.tenant(acme) as session:
            await session.execute(text("INSERT INTO ibex_core.organizations (name) VALUES ('Forged')"))

    async with db.tenant(org.id) as session:
        assert (await OrgRepository(session).get(org.id)).name == "Initech"


# -- which logins are refused


@pytest.fixture
async def login(toy_database: TestDatabase, admin: asyncpg.Connection) -> AsyncIterator[URL]:
    """The address of a login of this test's own, a member of ibex_app."""
    name = f"ibex_login_{uuid4().hex[:8]}"
    password = toy_database.cluster.password or "unused"
    await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE ibex_app")
    yield replace_login(toy_database.cluster.url(toy_database.name), name, toy_database.cluster.password)
    await admin.execute(f"DROP OWNED BY {name}")
    await admin.execute(f"DROP ROLE {name}")


async def test_a_login_that_is_a_member_of_the_app_role_alone_is_accepted(login: URL, acme: UUID) -> None:
    async with Database(login) as db, db.tenant(acme) as session:
        assert await BotRepository(session).count() == 0


@pytest.mark.parametrize(
    ("grant", "why"),
    [
        ("ALTER ROLE {login} SUPERUSER", "is a superuser"),
        ("ALTER ROLE {login} BYPASSRLS", "has BYPASSRLS"),
        (f"GRANT {OWNER_ROLE} TO {{login}}", "owns the tables"),
        (f"GRANT {PLATFORM_ROLE} TO {{login}}", "inherits ibex_platform"),
        (f"GRANT {SEARCH_ROLE} TO {{login}}", "is a member of ibex_search"),
        ("ALTER ROLE {login} CREATEROLE", "CREATEROLE"),
        (f"GRANT {PLATFORM_ROLE} TO {{login}} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE", "ADMIN OPTION"),
    ],
)
async def test_a_login_that_could_see_past_the_policies_is_refused(
    login: URL, acme: UUID, admin: asyncpg.Connection, grant: str, why: str
) -> None:
    if "INHERIT" in grant and int(await admin.fetchval("SHOW server_version_num")) < 160000:
        pytest.skip("GRANT ... WITH INHERIT FALSE is of Postgres 16")
    await admin.execute(grant.format(login=login.username))

    async with Database(login) as db:
        with pytest.raises(UnsafeRoleError, match=why) as caught:
            async with db.tenant(acme):
                pass
        with pytest.raises(UnsafeRoleError):
            async with db.platform(reason="test"):
                pass

    assert caught.value.role == login.username
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own bytes


async def test_a_membership_without_inheritance_serves_both_tenants_and_platform(
    login: URL, acme: UUID, globex: UUID, admin: asyncpg.Connection
) -> None:
    if int(await admin.fetchval("SHOW server_version_num")) < 160000:
        pytest.skip("GRANT ... WITH INHERIT FALSE is of Postgres 16")
    await admin.execute(f"GRANT {PLATFORM_ROLE} TO {login.username} WITH INHERIT FALSE")

    async with Database(login) as db:
        for org_id in (acme, globex):
            async with db.tenant(org_id) as session:
                await BotRepository(session).add(Bot(slug="robin"))
                assert set(await session.scalars(text("SELECT org_id FROM ibex_core.bots"))) == {org_id}
        async with db.platform(reason="test") as session:
            assert {acme, globex} <= set(await session.scalars(select(Bot.org_id)))


async def test_a_superuser_sees_everything_unless_it_steps_down(
    toy_database: TestDatabase, acme: UUID, globex: UUID
) -> None:
    superuser = toy_database.cluster.url(toy_database.name)
    async with Database(superuser, step_down=True) as db:
        async with db.tenant(globex) as session:
            await BotRepository(session).add(Bot(slug="robin"))
        async with db.engine.connect() as connection:
            leaked = await connection.scalars(text("SELECT org_id FROM ibex_core.bots"))
            assert globex in set(leaked)  # what stepping down protects from

        async with db.tenant(acme) as session:
            assert set(await session.scalars(text("SELECT org_id FROM ibex_core.bots"))) == set()
            assert await session.scalar(text("SELECT current_user")) == "ibex_app"
        async with db.platform(reason="test") as session:
            assert await session.scalar(text("SELECT current_user")) == "ibex_platform"


# -- before the first migration, and after the last use


async def test_tenant_work_before_the_first_migration_says_what_to_do(empty_database: TestDatabase) -> None:
    async with empty_database.connect() as db:
        with pytest.raises(MigrationError, match="ibex-db upgrade"):
            async with db.tenant(uuid4()):
                pass


async def test_work_begins_as_soon_as_the_database_is_migrated(empty_database: TestDatabase) -> None:
    async with empty_database.connect() as db:
        with pytest.raises(MigrationError):
            async with db.tenant(uuid4()):
                pass
        await db.upgrade("core@head")

        async with db.tenant(uuid4()) as session:
            assert await session.scalar(text("SELECT current_user")) == SERVICE_LOGIN
            found = await session.scalar(text("SELECT '[1,2]'::vector"))
    assert type(found).__name__ == "Vector"  # the connections of before lacked the codec


async def test_a_closed_database_stays_closed(toy_database: TestDatabase, acme: UUID) -> None:
    db = toy_database.connect()
    async with db.tenant(acme) as session:  # opens on first use
        await BotRepository(session).count()
    await db.close()
    await db.close()

    with pytest.raises(ConfigurationError, match="closed"):
        async with db.tenant(acme):
            pass
    with pytest.raises(ConfigurationError, match="closed"):
        async with db.platform(reason="test"):
            pass
    with pytest.raises(ConfigurationError, match="closed"):
        await db.open()
    with pytest.raises(ConfigurationError, match="closed"):
        _ = db.engine


async def test_closing_gives_every_connection_back(
    toy_database: TestDatabase, acme: UUID, admin: asyncpg.Connection
) -> None:
    name = f"closing-{uuid4().hex[:8]}"
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
    async with toy_database.connect(EngineSettings(application_name=name)) as db:
        async with db.tenant(acme) as session:
            await BotRepository(session).count()
        async with db.platform(reason="test") as session:
            await OrgRepository(session).count()
        assert await admin.fetchval(count, name) == 2

    for _ in range(500):
        if not await admin.fetchval(count, name):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("connections are left")


def test_making_a_database_opens_nothing_and_shows_no_password() -> None:
    db = Database("postgresql://ann:geheim@127.0.0.1:1/ibex", platform_url="postgresql://bob:geheim@127.0.0.1:1/ibex")

    assert "127.0.0.1" in repr(db)
    assert "geheim" not in repr(db)
    assert "geheim" not in repr(db.engine)


def test_the_environment_names_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBEX_DATABASE_URL", " postgresql://ann@db.example/ibex ")
    monkeypatch.setenv("IBEX_PLATFORM_URL", "postgresql://platform@db.example/ibex")
    monkeypatch.setenv("IBEX_OWNER_URL", "")
    monkeypatch.setenv("IBEX_STEP_DOWN", "True")

    db = Database.from_env()

    assert "ann@db.example" in repr(db)
    assert db.engine.url.username == "ann"


async def test_without_a_url_the_environment_means_the_embedded_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IBEX_HOME", str(tmp_path))
    for name in ("IBEX_DATABASE_URL", "IBEX_PLATFORM_URL", "IBEX_OWNER_URL", "IBEX_REPLICA_URLS"):
        monkeypatch.delenv(name, raising=False)
    db = Database.from_env()

    with pytest.raises(ConfigurationError, match="async with"):
        _ = db.engine
    await db.close()


@pytest.mark.parametrize("lonely", ["IBEX_OWNER_URL", "IBEX_PLATFORM_URL", "IBEX_REPLICA_URLS"])
def test_an_address_of_another_login_alone_never_means_the_embedded_server(
    monkeypatch: pytest.MonkeyPatch, lonely: str
) -> None:
    for name in ("IBEX_DATABASE_URL", "IBEX_PLATFORM_URL", "IBEX_OWNER_URL", "IBEX_REPLICA_URLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(lonely, "postgresql://ann@db.example/ibex")

    with pytest.raises(ConfigurationError, match=f"{lonely} is set and IBEX_DATABASE_URL is not"):
        Database.from_env()


async def test_an_embedded_database_needs_no_setting_up(tmp_path: Path, acme: UUID) -> None:
    async with Database.embedded(tmp_path / "data") as db:
        await db.upgrade("core@head")

        async with db.tenant(acme) as session:
            assert await session.scalar(text("SELECT current_user")) == SERVICE_LOGIN
        async with db.platform(reason="test") as session:
            assert await session.scalar(text("SELECT current_user")) == "ibex_platform_service"


# -- what run() tries again


async def test_run_tries_a_serialization_failure_again(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot_id = (await BotRepository(session).add(Bot(slug="robin"))).id
    met = asyncio.Barrier(2)
    tries: list[str] = []

    async def visit(session: ScopedSession, who: str) -> int:
        await session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        bots = BotRepository(session)
        visits = (await bots.get(bot_id)).visits
        if who not in tries:
            tries.append(who)
            await met.wait()  # both have read before either writes
        else:
            tries.append(who)
        return (await bots.update(bot_id, visits=visits + 1)).visits

    results = await asyncio.gather(db.run(acme, visit, "a"), db.run(acme, visit, who="b"))

    assert sorted(results) == [1, 2]
    assert len(tries) == 3
    async with db.tenant(acme) as session:
        assert (await BotRepository(session).get(bot_id)).visits == 2


async def test_run_tries_a_lost_connection_again(wired: Database, wire: Wire, acme: UUID) -> None:
    tries = 0

    async def work(session: ScopedSession) -> int:
        nonlocal tries
        tries += 1
        await BotRepository(session).add(Bot(slug="robin"))
        if tries == 1:
            wire.cut()
        return await BotRepository(session).count()

    assert await wired.run(acme, work) == 1
    assert tries == 2


async def test_run_never_tries_an_unknown_commit_again(wired: Database, wire: Wire, acme: UUID) -> None:
    tries = 0

    async def work(session: ScopedSession) -> None:
        nonlocal tries
        tries += 1
        await BotRepository(session).add(Bot(slug="robin"))
        wire.break_on = "COMMIT"

    with pytest.raises(CommitUnknownError):
        await wired.run(acme, work)
    assert tries == 1


async def test_run_never_tries_bad_work_again(db: Database, acme: UUID) -> None:
    tries = 0

    async def work(session: ScopedSession) -> None:
        nonlocal tries
        tries += 1
        await BotRepository(session).get(uuid4())

    with pytest.raises(LookupError):
        await db.run(acme, work)
    assert tries == 1


async def test_run_gives_up_with_the_last_failure(db: Database, acme: UUID) -> None:
    tries = 0

    async def work(_session: ScopedSession) -> None:
        nonlocal tries
        tries += 1
        raise SerializationError("again")

    with pytest.raises(SerializationError, match="again"):
        await db.run(acme, work)
    assert tries == 5


def test_a_cluster_shows_no_password() -> None:
    cluster = Cluster.at("postgresql://postgres:geheim@db.example/postgres")

    assert "geheim" not in repr(cluster)
    assert str(cluster.password) not in repr(cluster)
