"""What a model declares in its guards, the doctor expects; on tables that no wheel knows."""

from collections.abc import AsyncIterator, Iterable

import asyncpg
import pytest
from sqlalchemy import CheckConstraint, Column, MetaData, Table, Text, Uuid
from sqlalchemy.ext.asyncio import AsyncConnection
from toys import ToyBase

from ibex_db_core.base import NAMES, SCHEMA
from ibex_db_core.doctor import CHECKS, Finding, Report, examine
from ibex_db_core.doctor.drift import check_models, check_revisions
from ibex_db_core.engine import EngineSettings, create_engine
from ibex_db_core.guards import Function, Grant, Guards, Policy, Trigger
from ibex_db_core.policies import secure_table
from ibex_db_core.testing import TestDatabase
from ibex_db_core.url import parse

_FIND = Function(
    "letters_find",
    "SELECT id FROM ibex_core.letters WHERE body = wanted",
    arguments="wanted text",
    result="SETOF uuid",
    language="sql",
    volatility="STABLE",
    definer="ibex_search",
    callers=("ibex_app",),
    settings={"search_path": "pg_catalog, pg_temp"},
)
_STAMP = Function("letters_stamp", "BEGIN RETURN NEW; END")
_GUARDS = Guards(
    triggers=(
        Trigger(
            "letters_stamp",
            "BEFORE INSERT ON ibex_core.letters FOR EACH ROW WHEN (NEW.body <> '') "
            "EXECUTE FUNCTION ibex_core.letters_stamp()",
        ),
    ),
    functions=(_FIND, _STAMP),
    policies=(Policy("letters_search", "ibex_search", "true", command="SELECT"),),
    grants=(Grant("ibex_search", "SELECT", ("id", "body")),),
    fillfactor=80,
    storage={"body": "MAIN"},
)
LETTERS = Table(
    "letters",
    MetaData(schema=SCHEMA, naming_convention=NAMES),
    Column("org_id", Uuid, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("body", Text, nullable=False),
    CheckConstraint("char_length(body) < 100", name="body_length"),
    info={"tenant_column": "org_id", "append_only": False, "guards": _GUARDS},
)
_MADE = (
    "ALTER TABLE ibex_core.letters OWNER TO ibex_owner",
    "ALTER TABLE ibex_core.letters SET (fillfactor = 80)",
    "ALTER TABLE ibex_core.letters ALTER COLUMN body SET STORAGE MAIN",
    "GRANT USAGE ON SCHEMA ibex_core TO ibex_search",
    "GRANT SELECT (id, body) ON ibex_core.letters TO ibex_search",
    _FIND.create(),
    _STAMP.create(),
    f"ALTER FUNCTION {_FIND.signature} OWNER TO ibex_search",
    f"ALTER FUNCTION {_STAMP.signature} OWNER TO ibex_owner",
    f"REVOKE ALL ON FUNCTION {_FIND.signature} FROM PUBLIC",
    f"GRANT EXECUTE ON FUNCTION {_FIND.signature} TO ibex_app",
)


@pytest.fixture
async def connection(toy_database: TestDatabase) -> AsyncIterator[AsyncConnection]:
    """The superuser's connection, in a transaction that never commits, with the letters made as declared."""
    engine = create_engine(parse(toy_database.cluster.url(toy_database.name)), EngineSettings(pool_size=1))
    async with engine.connect() as opened:
        await opened.run_sync(LETTERS.create)
        statements = (*secure_table(LETTERS), *_MADE, *(made.create() for made in _GUARDS.triggers))
        for statement in (*statements, *(policy.create("ibex_core.letters") for policy in _GUARDS.policies)):
            await opened.exec_driver_sql(statement)
        yield opened
        await opened.rollback()
    await engine.dispose()


async def audit(connection: AsyncConnection) -> Report:
    # Of the wheels' revisions a database of toys has only core's.
    checks = [check for check in CHECKS if check not in {check_models, check_revisions}]
    models = MetaData(naming_convention=NAMES)
    for table in (*ToyBase.metadata.tables.values(), LETTERS):
        table.to_metadata(models)
    return await connection.run_sync(lambda sync: examine(sync, models=models, checks=checks))


def told(findings: Iterable[Finding]) -> set[tuple[str, str]]:
    return {(finding.code, finding.object) for finding in findings}


async def test_tables_as_declared_give_no_finding(connection: AsyncConnection) -> None:
    assert (await audit(connection)).findings == ()


@pytest.mark.parametrize(
    ("code", "where", "sql"),
    [
        (
            "function-public",
            "ibex_core.letters_find(wanted text)",
            f"GRANT EXECUTE ON FUNCTION {_FIND.signature} TO PUBLIC",
        ),
        ("function-search-path", "ibex_core.letters_find(wanted text)", f"ALTER FUNCTION {_FIND.signature} RESET ALL"),
        ("function-changed", "ibex_core.letters_find(wanted text)", f"ALTER FUNCTION {_FIND.signature} IMMUTABLE"),
        (
            "function-changed",
            "ibex_core.letters_find(wanted text)",
            f"ALTER FUNCTION {_FIND.signature} SECURITY INVOKER",
        ),
        (
            "function-owner",
            "ibex_core.letters_find(wanted text)",
            f"ALTER FUNCTION {_FIND.signature} OWNER TO CURRENT_USER",
        ),
        (
            "function-public",
            "ibex_core.letters_find(wanted text)",
            f"GRANT EXECUTE ON FUNCTION {_FIND.signature} TO ibex_platform",
        ),
        (
            "grant-missing",
            "ibex_core.letters_find(wanted text) to ibex_app",
            f"REVOKE EXECUTE ON FUNCTION {_FIND.signature} FROM ibex_app",
        ),
        (
            "policy-missing",
            "letters_search on ibex_core.letters",
            "DROP POLICY letters_search ON ibex_core.letters",
        ),
        (
            "policy-changed",
            "letters_search on ibex_core.letters",
            "ALTER POLICY letters_search ON ibex_core.letters TO ibex_app",
        ),
        (
            "grant-column",
            "ibex_core.letters.org_id to ibex_search",
            "GRANT SELECT (org_id) ON ibex_core.letters TO ibex_search",
        ),
        (
            "grant-missing",
            "ibex_core.letters.body to ibex_search",
            "REVOKE SELECT (body) ON ibex_core.letters FROM ibex_search",
        ),
        ("grant-missing", "ibex_core to ibex_search", "REVOKE USAGE ON SCHEMA ibex_core FROM ibex_search"),
        ("trigger-missing", "letters_stamp on ibex_core.letters", "DROP TRIGGER letters_stamp ON ibex_core.letters"),
        ("fillfactor", "ibex_core.letters", "ALTER TABLE ibex_core.letters SET (fillfactor = 100)"),
        ("column-storage", "ibex_core.letters.body", "ALTER TABLE ibex_core.letters ALTER body SET STORAGE EXTENDED"),
        ("grant-excess", "ibex_core.entries to ibex_platform", "GRANT DELETE ON ibex_core.entries TO ibex_platform"),
        (
            "constraint-changed",
            "letters_body_length on ibex_core.letters",
            """ALTER TABLE ibex_core.letters DROP CONSTRAINT letters_body_length,
               ADD CONSTRAINT letters_body_length CHECK (char_length(body) < 1000)""",
        ),
    ],
)
async def test_what_differs_from_the_declaration_is_found_and_mended(
    connection: AsyncConnection, code: str, where: str, sql: str
) -> None:
    await connection.exec_driver_sql(sql)

    report = await audit(connection)

    assert told(report.findings) == {(code, where)}
    raw = (await connection.get_raw_connection()).driver_connection
    assert isinstance(raw, asyncpg.Connection)
    await raw.execute(report.findings[0].remedy_sql)
    assert (await audit(connection)).findings == ()
