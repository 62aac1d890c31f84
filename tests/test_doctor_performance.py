"""`ibex-db doctor --performance`: each thing is brought about on a real server, found, mended by the printed SQL."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ibex_db import Agent, AgentRepository, Database, MemoryRepository, Organization
from ibex_db_core.doctor import Limits, Report, examine, performance_checks
from ibex_db_core.testing import TestDatabase

# A test's rows are few and young; whatever a test is not about is out of reach.
_FEW = Limits(
    rows=50,
    updates=100,
    unused_days=1e6,
    bloat_bytes=2**40,
    skew=1e6,
    transaction_minutes=1e6,
    stale_ratio=1e6,
    dead_ratio=1e6,
    hot_ratio=0.0,
)


@pytest.fixture
async def owner(ibex_test_database: TestDatabase) -> AsyncIterator[AsyncEngine]:
    """Engine of the superuser, who may VACUUM."""
    address = ibex_test_database.cluster.url(ibex_test_database.name).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(address, isolation_level="AUTOCOMMIT")
    yield engine
    await engine.dispose()


@pytest.fixture
async def org_id(ibex_db: Database, owner: AsyncEngine) -> UUID:
    """An organization of a hundred memories, in a database whose autovacuum leaves it alone."""
    async with owner.connect() as connection:
        names = await connection.scalars(
            text(
                "SELECT c.oid::regclass::text FROM pg_class c "
                "WHERE c.relkind = 'r' AND c.relnamespace = 'ibex_core'::regnamespace"
            )
        )
        for name in names.all():
            await connection.execute(text(f"ALTER TABLE {name} SET (autovacuum_enabled = off)"))
    async with ibex_db.platform(reason="test set-up") as session:
        org = Organization(name="Acme", slug="acme")
        session.add(org)
    async with ibex_db.tenant(org.id) as session:
        agent = await AgentRepository(session).add(Agent(name="Robin", slug="robin"))
        await MemoryRepository(session).remember_many(
            {"agent_id": agent.id, "content": f"Number {number}.", "category": "factual", "embedding": [1.0] * 384}
            for number in range(100)
        )
    await flushed(ibex_db, org.id)
    return org.id


async def flushed(db: Database, org_id: UUID) -> None:
    """Have every connection of the pool report its counters, which it otherwise does once a second."""
    async with db.tenant(org_id) as session:
        await session.execute(text("SELECT pg_stat_force_next_flush()"))
    await db.engine.dispose()


async def told(owner: AsyncEngine, limits: Limits) -> Report:
    async with owner.execution_options(isolation_level="READ COMMITTED").connect() as connection:
        return await connection.run_sync(lambda live: examine(live, checks=performance_checks(limits)))


async def remedied(owner: AsyncEngine, report: Report) -> None:
    async with owner.connect() as connection:
        for found in report.findings:
            for statement in found.remedy_sql.split(";\n"):
                await connection.execute(text(statement))


def objects(report: Report, code: str) -> Sequence[str]:
    return [found.object for found in report.findings if found.code == code]


@pytest.mark.usefixtures("org_id")
async def test_a_fresh_database_has_nothing_to_tell(ibex_db: Database) -> None:
    assert (await ibex_db.doctor(performance=True)).findings == ()


async def test_updates_that_left_their_page_are_told(owner: AsyncEngine, ibex_db: Database, org_id: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        for number in (2, 3):  # of an indexed column: no HOT update
            vector = f"array_fill({number}::real, ARRAY[384])::vector"
            await session.execute(text(f"UPDATE ibex_core.memories SET embedding = {vector}"))
    await flushed(ibex_db, org_id)

    report = await told(owner, replace(_FEW, hot_ratio=0.9))

    assert [found.code for found in report.findings] == ["hot-updates"]
    assert "only 0% of 200 updates" in report.findings[0].risk


async def test_counters_are_hot_updates_and_are_not_told(owner: AsyncEngine, ibex_db: Database, org_id: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        await session.execute(text("UPDATE ibex_core.memories SET retrieval_count = retrieval_count + 1"))
    await flushed(ibex_db, org_id)

    assert (await told(owner, replace(_FEW, hot_ratio=0.9))).clean


async def test_dead_rows_are_told_and_vacuumed_away(owner: AsyncEngine, ibex_db: Database, org_id: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        await session.execute(text("UPDATE ibex_core.memories SET embedding_model = 'another'"))
    await flushed(ibex_db, org_id)
    limits = replace(_FEW, dead_ratio=0.4)

    report = await told(owner, limits)

    assert [found.code for found in report.findings] == ["dead-rows"]
    await remedied(owner, report)
    assert (await told(owner, limits)).clean


@pytest.mark.usefixtures("org_id")
async def test_stale_statistics_are_told_and_made_anew(owner: AsyncEngine) -> None:
    limits = replace(_FEW, stale_ratio=0.5)

    report = await told(owner, limits)

    assert "statistics-stale" in {found.code for found in report.findings}
    await remedied(owner, report)
    assert (await told(owner, limits)).clean


@pytest.mark.usefixtures("org_id")
async def test_one_partition_with_everything_is_told(owner: AsyncEngine) -> None:
    async with owner.connect() as connection:
        await connection.execute(text("ANALYZE ibex_core.memories"))

    report = await told(owner, replace(_FEW, skew=3.0))

    assert len(objects(report, "partition-skew")) == 1
    assert "16.0 times the mean" in next(f.risk for f in report.findings if f.code == "partition-skew")


@pytest.mark.usefixtures("org_id")
async def test_an_index_that_nobody_asks_is_told_with_the_way_to_drop_it(owner: AsyncEngine) -> None:
    async with owner.connect() as connection:
        await connection.execute(text("CREATE INDEX mine ON ibex_core.memories (confidence)"))

    report = await told(owner, replace(_FEW, unused_days=-1.0))

    remedies = {found.object: found.remedy_sql for found in report.findings if found.code == "index-unused"}
    assert remedies["ibex_core.mine"] == "DROP INDEX ibex_core.mine;"
    assert remedies["ibex_core.memories_search_vector_idx"].startswith("-- it belongs to the models")
    assert "ibex_core.memories_pkey" not in remedies


@pytest.mark.usefixtures("org_id")
async def test_a_bloated_index_is_told_and_rebuilt(owner: AsyncEngine) -> None:
    async with owner.connect() as connection:
        for statement in (
            "CREATE TABLE ibex_core.wide (id int)",
            "CREATE INDEX wide_id ON ibex_core.wide (id)",
            "INSERT INTO ibex_core.wide SELECT generate_series(1, 50000)",
            "DELETE FROM ibex_core.wide WHERE id % 50 <> 0",
            "VACUUM (ANALYZE) ibex_core.wide",
        ):
            await connection.execute(text(statement))
    limits = replace(_FEW, bloat_bytes=2**17)

    report = await told(owner, limits)

    assert objects(report, "index-bloated") == ["ibex_core.wide_id"]
    await remedied(owner, Report(tuple(found for found in report.findings if found.code == "index-bloated")))
    assert objects(await told(owner, limits), "index-bloated") == []


@pytest.mark.usefixtures("org_id")
async def test_vector_indexes_larger_than_the_buffers_are_told(owner: AsyncEngine) -> None:
    # A test server's indexes are small, so its buffers are taken for smaller.
    assert objects(await told(owner, _FEW), "vector-index-memory") == []

    report = await told(owner, replace(_FEW, vector_share=0.0))

    (found,) = [found for found in report.findings if found.code == "vector-index-memory"]
    assert found.object == "shared_buffers"
    async with owner.connect() as connection:
        assert str(await connection.scalar(text("SHOW shared_buffers"))).removesuffix("MB") in found.risk


async def test_a_vector_index_larger_than_its_builders_memory_is_told(owner: AsyncEngine) -> None:
    assert objects(await told(owner, _FEW), "vector-index-build") == []

    report = await told(owner, replace(_FEW, build_share=0.0))

    (found,) = [found for found in report.findings if found.code == "vector-index-build"]
    assert "SET maintenance_work_mem = '64MB'" in found.remedy_sql


async def test_an_old_transaction_is_told_with_whose_it_is(owner: AsyncEngine, ibex_db: Database, org_id: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await asyncio.sleep(0.01)

        report = await told(owner, replace(_FEW, transaction_minutes=0.0))

    mine = [found for found in report.findings if found.object == f"backend {pid}"]
    assert [found.code for found in mine] == ["transaction-old"]
    assert "idle in transaction" in mine[0].risk


async def test_a_login_that_is_shown_too_little_is_told_so(owner: AsyncEngine) -> None:
    login = f"ibex_migrates_{uuid4().hex[:12]}"

    def look(live: Connection) -> Report:
        live.execute(text(f"SET LOCAL ROLE {login}"))
        return examine(live, checks=performance_checks(_FEW))

    async with owner.connect() as connection:
        await connection.execute(text(f"CREATE ROLE {login} IN ROLE ibex_owner"))
    try:
        async with owner.execution_options(isolation_level="READ COMMITTED").connect() as connection:
            before = await connection.run_sync(look)
            await connection.rollback()
            await remedied(owner, before)
            after = await connection.run_sync(look)
    finally:
        async with owner.connect() as connection:
            await connection.execute(text(f"DROP ROLE {login}"))

    assert objects(before, "activity-hidden") == [f"login {login}"]
    assert after.clean


@pytest.mark.usefixtures("org_id")
async def test_the_age_of_transactions_is_read(owner: AsyncEngine) -> None:
    report = await told(owner, replace(_FEW, transaction_age=1))

    assert objects(report, "transaction-age") == ["database"]


async def test_slow_statements_are_told_where_they_are_watched(
    owner: AsyncEngine, ibex_db: Database, org_id: UUID
) -> None:
    async with owner.connect() as connection:
        if "pg_stat_statements" not in str(await connection.scalar(text("SHOW shared_preload_libraries"))):
            pytest.skip("this server loads no pg_stat_statements: name one that does in IBEX_TEST_DATABASE_URL")
        await connection.execute(text("CREATE EXTENSION pg_stat_statements SCHEMA public"))
    async with ibex_db.tenant(org_id) as session:
        await session.execute(text("SELECT pg_sleep(0.05) FROM ibex_core.memories LIMIT 1"))

    report = await told(owner, replace(_FEW, statement_calls=1, statement_ms=40.0))

    assert {found.code for found in report.findings} == {"statement-slow"}
    assert any("pg_sleep" in found.risk for found in report.findings)
