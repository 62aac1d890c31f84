"""The doctor finds what people break, mends it with the SQL that it prints, and is silent about a sound database."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from faults import FAULTS, Fault, spoken_since
from quick import parametrize
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ibex_db import Agent, Database, Memory, MemoryCategory, MemoryTag, Organization
from ibex_db_core.doctor import CODES, Report, examine
from ibex_db_core.doctor.findings import PERFORMANCE_CODES
from ibex_db_core.engine import EngineSettings, create_engine
from ibex_db_core.errors import MigrationError
from ibex_db_core.provisioning import Cluster
from ibex_db_core.testing import TestDatabase
from ibex_db_core.url import parse

# One event loop for the module, so that one connection serves every fault.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def database(ibex_cluster: Cluster, ibex_template: str) -> Iterator[TestDatabase]:
    """One migrated database for the module: each fault is made in a transaction that is rolled back."""
    name = f"ibex_doctor_{uuid4().hex[:12]}"
    asyncio.run(ibex_cluster.create_database(name, template=ibex_template))
    yield TestDatabase(name, ibex_cluster)
    asyncio.run(ibex_cluster.drop_database(name))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(database: TestDatabase) -> AsyncIterator[AsyncEngine]:
    """The superuser's one connection."""
    made = create_engine(parse(database.cluster.url(database.name)), EngineSettings(pool_size=1, max_overflow=0))
    yield made
    await made.dispose()


@pytest_asyncio.fixture(loop_scope="module")
async def admin(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """The superuser's connection, in a transaction that never commits."""
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SELECT 1")
        yield connection
        await connection.rollback()


async def audit(connection: AsyncConnection) -> Report:
    return await connection.run_sync(examine)


async def seed(connection: AsyncConnection, script: str) -> None:
    """Make a fault; skip where this server does not know its words.  A remedy must be in words that it knows."""
    version = int((await connection.exec_driver_sql("SHOW server_version_num")).scalar_one())
    if version // 10_000 < (since := spoken_since(script)):
        pytest.skip(f"these words are of Postgres {since}")
    await run(connection, script)


async def run(connection: AsyncConnection, script: str) -> None:
    """Run a script as psql would, in the transaction that is open."""
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, asyncpg.Connection)
    await raw.execute(script)
    await raw.execute("RESET ROLE")


async def test_a_migrated_database_has_no_findings(ibex_db: Database) -> None:
    report = await ibex_db.doctor()

    assert report.findings == ()
    assert report.clean


async def test_a_database_with_rows_has_no_findings(ibex_db: Database) -> None:
    async with ibex_db.platform(reason="test set-up") as session:
        org = Organization(name="Acme", slug="acme")
        session.add(org)
    async with ibex_db.tenant(org.id) as session:
        agent = Agent(name="Robin", slug="robin")
        session.add(agent)
        await session.flush()
        memory = Memory(agent_id=agent.id, content="Prefers tea.", category=MemoryCategory.PREFERENCE)
        session.add(memory)
        await session.flush()
        session.add(MemoryTag(memory_id=memory.id, tag="drinks"))

    assert (await ibex_db.doctor()).findings == ()


# The first of each code; the others are the same fault elsewhere.
_QUICK = {fault.code: fault for fault in reversed(FAULTS)}.values()


@parametrize("fault", FAULTS, quick=_QUICK, ids=str)
async def test_a_fault_is_found_and_the_printed_sql_mends_it(admin: AsyncConnection, fault: Fault) -> None:
    await seed(admin, fault.sql)

    report = await audit(admin)

    found = [finding for finding in report.findings if (finding.code, finding.object) == (fault.code, fault.object)]
    assert found, report
    assert {finding.code for finding in report.findings} == {fault.code} | fault.also
    if fault.mendable:
        await run(admin, found[0].remedy_sql)
        rest = await audit(admin)
        assert found[0] not in rest.findings
        await mend(admin, rest)
    else:
        assert found[0].remedy_sql.startswith("-- ")


