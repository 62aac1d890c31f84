"""What a revision does to a table that is in use: indexes built concurrently, rules checked without a wait.

For revisions alone, and for nothing else in the same revision: each statement here commits by itself, so what came
before it in the revision is committed too.  Each verb can be run again after a crash anywhere in it: it takes away what
is half built, keeps what is whole, and goes on::

    from ibex_db_core.migrations import online

    def upgrade() -> None:
        online.create_index("memories_category_idx", "memories", "(org_id, category) WHERE deleted_at IS NULL")

    def downgrade() -> None:
        online.drop_index("memories_category_idx")

Where a statement meets lock_timeout, the Migrator runs the revision again.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from sqlalchemy import Connection, text

from ibex_db_core.base import SCHEMA
from ibex_db_core.errors import InvalidInputError, MigrationError
from ibex_db_core.policies import OWNER_ROLE

__all__ = ["add_constraint", "build", "create_index", "drop_index", "set_not_null"]

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_LONGEST = 63
"""Bytes of a name that Postgres keeps."""


def create_index(name: str, table: str, definition: str, *, unique: bool = False, schema: str = SCHEMA) -> None:
    """Build an index while others write; of a partitioned table partition by partition.

    Readers and writers are never kept waiting, but for a moment where a partitioned table takes its finished index.

    Args:
        name: of the index, without schema; a partition's is the same with the partition's ``_pNN`` behind it.
        table: its name, without schema.
        definition: what follows the table's name: ``(org_id, tag)``, ``USING gin (words) WITH (fastupdate = off)``.
        unique: a duplicate that is there makes it fail; what it leaves is taken away by the next run.
        schema: of both.

    Raises:
        InvalidInputError: a name that would need quotes.
        MigrationError: no such table, or an index of that name is on another one.
    """
    _check(name=name, table=table, schema=schema)
    with _alone(f"{schema}.{table}") as connection:
        if connection is None:
            _offline(
                f"CREATE {'UNIQUE ' if unique else ''}INDEX {name} ON {schema}.{table} {definition}",
                _NAME_PARTS.format(schema=schema, table=table, name=name),
            )
            return
        build(connection, name, table, definition, unique=unique, schema=schema)


def drop_index(name: str, *, schema: str = SCHEMA) -> None:
    """Drop an index while others read and write; nothing where it is not there.

    Of a partitioned table, Postgres can drop it only at once, with the table to itself for a moment: lock_timeout and
    the Migrator's tries keep that from being more.

    Raises:
        InvalidInputError: a name that would need quotes.
    """
    _check(name=name, schema=schema)
    with _alone(f"{schema}.{name}") as connection:
        if connection is None:
            _offline(f"DROP INDEX IF EXISTS {schema}.{name}")
            return
        for part in _left_over(connection, schema, name):
            _run(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {schema}.{part}", patient=True)
        how = "" if _is_partitioned(connection, schema, name) else "CONCURRENTLY "
        _run(connection, f"DROP INDEX {how}IF EXISTS {schema}.{name}", patient=bool(how))


def add_constraint(name: str, table: str, definition: str, *, schema: str = SCHEMA) -> None:
    """Add a CHECK or FOREIGN KEY in two steps: NOT VALID, in a moment, and then validated while others write.

    Args:
        name: of the constraint.
        table: its name, without schema.
        definition: ``CHECK (...)`` or ``FOREIGN KEY (...) REFERENCES ...``; nothing about validity.
        schema: of the table.

    Raises:
        InvalidInputError: a name that would need quotes.
        MigrationError: no such table; a row breaks the rule, and then it stays NOT VALID: it holds for new rows.
    """
    _check(name=name, table=table, schema=schema)
    with _alone(f"{schema}.{table}") as connection:
        if connection is None:
            _offline(f"ALTER TABLE {schema}.{table} ADD CONSTRAINT {name} {definition}")
            return
        _partitions(connection, schema, table)  # is it there?
        valid = _is_valid(connection, schema, table, name)
        if valid is None:
            _run(connection, f"ALTER TABLE {schema}.{table} ADD CONSTRAINT {name} {definition} NOT VALID")
        if not valid:
            _run(connection, f"ALTER TABLE {schema}.{table} VALIDATE CONSTRAINT {name}", patient=True)


def set_not_null(table: str, column: str, *, schema: str = SCHEMA) -> None:
    """Make a column NOT NULL without a scan under a lock: a CHECK is validated first, which Postgres then believes.

    Raises:
        InvalidInputError: a name that would need quotes.
        MigrationError: no such table, or a row has no value there.
    """
    _check(table=table, column=column, schema=schema)
    rule = f"{table}_{column}_not_null_check"[:_LONGEST]
    add_constraint(rule, table, f"CHECK ({column} IS NOT NULL)", schema=schema)
    with _alone(f"{schema}.{table}") as connection:
        for statement in (
            f"ALTER TABLE {schema}.{table} ALTER COLUMN {column} SET NOT NULL",
            f"ALTER TABLE {schema}.{table} DROP CONSTRAINT {rule}",
        ):
            if connection is None:
                _offline(statement)
            else:
                _run(connection, statement)


def build(
    connection: Connection, name: str, table: str, definition: str, *, unique: bool = False, schema: str = SCHEMA
) -> None:
    """As create_index(), on a connection whose statements commit by themselves: for procedures that are no revision.

    Raises:
        MigrationError: no such table, or an index of that name is on another one.
    """
    kind = "UNIQUE INDEX" if unique else "INDEX"
    parts = _partitions(connection, schema, table)
    if parts is None:
        _build(connection, kind, name, table, definition, schema=schema)
        return
    built = {part: _of_partition(name, table, part) for part in parts}
    for part, index in built.items():
        _build(connection, kind, index, part, definition, schema=schema)
    if _state(connection, schema, name, table) is None:
        _run(connection, f"CREATE {kind} {name} ON ONLY {schema}.{table} {definition}")
    attached = set(_attached(connection, schema, name))
    for index in built.values():
        if index not in attached:
            _run(connection, f"ALTER INDEX {schema}.{name} ATTACH PARTITION {schema}.{index}")


# -- one statement at a time

_OWNER = text("SELECT quote_ident(pg_get_userbyid(relowner)) FROM pg_catalog.pg_class WHERE oid = to_regclass(:name)")


@contextmanager
def _alone(relation: str) -> Generator[Connection | None]:
    """Give a connection on which each statement commits by itself, as the owner; None where SQL is only printed."""
    from alembic import op

    context = op.get_context()
    if context.as_sql:
        yield None
        return
    with context.autocommit_block():
        connection = op.get_bind()
        owner = connection.scalar(_OWNER, {"name": relation})
        if owner is not None:
            _run(connection, f"SET ROLE {owner}")
        try:
            yield connection
        finally:
            if not connection.invalidated:
                _run(connection, "RESET ROLE")


# Postgres names the parts itself; of a plain table there are none.  As _of_partition() has it.
_NAME_PARTS = """
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT child.oid::regclass AS child, CASE WHEN starts_with(part.relname, '{table}_')
            THEN substr(part.relname, length('{table}') + 1) ELSE '_' || part.relname END AS suffix
        FROM pg_catalog.pg_inherits i
        JOIN pg_catalog.pg_class child ON child.oid = i.inhrelid
        JOIN pg_catalog.pg_index x ON x.indexrelid = child.oid
        JOIN pg_catalog.pg_class part ON part.oid = x.indrelid
        WHERE i.inhparent = '{schema}.{name}'::regclass
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', found.child,
            left('{name}', 63 - length(found.suffix)) || found.suffix);
    END LOOP;
