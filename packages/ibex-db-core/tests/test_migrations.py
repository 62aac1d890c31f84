"""Migrations: every installed wheel's, idempotent, one at a time, wholly or not at all."""

import asyncio
import importlib
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core import EngineSettings, MigrationError, Migrator
from ibex_db_core.engine import create_engine
from ibex_db_core.migrations.migrator import alembic_to_itself
from ibex_db_core.policies import OWNER_ROLE
from ibex_db_core.provisioning import Cluster
from ibex_db_core.testing import TestDatabase
from ibex_db_core.url import parse

MakeEngine = Callable[[TestDatabase], AsyncEngine]


@pytest.fixture
async def make_engine() -> AsyncIterator[MakeEngine]:
    """``make_engine(database)``: an engine of the owner's login, closed after the test."""
    made: list[AsyncEngine] = []

    def make(database: TestDatabase) -> AsyncEngine:
        address = parse(database.cluster.url(database.name))
        made.append(create_engine(address, EngineSettings().for_migrations()))
        return made[-1]

    yield make
    for engine in made:
        await engine.dispose()


@pytest.fixture
def migrator(empty_database: TestDatabase, make_engine: MakeEngine) -> Migrator:
    """Migrations of a database that nobody has migrated."""
    return Migrator(make_engine(empty_database))


@asynccontextmanager
async def databases(cluster: Cluster, count: int) -> AsyncGenerator[list[TestDatabase]]:
    made = [TestDatabase(f"ibex_test_{uuid4().hex[:12]}", cluster) for _ in range(count)]
    for database in made:
        await cluster.create_database(database.name)
    yield made
    for database in made:
        await cluster.drop_database(database.name)


async def rows(database: TestDatabase, sql: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(database.cluster.url(database.name).render_as_string(hide_password=False))
    found = await connection.fetch(sql)
    await connection.close()
    return found


CATALOG = """
    SELECT 'relation' AS kind, c.relname::text AS name, pg_get_userbyid(c.relowner)::text AS owner,
           c.relrowsecurity::text || c.relforcerowsecurity || coalesce(c.relacl::text, '') AS facts
    FROM pg_class c WHERE c.relnamespace = 'ibex_core'::regnamespace
    UNION ALL
    SELECT 'column', a.attrelid::regclass || '.' || a.attname, '', format_type(a.atttypid, a.atttypmod) || a.attnotnull
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'ibex_core'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'constraint', conname, '', pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'ibex_core'::regnamespace
    UNION ALL
    SELECT 'function', proname, pg_get_userbyid(proowner)::text, prosrc || coalesce(proacl::text, '')
    FROM pg_proc WHERE pronamespace = 'ibex_core'::regnamespace
    UNION ALL
    SELECT 'policy', polname, '', polrelid::regclass || polcmd::text || pg_get_expr(polqual, polrelid)
    FROM pg_policy
    UNION ALL
    SELECT 'trigger', tgname, '', pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    ORDER BY 1, 2, 3, 4
"""


# -- upgrade


async def test_an_upgrade_applies_what_is_missing_and_the_next_one_nothing(migrator: Migrator) -> None:
    applied = await migrator.upgrade("core@head")

    assert [revision.id for revision in applied][:1] == ["core_0001"]
    assert all(revision.wheel == "core" and revision.applied for revision in applied)
    assert await migrator.upgrade("core@head") == []


async def test_an_upgrade_to_the_heads_applies_every_installed_wheel(migrator: Migrator) -> None:
    applied = await migrator.upgrade()

    assert [revision.id for revision in applied] == [revision.id for revision in await migrator.current()]
    assert await migrator.upgrade() == []


async def test_current_tells_what_is_applied_before_and_after(migrator: Migrator) -> None:
    before = await migrator.current()
    await migrator.upgrade("core@head")
    after = await migrator.current()

    assert [revision.id for revision in before] == [revision.id for revision in after]
    assert not any(revision.applied for revision in before)
    assert {revision.wheel for revision in after if revision.applied} == {"core"}
    assert before[0].wheel == "core"
    assert before[0].message.startswith("Roles, the vector extension")


async def test_the_live_schema_is_what_the_models_say(
    ibex_test_database: TestDatabase, make_engine: MakeEngine
) -> None:
    assert await Migrator(make_engine(ibex_test_database)).check() == []


async def test_a_schema_that_drifted_is_told_in_words(
    ibex_test_database: TestDatabase, make_engine: MakeEngine
) -> None:
    await rows(ibex_test_database, "CREATE TABLE ibex_core.stray (id int)")

    (told,) = await Migrator(make_engine(ibex_test_database)).check()

    assert told == "table stray is in the database and in no model"


async def test_two_upgrades_at_once_on_one_database_both_succeed(
    empty_database: TestDatabase, make_engine: MakeEngine
) -> None:
    applied = await asyncio.gather(*(Migrator(make_engine(empty_database)).upgrade("core@head") for _ in range(3)))

    assert sum(bool(found) for found in applied) == 1


async def test_two_processes_that_upgrade_at_once_both_succeed(empty_database: TestDatabase) -> None:
    program = dedent("""
        import asyncio, sys
        from ibex_db_core import Database

        async def main():
            async with Database(sys.argv[1]) as db:
                print(len(await db.upgrade("core@head")))

        asyncio.run(main())
    """)
    url = empty_database.cluster.url(empty_database.name).render_as_string(hide_password=False)
    command = [sys.executable, "-W", "error", "-c", program, url]

    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: ASYNC220, S603
        for _ in range(2)
    ]
    ends = [await asyncio.to_thread(process.communicate) for process in started]

    assert [errors for _, errors in ends] == ["", ""]
    assert sorted(int(printed) > 0 for printed, _ in ends) == [False, True]


