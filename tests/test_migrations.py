"""The schema across the wheels: up, down and up again, and what the models say."""

from collections.abc import AsyncIterator

import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import ibex_db
from ibex_db import Database, Migrator
from ibex_db_core.testing import TestDatabase

TABLES = sorted(table.name for table in ibex_db.Base.metadata.tables.values())

# In the order in which their revisions run.
WHEELS = ["core", "tenancy", "memory"]

# What pg_dump --schema-only would say, from the catalog: one line for each thing
# of the schema, by name.  Owners and grants included, for they isolate.
_SNAPSHOT = """
    WITH rel AS (
        SELECT c.* FROM pg_class c WHERE c.relnamespace = 'ibex_core'::regnamespace
    )
    SELECT 'schema', nspname::text, pg_get_userbyid(nspowner)::text, nspacl::text FROM pg_namespace
     WHERE nspname = 'ibex_core'
    UNION ALL
    SELECT 'extension', extname::text, extversion, NULL FROM pg_extension
    UNION ALL
    SELECT 'relation', relname, concat_ws(' ', relkind, pg_get_userbyid(relowner), relrowsecurity, relforcerowsecurity,
           relispartition, pg_get_expr(relpartbound, oid), reloptions), relacl::text FROM rel
    UNION ALL
    SELECT 'column', rel.relname || '.' || a.attname, concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnum,
           a.attnotnull, a.attstorage, a.attgenerated, a.attidentity, pg_get_expr(d.adbin, d.adrelid)), a.attacl::text
      FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid AND a.attnum > 0 AND NOT a.attisdropped
      LEFT JOIN pg_attrdef d ON d.adrelid = rel.oid AND d.adnum = a.attnum
    UNION ALL
    SELECT 'constraint', rel.relname || '.' || k.conname, pg_get_constraintdef(k.oid), k.convalidated::text
      FROM rel JOIN pg_constraint k ON k.conrelid = rel.oid
    UNION ALL
    SELECT 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid), concat_ws(' ', indisvalid, indisready)
      FROM rel JOIN pg_index i ON i.indrelid = rel.oid
    UNION ALL
    SELECT 'trigger', rel.relname || '.' || t.tgname, pg_get_triggerdef(t.oid), t.tgenabled::text
      FROM rel JOIN pg_trigger t ON t.tgrelid = rel.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT 'policy', tablename || '.' || policyname, concat_ws(' ', permissive, roles, cmd),
           concat_ws(' ', qual, with_check)
      FROM pg_policies WHERE schemaname = 'ibex_core'
    UNION ALL
    SELECT 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid),
           concat_ws(' ', pg_get_userbyid(p.proowner), p.proacl)
      FROM pg_proc p WHERE p.pronamespace = 'ibex_core'::regnamespace
    UNION ALL
    SELECT 'default grant', pg_get_userbyid(defaclrole), defaclobjtype::text, defaclacl::text FROM pg_default_acl
    UNION ALL
    SELECT 'type', t.typname::text, t.typtype::text, pg_get_userbyid(t.typowner) FROM pg_type t
     WHERE t.typnamespace = 'ibex_core'::regnamespace AND t.typtype IN ('d', 'e')
"""

Snapshot = set[tuple[str | None, ...]]


@pytest_asyncio.fixture
async def owner(ibex_test_database: TestDatabase) -> AsyncIterator[AsyncEngine]:
    """Connect as the owner of everything, for the catalog hides nothing from it."""
    address = ibex_test_database.cluster.url(ibex_test_database.name).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(address)
    yield engine
    await engine.dispose()


async def _snapshot(engine: AsyncEngine) -> Snapshot:
    async with engine.connect() as connection:
        return {tuple(row) for row in await connection.execute(text(_SNAPSHOT))}


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
    before = await _snapshot(owner)
    assert set(TABLES) <= _tables(before)

    async with ibex_db.migrator() as migrator:
        await migrator.downgrade("base", allow_destructive=True)
        assert not set(TABLES) & _tables(await _snapshot(owner))
        await migrator.upgrade()

    after = await _snapshot(owner)
    assert before - after == set()
    assert after - before == set()


async def test_every_table_of_the_schema_has_a_model(owner: AsyncEngine) -> None:
    partitions = text("SELECT relname FROM pg_class WHERE relispartition AND relnamespace = 'ibex_core'::regnamespace")
    async with owner.connect() as connection:
        skipped = set((await connection.scalars(partitions)).all()) | {
            "alembic_version",
            "signing_keys",
        }  # the owner's books

    assert _tables(await _snapshot(owner)) - skipped == set(TABLES)


def test_the_sql_of_an_offline_upgrade_makes_every_table() -> None:
    sql = Migrator.sql()

    assert [table for table in TABLES if f"CREATE TABLE ibex_core.{table} (" not in sql] == []
    assert "FORCE ROW LEVEL SECURITY" in sql
    assert "%%" not in sql