END $$
"""


def _offline(*statements: str) -> None:
    """Print the plain statements: the script is for a database in which the table is as new as the index."""
    from alembic import op

    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    for statement in statements:
        op.execute(statement)
    op.execute("SET LOCAL ROLE NONE")


def _run(connection: Connection, statement: str, *, patient: bool = False) -> None:
    """Run one statement; a patient one waits as long as it must, since nobody waits behind it."""
    if not patient:
        connection.exec_driver_sql(statement)
        return
    limit = connection.scalar(text("SELECT set_config('lock_timeout', current_setting('lock_timeout'), false)"))
    connection.execute(text("SELECT set_config('lock_timeout', '0', false)"))
    try:
        connection.exec_driver_sql(statement)
    finally:
        if not connection.invalidated:
            connection.execute(text("SELECT set_config('lock_timeout', :limit, false)"), {"limit": limit})


def _build(connection: Connection, kind: str, name: str, table: str, definition: str, *, schema: str) -> None:
    """Build one index concurrently, unless it is there and whole."""
    state = _state(connection, schema, name, table)
    if state is False:
        _run(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {schema}.{name}", patient=True)
    if not state:
        _run(connection, f"CREATE {kind} CONCURRENTLY {name} ON {schema}.{table} {definition}", patient=True)


# -- what is there


def _check(**names: str) -> None:
    for field, name in names.items():
        if not _NAME.fullmatch(name):
            raise InvalidInputError(field, name, "must be a plain name: small letters, digits and _, 63 at most")


def _of_partition(name: str, table: str, partition: str) -> str:
    """``memories_p07``'s part of ``memories_tag_idx`` is ``memories_tag_idx_p07``: errors name the parent by that."""
    suffix = partition.removeprefix(table) if partition.startswith(f"{table}_") else f"_{partition}"
    return name[: _LONGEST - len(suffix)] + suffix