async def test_several_databases_migrate_at_once_in_one_process(ibex_cluster: Cluster, make_engine: MakeEngine) -> None:
    async with databases(ibex_cluster, 3) as several:
        applied = await asyncio.gather(*(Migrator(make_engine(one)).upgrade("core@head") for one in several))

        schemas = [await rows(one, CATALOG) for one in several]
    assert all(len(found) == len(applied[0]) > 0 for found in applied)
    assert all(found == schemas[0] for found in schemas)


async def test_printing_the_sql_does_not_break_a_migration_that_is_running(
    empty_database: TestDatabase, make_engine: MakeEngine
) -> None:
    running = asyncio.create_task(Migrator(make_engine(empty_database)).upgrade("core@head"))
    answers: set[str] = set()

    while not running.done():
        await asyncio.sleep(0.002)
        try:
            answers.add(Migrator.sql("core@head")[:5])
        except MigrationError as exc:
            answers.add(str(exc))

    assert await running
    assert any("a migration is running in this process" in answer for answer in answers)


async def test_losses_are_told_once_a_migration_that_is_running_is_done(migrator: Migrator) -> None:
    async with alembic_to_itself():  # as a migration has it, of whichever database
        asking = asyncio.create_task(migrator.losses())
        await asyncio.wait([asking], timeout=0.5)
        waited = not asking.done()

    assert waited
    assert await asking == []


async def test_all_that_core_makes_belongs_to_the_owner_role(empty_database: TestDatabase, migrator: Migrator) -> None:
    await migrator.upgrade("core@head")

    owners = await rows(
        empty_database,
        """
        SELECT nspname AS name, pg_get_userbyid(nspowner) AS owner FROM pg_namespace WHERE nspname = 'ibex_core'
        UNION ALL SELECT relname, pg_get_userbyid(relowner) FROM pg_class
        WHERE relnamespace = 'ibex_core'::regnamespace
        UNION ALL SELECT proname, pg_get_userbyid(proowner) FROM pg_proc
        WHERE pronamespace = 'ibex_core'::regnamespace
        """,
    )
    assert len(owners) > 5
    assert {row["owner"] for row in owners} == {OWNER_ROLE}


async def test_a_member_of_the_owner_role_and_no_more_migrates_later(
    empty_database: TestDatabase, migrator: Migrator
) -> None:
    await migrator.upgrade("core@head")
    login = f"ibex_login_{uuid4().hex[:8]}"
    password = empty_database.cluster.password or "unused"
    await rows(empty_database, f"CREATE ROLE {login} LOGIN PASSWORD '{password}' IN ROLE {OWNER_ROLE}")
    address = parse(empty_database.cluster.url(empty_database.name, user=login))
    engine = create_engine(address, EngineSettings().for_migrations())

    applied = await Migrator(engine).upgrade()

    assert not any(revision.wheel == "core" for revision in applied)
    await engine.dispose()
    await rows(empty_database, f"DROP OWNED BY {login}")
    await rows(empty_database, f"DROP ROLE {login}")


# -- downgrade


