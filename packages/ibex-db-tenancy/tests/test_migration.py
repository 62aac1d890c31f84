"""The migration and the models say the same, in both directions."""

from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ibex_db_core.base import Base
from ibex_db_core.database import Database
from ibex_db_core.migrations import Migrator, metadata
from ibex_db_core.provisioning import Cluster
from ibex_db_core.testing import TestDatabase

TABLES = [
    *("organizations", "users", "directives", "directive_versions", "agents", "tokens"),
    *("erasure_receipts", "erasure_tombstones", "erasure_keys", "organization_erasures"),
]

# alembic's comparison knows nothing of CHECK constraints and little of foreign
# keys' actions; the catalog knows all.
_EVERYTHING = text("""
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
     WHERE conrelid = ANY (SELECT ('ibex_core.' || name)::regclass FROM unnest(CAST(:tables AS text[])) name)
    UNION ALL
    SELECT tablename, indexname, indexdef FROM pg_indexes
     WHERE schemaname = 'ibex_core' AND tablename = ANY (:tables)
    UNION ALL
    SELECT table_name, column_name, concat_ws(' ', data_type, character_maximum_length, is_nullable, column_default,
           generation_expression) FROM information_schema.columns
     WHERE table_schema = 'ibex_core' AND table_name = ANY (:tables)
""")

_OWNERS = text("""
    SELECT relname FROM pg_class WHERE relnamespace = 'ibex_core'::regnamespace AND relname = ANY (:tables)
       AND relowner = 'ibex_owner'::regrole AND relrowsecurity AND relforcerowsecurity
""")

_UNSERVED_KEYS = text("""
    SELECT c.conname FROM pg_constraint c
     WHERE c.contype = 'f' AND c.conrelid = ANY (
           SELECT ('ibex_core.' || name)::regclass FROM unnest(CAST(:tables AS text[])) name)
       AND NOT EXISTS (
           SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indpred IS NULL
              AND (i.indkey::int2[])[0:cardinality(c.conkey) - 1] = c.conkey)
""")


async def _catalog(engine: AsyncEngine) -> set[tuple[str, ...]]:
    async with engine.connect() as connection:
        return {tuple(row) for row in await connection.execute(_EVERYTHING, {"tables": TABLES})}


async def test_the_schema_is_what_the_models_say_to_the_last_check(
    ibex_test_database: TestDatabase, ibex_cluster: Cluster
) -> None:
    name = f"ibex_models_{uuid4().hex[:12]}"
    await ibex_cluster.create_database(name)
    migrated, made = _owner(ibex_cluster, ibex_test_database.name), _owner(ibex_cluster, name)
    try:
        async with made.begin() as connection:
            await connection.execute(text("CREATE SCHEMA ibex_core"))
            tables = [Base.metadata.tables[f"ibex_core.{table}"] for table in TABLES]
            await connection.run_sync(lambda sync: metadata().create_all(sync, tables=tables))

        found = await _catalog(migrated)
        assert {row[0].removeprefix("ibex_core.") for row in found} == set(TABLES)
        assert found == await _catalog(made)
    finally:
        await migrated.dispose()
        await made.dispose()
        await ibex_cluster.drop_database(name)


def _owner(cluster: Cluster, name: str) -> AsyncEngine:
    return create_async_engine(cluster.url(name).set(drivername="postgresql+asyncpg"))


async def test_down_and_up_again_leaves_no_drift(ibex_db: Database) -> None:
    async with ibex_db.migrator() as migrator:
        await migrator.downgrade("tenancy@base", allow_destructive=True)
        gone = [step.id for step in await migrator.current() if not step.applied and step.wheel == "tenancy"]
        await migrator.upgrade()

        assert gone == ["tenancy_0001", "tenancy_0002", "tenancy_0003"]
        assert await migrator.check() == []


async def test_every_table_is_the_owner_roles_and_forced(ibex_db: Database) -> None:
    async with ibex_db.engine.connect() as connection:
        found = (await connection.scalars(_OWNERS, {"tables": TABLES})).all()

    assert sorted(found) == sorted(TABLES)


async def test_every_foreign_key_is_walked_by_an_index(ibex_db: Database) -> None:
    async with ibex_db.engine.connect() as connection:
        unserved = (await connection.scalars(_UNSERVED_KEYS, {"tables": TABLES})).all()

    assert unserved == []


def test_the_sql_of_an_offline_upgrade_says_what_the_functions_say() -> None:
    sql = Migrator.sql("tenancy@head")

    assert "'directive version % is immutable" in sql
    assert "%%" not in sql
