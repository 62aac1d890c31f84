"""The pytest plugin, as a service's own tests use it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import asyncpg
from sqlalchemy import text

from ibex_db_core import Database
from ibex_db_core.provisioning import SERVICE_LOGIN, Cluster
from ibex_db_core.testing import URL_VARIABLE, TestDatabase


async def test_a_test_is_given_a_migrated_database_and_a_services_login(ibex_db: Database) -> None:
    async with ibex_db.migrator() as migrator:
        assert all(revision.applied for revision in await migrator.current())
    async with ibex_db.engine.connect() as connection:
        assert await connection.scalar(text("SELECT current_user")) == SERVICE_LOGIN


async def test_the_database_is_this_tests_own(
    ibex_db: Database, ibex_test_database: TestDatabase, ibex_template: str
) -> None:
    async with ibex_db.engine.connect() as connection:
        assert await connection.scalar(text("SELECT current_database()")) == ibex_test_database.name
    assert ibex_test_database.name != ibex_template


def test_a_services_own_run_finds_the_fixtures_and_drops_what_it_made(ibex_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    (tmp_path / "test_service.py").write_text(
        dedent("""
            import uuid
            from sqlalchemy import text

            NAMES = set()

            async def test_one(ibex_db) -> None:
                async with ibex_db.tenant(uuid.uuid4()) as session:
                    NAMES.add(await session.scalar(text("SELECT current_database()")))

            async def test_two(ibex_test_database, ibex_template) -> None:
                async with ibex_test_database.connect() as db, db.tenant(uuid.uuid4()) as session:
                    NAMES.add(await session.scalar(text("SELECT current_database()")))
                assert len(NAMES) == 2
                print("made", ibex_template, *NAMES)
        """)
    )
    environment = {**os.environ, URL_VARIABLE: ibex_cluster.admin.render_as_string(hide_password=False)}

    end = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert end.returncode == 0, end.stdout + end.stderr
    made = next(line for line in end.stdout.splitlines() if "made" in line).split("made ")[1].split()
    assert len(made) == 3
    assert not set(made) & set(_databases(ibex_cluster))


def _databases(cluster: Cluster) -> list[str]:
    async def ask() -> list[str]:
        connection = await asyncpg.connect(cluster.admin.render_as_string(hide_password=False))
        found = await connection.fetch("SELECT datname FROM pg_database")
        await connection.close()
        return [row["datname"] for row in found]

    return asyncio.run(ask())