async def test_down_and_up_again_leaves_no_difference(empty_database: TestDatabase, migrator: Migrator) -> None:
    await migrator.upgrade("core@head")
    before = await rows(empty_database, CATALOG)
    assert len(before) > 5

    await migrator.downgrade("base", allow_destructive=True)
    assert [revision for revision in await migrator.current() if revision.applied] == []
    left = {(row["kind"], row["name"]) for row in await rows(empty_database, CATALOG)}
    assert {name for kind, name in left if kind == "relation"} <= {"alembic_version", "alembic_version_pkc"}
    assert not any(kind == "function" for kind, _ in left)
    await migrator.upgrade("core@head")

    assert await rows(empty_database, CATALOG) == before


# -- offline


def test_the_sql_of_an_upgrade_needs_no_database() -> None:
    sql = Migrator.sql("core@head")

    assert "CREATE SCHEMA IF NOT EXISTS ibex_core" in sql
    assert "CREATE ROLE ibex_app NOLOGIN" in sql
    assert "'core_0001'" in sql
    assert "%%" not in sql


async def test_the_sql_of_an_upgrade_makes_what_an_upgrade_makes(
    ibex_cluster: Cluster, make_engine: MakeEngine
) -> None:
    async with databases(ibex_cluster, 2) as (online, offline):
        await Migrator(make_engine(online)).upgrade("core@head")
        connection = await asyncpg.connect(ibex_cluster.url(offline.name).render_as_string(hide_password=False))
        await connection.execute(Migrator.sql("core@head"))
        await connection.close()

        assert await rows(offline, CATALOG) == await rows(online, CATALOG)
        assert await Migrator(make_engine(offline)).upgrade("core@head") == []


# -- failures


@pytest.mark.parametrize("revision", ["no_such_revision", "core@no_such_step", "nobody@head"])
async def test_an_unknown_revision_is_told_and_changes_nothing(migrator: Migrator, revision: str) -> None:
    with pytest.raises(MigrationError, match="ibex-db current"):
        await migrator.upgrade(revision)
    with pytest.raises(MigrationError, match="ibex-db current"):
        Migrator.sql(revision)

    assert not any(step.applied for step in await migrator.current())


@pytest.fixture
def broken_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another wheel, installed for this test: its first revision is sound, its second fails half way."""
    versions = tmp_path / "toy_wheel" / "migrations" / "versions"
    versions.mkdir(parents=True)
    (tmp_path / "toy_wheel" / "__init__.py").touch()
    facts = tmp_path / "toy_wheel-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-wheel\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[ibex_db.wheels]\ntoy = toy_wheel\n")
    for number, down, labels, body in (
        (1, None, ("toy",), ["CREATE TABLE ibex_core.sound (id int)"]),
        (2, "toy_0001", None, ["CREATE TABLE ibex_core.half (id int)", "SELECT 1/0"]),
    ):
        (versions / f"toy_000{number}.py").write_text(
            f'"""Step {number}."""\n'
            "from alembic import op\n"
            f"revision, down_revision, branch_labels = 'toy_000{number}', {down!r}, {labels!r}\n"
            f"depends_on = {'core_0001' if number == 1 else None!r}\n"
            f"def upgrade():\n" + "".join(f"    op.execute({sql!r})\n" for sql in body)
        )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()


@pytest.mark.usefixtures("broken_wheel")
async def test_a_revision_that_fails_is_rolled_back_and_those_before_it_stay(
    empty_database: TestDatabase, migrator: Migrator
) -> None:
    with pytest.raises(MigrationError, match="division by zero"):
        await migrator.upgrade("toy@head")

    applied = [revision.id for revision in await migrator.current() if revision.applied]
    assert applied == ["core_0001", "toy_0001"]
    tables = await rows(empty_database, "SELECT relname FROM pg_class WHERE relname IN ('sound', 'half')")
    assert [row["relname"] for row in tables] == ["sound"]
    with pytest.raises(MigrationError):  # and the lock was given back
        await migrator.upgrade("toy@head")


async def test_a_migration_leaves_the_connection_as_it_was(
    empty_database: TestDatabase, make_engine: MakeEngine
) -> None:
    engine = make_engine(empty_database)
    await Migrator(engine).upgrade("core@head")

    async with engine.connect() as connection:
        assert await connection.scalar(text("SHOW row_security")) == "on"
        own = "(SELECT oid FROM pg_database WHERE datname = current_database())"  # others may migrate theirs meanwhile
        held = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = {own}"
        locks = await connection.scalar(text(held))
        assert locks == 0
