"""The schema across the wheels: up, down and up again, and what the models say."""

from collections.abc import AsyncIterator

import pytest_asyncio
from catalog_snapshot import Snapshot, snapshot
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import ibex_db
from ibex_db import Database, Migrator
from ibex_db_core.testing import TestDatabase

TABLES = sorted(table.name for table in ibex_db.Base.metadata.tables.values())

# In the order in which their revisions run.
WHEELS = ["core", "tenancy", "memory"]


@pytest_asyncio.fixture
async def owner(ibex_test_database: TestDatabase) -> AsyncIterator[AsyncEngine]:
    """Connect as the owner of everything, for the catalog hides nothing from it."""
    address = ibex_test_database.cluster.url(ibex_test_database.name).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(address)
    yield engine
    await engine.dispose()


def _tables(snapshot: Snapshot) -> set[str | None]:
    return {name for kind, name, described, _ in snapshot if kind == "relation" and (described or "")[0] in "rp"}


async def test_the_live_schema_is_what_the_models_say(ibex_db: Database) -> None:
    async with ibex_db.migrator() as migrator:
        assert await migrator.check() == []


async def test_every_revision_of_every_wheel_is_applied_once(ibex_db: Database) -> None:
    again = await ibex_db.upgrade()

    async with ibex_db.migrator() as migrator:
        revisions = await migrator.current()
    assert again == []
    assert all(revision.applied for revision in revisions)
    assert list(dict.fromkeys(revision.wheel for revision in revisions)) == WHEELS


async def test_down_to_nothing_and_up_again_is_the_same_schema(ibex_db: Database, owner: AsyncEngine) -> None:
    before = await snapshot(owner)
    assert set(TABLES) <= _tables(before)

    async with ibex_db.migrator() as migrator:
        await migrator.downgrade("base", allow_destructive=True)
        assert not set(TABLES) & _tables(await snapshot(owner))
        await migrator.upgrade()

    after = await snapshot(owner)
    assert before - after == set()
    assert after - before == set()


async def test_every_table_of_the_schema_has_a_model(owner: AsyncEngine) -> None:
    partitions = text("SELECT relname FROM pg_class WHERE relispartition AND relnamespace = 'ibex_core'::regnamespace")
    async with owner.connect() as connection:
        skipped = set((await connection.scalars(partitions)).all()) | {
            "alembic_version",
            "signing_keys",
        }  # the owner's books

    assert _tables(await snapshot(owner)) - skipped == set(TABLES)


def test_the_sql_of_an_offline_upgrade_makes_every_table() -> None:
    sql = Migrator.sql()

    assert [table for table in TABLES if f"CREATE TABLE ibex_core.{table} (" not in sql] == []
    assert "FORCE ROW LEVEL SECURITY" in sql
    assert "%%" not in sql