async def mend(connection: AsyncConnection, report: Report) -> None:
    """Do what the report says, the gravest first, until nothing is left to do."""
    for _ in range(3):
        if report.clean:
            return
        for finding in report.findings:
            await run(connection, "SAVEPOINT remedy")
            try:
                await run(connection, finding.remedy_sql)
            except asyncpg.PostgresError:  # an earlier one mended this too; what stays is told again
                await run(connection, "ROLLBACK TO remedy")
        report = await audit(connection)
    assert report.findings == ()


async def test_every_code_is_seeded_by_a_fault() -> None:
    elsewhere = {
        "server-version",  # judged below: nobody seeds a server
        "repartition-under-way",  # brought about in test_repartition.py
        *("shard-open", "shard-changed", "shard-unseen"),  # in tests/citus, on a cluster
        *PERFORMANCE_CODES,  # brought about in test_doctor_performance.py
    }

    assert {fault.code for fault in FAULTS} == CODES.keys() - elsewhere


async def test_a_step_into_the_platform_role_is_allowed(admin: AsyncConnection) -> None:
    await seed(
        admin, "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app; GRANT ibex_platform TO doctor_one WITH INHERIT FALSE"
    )

    assert (await audit(admin)).findings == ()


async def test_who_only_administers_the_roles_is_no_service(admin: AsyncConnection) -> None:
    await seed(
        admin,
        "CREATE ROLE doctor_one LOGIN CREATEROLE; GRANT ibex_app, ibex_platform, ibex_owner TO doctor_one"
        " WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
    )

    assert (await audit(admin)).findings == ()


async def test_a_cast_of_somebody_elses_makes_no_finding(admin: AsyncConnection) -> None:
    for kind, value in (("integer", "1"), ("boolean", "false")):
        name = f"public.to_{kind}"
        await run(admin, f"CREATE FUNCTION {name}(text) RETURNS {kind} LANGUAGE sql IMMUTABLE AS 'SELECT {value}'")
        await run(admin, f"CREATE CAST (text AS {kind}) WITH FUNCTION {name}(text) AS IMPLICIT")

    assert (await audit(admin)).findings == ()


async def test_a_stranger_with_powers_is_no_finding(admin: AsyncConnection) -> None:
    await run(
        admin,
        "CREATE ROLE doctor_stranger LOGIN; GRANT pg_monitor TO doctor_stranger;"
        "GRANT SET ON PARAMETER session_replication_role TO doctor_stranger;"
        "ALTER ROLE doctor_stranger SET search_path = public",
    )

    assert (await audit(admin)).findings == ()


async def test_another_spelling_of_the_same_policy_is_no_finding(admin: AsyncConnection) -> None:
    await run(
        admin,
        "ALTER POLICY agents_tenant ON ibex_core.agents USING "
        "(agents.org_id = CAST(nullif(pg_catalog.current_setting('app.current_org_id', true), '') AS uuid))",
    )

    assert (await audit(admin)).findings == ()


async def test_the_audit_does_not_depend_on_the_logins_search_path(admin: AsyncConnection) -> None:
    await run(admin, "SET search_path = ibex_core, public")

    assert (await audit(admin)).findings == ()


async def test_the_owner_role_itself_may_audit(admin: AsyncConnection) -> None:
    await admin.exec_driver_sql("SET ROLE ibex_owner")

    assert (await audit(admin)).findings == ()


async def test_a_database_that_was_never_migrated_is_an_error(ibex_cluster: Cluster) -> None:
    name = f"ibex_doctor_{uuid4().hex[:12]}"
    await ibex_cluster.create_database(name)
    try:
        async with ibex_cluster.database(name) as empty:
            with pytest.raises(MigrationError, match="ibex-db upgrade"):
                await empty.doctor()
    finally:
        await ibex_cluster.drop_database(name)


async def execute(database: TestDatabase, sql: str) -> None:
    connection = await asyncpg.connect(database.cluster.url(database.name).render_as_string(hide_password=False))
    await connection.execute(sql)
    await connection.close()


async def test_check_tells_of_policies_too(ibex_test_database: TestDatabase) -> None:
    async with ibex_test_database.connect() as database:
        await execute(ibex_test_database, "ALTER POLICY users_tenant ON ibex_core.users USING (true)")
        async with database.migrator() as migrator:
            told = await migrator.check()

    assert len(told) == 1
    assert "policy-changed" in told[0]
    assert "users_tenant on ibex_core.users" in told[0]
