"""The statements that make the tables as they are today: what a person reads to know the schema.

Databases are made by ``ibex-db upgrade``, which also knows the way from yesterday's schema and writes down how
far it came.  This is where that way ends, in one piece; a test runs it and lets the doctor compare.
"""

from collections.abc import Iterable
from typing import cast

from sqlalchemy import ForeignKeyConstraint, MetaData, Table
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.schema import AddConstraint, CreateIndex, CreateTable

from ibex_db_core.base import SCHEMA
from ibex_db_core.guards import Function, Grant, Guards
from ibex_db_core.policies import (
    APP_ROLE,
    OWNER_ROLE,
    PLATFORM_ROLE,
    SEARCH_TO_OWNER,
    SIGNED_ORG,
    create_roles,
    create_trigger_functions,
    secure_platform,
    secure_table,
)

_POSTGRES = PGDialect()  # type: ignore[no-untyped-call]

_HEAD = f"""\
-- Schema {SCHEMA} as the installed wheels expect it: for reading.
-- Make databases with `ibex-db upgrade`; it brings older ones up to date, and records what it did."""


def ddl(models: MetaData) -> str:
    """Return the statements for every table of a metadata, parents first, as one script.

    Partitions are not in it: the first migration makes them, in the number that was asked for.  Nor is the table of
    signing keys, which the owner alone may read and no model maps.
    """
    parts = [_HEAD, _block("Roles, schema, and what every table calls", _ground())]
    parts += [_block(table.name, _table(table)) for table in models.sorted_tables]
    return "\n\n".join(parts) + "\n"


def _block(title: str, statements: Iterable[str]) -> str:
    return "\n\n".join([f"-- {title}", *(f"{statement.strip()};" for statement in statements)])


def _ground() -> list[str]:
    return [
        *create_roles(),
        SEARCH_TO_OWNER,
        "CREATE EXTENSION IF NOT EXISTS vector",
        f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {OWNER_ROLE}",
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO {APP_ROLE}, {PLATFORM_ROLE}",
        f"SET ROLE {OWNER_ROLE}",
        *create_trigger_functions(),
        *create_function(SIGNED_ORG),
    ]


def _table(table: Table) -> list[str]:
    name = f"{table.schema}.{table.name}"
    guards = cast("Guards", table.info["guards"])
    # An index may call an immutable function, which reads no table.
    called = [function for function in guards.functions if function.volatility == "IMMUTABLE"]
    made = [made for function in guards.functions if function not in called for made in create_function(function)]
    return [
        _compiled(CreateTable(table)),
        *(made for function in called for made in create_function(function)),
        *create_indexes(table),
        *_storage(name, guards, partitioned=bool(table.dialect_options["postgresql"]["partition_by"])),
        *create_guards(table, after_policies=made),
    ]


def create_in_one_piece(table: Table) -> str:
    """Return CREATE TABLE without partitions and without foreign keys."""
    said = _compiled(CreateTable(table, include_foreign_key_constraints=[]))
    return said.partition("PARTITION BY")[0].strip()


def create_indexes(table: Table) -> list[str]:
    """Return the statements for a table's indexes, by name."""
    return [_compiled(CreateIndex(index)) for index in sorted(table.indexes, key=lambda index: str(index.name))]


def create_foreign_key(rule: ForeignKeyConstraint) -> str:
    """Return the statement that adds a foreign key to a table that is there."""
    # Isolated, it would be left out of every later CREATE TABLE of this process.
    return _compiled(AddConstraint(rule, isolate_from_table=False))


def store_in_one_piece(table: Table) -> list[str]:
    """Return how a table without partitions stores its rows, where that is not Postgres's way."""
    return _storage(f"{table.schema}.{table.name}", cast("Guards", table.info["guards"]), partitioned=False)


def create_guards(table: Table, *, after_policies: Iterable[str] = ()) -> list[str]:
    """Return policies, grants and triggers of a table; what its triggers call comes after the policies."""
    guards = cast("Guards", table.info["guards"])
    name = f"{table.schema}.{table.name}"
    secured = secure_platform(table.name) if table.info.get("platform_only") else secure_table(table)
    return [
        *secured,
        *after_policies,
        *(trigger.create() for trigger in guards.triggers),
        *(policy.create(name) for policy in guards.policies),
        *(f"GRANT {grant.privilege}{_columns(grant)} ON {name} TO {grant.role}" for grant in guards.grants),
    ]


def _columns(grant: Grant) -> str:
    return f" ({', '.join(grant.columns)})" if grant.columns else ""


def _storage(name: str, guards: Guards, *, partitioned: bool) -> list[str]:
    kept = [f"ALTER TABLE {name} ALTER COLUMN {column} SET STORAGE {kind}" for column, kind in guards.storage.items()]
    if guards.fillfactor != 100 and not partitioned:  # noqa: PLR2004 - Postgres's own default
        kept.append(f"ALTER TABLE {name} SET (fillfactor = {guards.fillfactor})")
    return kept


def create_function(function: Function) -> list[str]:
    """Return the statements that make a function, or put it right: its owner and its callers with it."""
    if function.definer is None:
        return [function.create()]
    made = [
        function.create(),
        f"REVOKE ALL ON FUNCTION {function.signature} FROM PUBLIC",
        *(f"GRANT EXECUTE ON FUNCTION {function.signature} TO {role}" for role in function.callers),
    ]
    if function.definer != OWNER_ROLE:  # who makes it here
        usage = f"SCHEMA {function.schema} TO {function.definer}"
        made += [
            f"GRANT USAGE ON {usage}",
            f"GRANT CREATE ON {usage}",
            f"ALTER FUNCTION {function.signature} OWNER TO {function.definer}",
            f"REVOKE CREATE ON {usage.replace(' TO ', ' FROM ')}",
        ]
    return made


def _compiled(statement: CreateTable | CreateIndex | AddConstraint) -> str:
    said = str(statement.compile(dialect=_POSTGRES))
    return "\n".join(line.rstrip().replace("\t", "    ") for line in said.strip().splitlines())