def _partitions(connection: Connection, schema: str, table: str) -> list[str] | None:
    """Return a partitioned table's partitions; None for a plain one."""
    query = text(
        "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = to_regclass(:name) AND relkind IN ('r', 'p')"
    )
    partitioned = connection.scalar(query, {"name": f"{schema}.{table}"})
    if partitioned is None:
        raise MigrationError(f"there is no table {schema}.{table}: a revision before this one has to make it")
    if not partitioned:
        return None
    parts = connection.execute(
        text(
            "SELECT c.relname::text AS name, c.relkind <> 'r' AS nested FROM pg_catalog.pg_inherits i "
            "JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass(:name) ORDER BY 1"
        ),
        {"name": f"{schema}.{table}"},
    ).all()
    if any(part.nested for part in parts):
        raise MigrationError(
            f"{schema}.{table} has partitions that are partitioned or foreign: build their indexes one by one"
        )
    return [part.name for part in parts]


def _state(connection: Connection, schema: str, name: str, table: str) -> bool | None:
    """Tell whether an index is whole; None: it is not there."""
    found = connection.execute(
        text(
            "SELECT i.indisvalid AND i.indisready AS whole, t.relname::text AS table FROM pg_catalog.pg_index i "
            "JOIN pg_catalog.pg_class t ON t.oid = i.indrelid WHERE i.indexrelid = to_regclass(:name)"
        ),
        {"name": f"{schema}.{name}"},
    ).first()
    if found is None:
        return None
    if found.table != table:
        raise MigrationError(f"index {schema}.{name} is there already, on {found.table}: give this one another name")
    return cast("bool", found.whole)


def _attached(connection: Connection, schema: str, name: str) -> list[str]:
    query = text(
        "SELECT c.relname::text FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = to_regclass(:name)"
    )
    return list(connection.scalars(query, {"name": f"{schema}.{name}"}))


def _left_over(connection: Connection, schema: str, name: str) -> list[str]:
    """Return the indexes that a build which died left on partitions, and that no parent holds."""
    query = text(
        "SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid "
        "JOIN pg_catalog.pg_class t ON t.oid = i.indrelid "
        "WHERE c.relnamespace = to_regnamespace(:schema) AND t.relispartition AND NOT c.relispartition "
        "AND c.relname = left(:name, 63 - length(substring(t.relname from '_p[0-9]+$'))) "
        "|| substring(t.relname from '_p[0-9]+$')"
    )
    return list(connection.scalars(query, {"schema": schema, "name": name}))


def _is_partitioned(connection: Connection, schema: str, name: str) -> bool:
    query = text("SELECT relkind = 'I' FROM pg_catalog.pg_class WHERE oid = to_regclass(:name)")
    return connection.scalar(query, {"name": f"{schema}.{name}"}) is True


def _is_valid(connection: Connection, schema: str, table: str, name: str) -> bool | None:
    query = text(
        "SELECT convalidated FROM pg_catalog.pg_constraint WHERE conrelid = to_regclass(:table) AND conname = :name"
    )
    return cast("bool | None", connection.scalar(query, {"table": f"{schema}.{table}", "name": name}))
