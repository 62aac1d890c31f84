"""The doctor finds what people break, mends it with the SQL that it prints, and is silent about a sound database."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from faults import FAULTS, Fault
from sqlalchemy.ext.asyncio import AsyncConnection
from typer.testing import CliRunner

from ibex_db import Agent, Database, Memory, MemoryCategory, MemoryTag, Organization
from ibex_db_core.cli.app import build
from ibex_db_core.doctor import CODES, Finding, Report, Severity, examine
from ibex_db_core.doctor.versions import judge_server
from ibex_db_core.engine import EngineSettings, create_engine
from ibex_db_core.errors import MigrationError
from ibex_db_core.provisioning import Cluster
from ibex_db_core.testing import TestDatabase
from ibex_db_core.url import parse

PAGE = Path(__file__).parents[1] / "docs" / "doctor.md"


@pytest.fixture(scope="module")
def database(ibex_cluster: Cluster, ibex_template: str) -> Iterator[TestDatabase]:
    """One migrated database for the module: each fault is made in a transaction that is rolled back."""
    name = f"ibex_doctor_{uuid4().hex[:12]}"
    asyncio.run(ibex_cluster.create_database(name, template=ibex_template))
    yield TestDatabase(name, ibex_cluster)
    asyncio.run(ibex_cluster.drop_database(name))


@pytest_asyncio.fixture
async def admin(database: TestDatabase) -> AsyncIterator[AsyncConnection]:
    """The superuser's connection, in a transaction that never commits."""
    engine = create_engine(parse(database.cluster.url(database.name)), EngineSettings(pool_size=1))
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SELECT 1")
        yield connection
        await connection.rollback()
    await engine.dispose()


async def audit(connection: AsyncConnection) -> Report:
    return await connection.run_sync(examine)


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


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_fault_is_found_and_the_printed_sql_mends_it(admin: AsyncConnection, fault: Fault) -> None:
    await run(admin, fault.sql)

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
            if finding in (await audit(connection)).findings:
                await run(connection, finding.remedy_sql)
        report = await audit(connection)
    assert report.findings == ()


async def test_every_code_is_seeded_by_a_fault() -> None:
    elsewhere = {
        "server-version",  # judged below: nobody seeds a server
        "function-search-path",  # with a function that a model declares, in core's own tests
        "function-public",
    }

    assert {fault.code for fault in FAULTS} == CODES.keys() - elsewhere


def test_every_code_has_a_line_in_the_documentation() -> None:
    lines = re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE)

    assert [(code, Severity(severity)) for code, severity in lines] == list(CODES.items())


@pytest.mark.parametrize(
    ("version", "holes"), [(140020, 1), (150013, 2), (150014, 1), (160014, 0), (170005, 2), (180003, 1), (180004, 0)]
)
def test_a_server_with_known_holes_is_told(version: int, holes: int) -> None:
    assert len(list(judge_server(version))) == holes


async def test_a_step_into_the_platform_role_is_allowed(admin: AsyncConnection) -> None:
    await run(
        admin, "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app; GRANT ibex_platform TO doctor_one WITH INHERIT FALSE"
    )

    assert (await audit(admin)).findings == ()


async def test_who_only_administers_the_roles_is_no_service(admin: AsyncConnection) -> None:
    await run(
        admin,
        "CREATE ROLE doctor_one LOGIN CREATEROLE; GRANT ibex_app, ibex_platform, ibex_owner TO doctor_one"
        " WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
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


async def test_check_tells_of_policies_too(ibex_test_database: TestDatabase) -> None:
    async with ibex_test_database.connect() as database:
        await execute(ibex_test_database, "ALTER POLICY users_tenant ON ibex_core.users USING (true)")
        async with database.migrator() as migrator:
            told = await migrator.check()

    assert len(told) == 1
    assert "policy-changed" in told[0]
    assert "users_tenant on ibex_core.users" in told[0]


async def execute(database: TestDatabase, sql: str) -> None:
    connection = await asyncpg.connect(address(database))
    await connection.execute(sql)
    await connection.close()


def address(database: TestDatabase) -> str:
    return database.cluster.url(database.name).render_as_string(hide_password=False)


def test_the_command_leaves_with_0_on_a_sound_database(database: TestDatabase) -> None:
    result = CliRunner().invoke(build(), ["doctor", "--url", address(database)])

    assert result.exit_code == 0
    assert "Nothing found" in result.stdout


def test_the_command_leaves_with_1_and_says_what_mends(ibex_cluster: Cluster, ibex_template: str) -> None:
    name = f"ibex_doctor_{uuid4().hex[:12]}"
    asyncio.run(ibex_cluster.create_database(name, template=ibex_template))
    broken = TestDatabase(name, ibex_cluster)
    try:
        asyncio.run(execute(broken, "ALTER TABLE ibex_core.users DISABLE ROW LEVEL SECURITY"))
        for_people = CliRunner().invoke(build(), ["doctor", "--url", address(broken)])
        for_machines = CliRunner().invoke(build(), ["doctor", "--json", "--url", address(broken)])
        left_out = CliRunner().invoke(build(), ["doctor", "--ignore", "rls-disabled", "--url", address(broken)])
        unknown = CliRunner().invoke(build(), ["doctor", "--ignore", "rls-of", "--url", address(broken)])
    finally:
        asyncio.run(ibex_cluster.drop_database(name))

    assert (for_people.exit_code, for_machines.exit_code, left_out.exit_code, unknown.exit_code) == (1, 1, 0, 2)
    for word in (
        "critical",
        "rls-disabled",
        "ibex_core.users",
        "ALTER TABLE ibex_core.users ENABLE ROW LEVEL SECURITY;",
    ):
        assert word in for_people.stdout
    assert json.loads(for_machines.stdout) == {
        "findings": [
            {
                "code": "rls-disabled",
                "severity": "critical",
                "object": "ibex_core.users",
                "risk": "policies are not applied: whoever may read the table reads every organization's rows",
                "remedy_sql": "ALTER TABLE ibex_core.users ENABLE ROW LEVEL SECURITY;",
            }
        ]
    }


def test_the_gravest_comes_first_and_codes_can_be_left_out() -> None:
    report = Report(
        (Finding("rls-disabled", Severity.CRITICAL, "t", "", ""), Finding("publication", Severity.LOW, "p", "", ""))
    )

    assert [finding.object for finding in report.without(frozenset({"rls-disabled"})).findings] == ["p"]
