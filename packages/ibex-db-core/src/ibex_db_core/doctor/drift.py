"""Drift: revisions that are not applied, and what the live tables have more or less than the models."""

import io
from collections.abc import Iterable, Iterator
from typing import Any, cast

from alembic.autogenerate import produce_migrations
from alembic.operations import Operations
from alembic.operations.ops import MigrateOperation, ModifyTableOps
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Table

from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, finding
from ibex_db_core.guards import Guards
from ibex_db_core.migrations.runner import comparison, strangers, told
from ibex_db_core.policies import OWNER_ROLE, secure_table

__all__ = ["check_models", "check_revisions"]


def check_revisions(audit: Audit) -> Iterator[Finding]:
    """Every revision of the installed wheels is applied, and no other."""
    for step in audit.revisions:
        if not step.applied:
            yield finding(
                "revision-pending",
                step.id,
                f"the code expects a schema that is not there yet: {step.message}",
                "-- run: ibex-db upgrade",
            )
    for revision in strangers(audit.connection):
        yield finding(
            "revision-unknown",
            revision,
            "another version of the wheels migrated this database: this one may write what that one does not expect",
            f"-- install the wheels that hold {revision}",
        )


def check_models(audit: Audit) -> Iterator[Finding]:
    """Tables, columns and indexes are those of the models; told only where every revision is applied."""
    if any(not step.applied for step in audit.revisions):
        return
    options = {**comparison(audit.connection), "target_metadata": audit.metadata}
    context = MigrationContext.configure(audit.connection, opts=options)
    script = produce_migrations(context, audit.metadata)
    for operations in script.upgrade_ops_list:
        for operation in _flat(operations.ops):
            yield from _judge(audit, operation)


def _flat(operations: Iterable[MigrateOperation]) -> Iterator[MigrateOperation]:
    for operation in operations:
        if isinstance(operation, ModifyTableOps):
            yield from _flat(operation.ops)
        else:
            yield operation


_RISKS = {
    "column-missing": "every statement of the models fails here",
    "column-unknown": "no model writes it: NOT NULL without a default, it refuses every INSERT",
    "column-changed": "values are refused, cut or read as something else",
    "index-missing": "a query lost its index; a unique one no longer keeps its rule",
    "index-unknown": "no query of ours uses it, every write pays for it, and it may end HOT updates",
    "drift": "what the models say is not what is there",
}


def _judge(audit: Audit, operation: MigrateOperation) -> Iterator[Finding]:
    different: object = cast("Any", operation).to_diff_tuple()
    differences = cast("list[object]", different if isinstance(different, list) else [different])
    kind, *parts = cast("tuple[str, *tuple[Any, ...]]", differences[0])
    table = getattr(parts[-1], "table", None)
    if "constraint" in kind or kind.endswith("_fk"):
        return  # keys.check_constraints sees more of them
    if kind.endswith("_index") and table is not None and table.key not in audit.metadata.tables:
        return  # goes with its table, which is told
    if kind.endswith("_table"):
        yield _table(audit, parts[0], missing=kind.startswith("add"))
        return
    verb, _, what = kind.partition("_")
    code = {
        "add_column": "column-missing",
        "remove_column": "column-unknown",
        "add_index": "index-missing",
        "remove_index": "index-unknown",
    }.get(kind, "column-changed" if verb == "modify" and what in {"type", "nullable", "default"} else "drift")
    looked = ["-- its values are lost: look at them first"] if code == "column-unknown" else []
    risk = f"{'; '.join(told(one) for one in differences)}: {_RISKS[code]}"
    yield finding(code, _where(audit, kind, parts), risk, *looked, *_sql(audit, operation))


def _where(audit: Audit, kind: str, parts: list[Any]) -> str:
    if kind.startswith("modify"):
        schema, table, column = parts[:3]
        return f"{audit.qualified(schema, table)}.{column}"
    if kind.endswith("_column"):
        schema, table, column = parts
        return f"{audit.qualified(schema, table)}.{column.name}"
    named = parts[-1]
    table = getattr(named, "table", None)
    return audit.qualified(table.schema, named.name) if table is not None else str(getattr(named, "name", named))


def _table(audit: Audit, table: Table, *, missing: bool) -> Finding:
    name = audit.qualified(table.schema or "", table.name)
    if not missing:
        return finding(
            "table-unknown",
            name,
            "no model knows it: migrations, erasure of a tenant and this audit's repairs pass it by",
            "-- or give it a model and a migration; elsewhere nobody audits it",
            f"ALTER TABLE {name} SET SCHEMA public",
        )
    risk = "every statement of its model fails; a partitioned one wants its partitions made too"
    return finding("table-missing", name, risk, *_made(audit, table))


def _made(audit: Audit, table: Table) -> list[str]:
    from sqlalchemy.schema import CreateTable

    from ibex_db_core.doctor.definitions import create_index

    guards = table.info.get("guards")
    made = [str(CreateTable(table).compile(dialect=audit.connection.dialect)).strip()]
    made += [create_index(index) for index in sorted(table.indexes, key=lambda index: str(index.name))]
    made.append(f"ALTER TABLE {audit.qualified(table.schema or '', table.name)} OWNER TO {OWNER_ROLE}")
    if table.info.get("tenant_column"):
        made += secure_table(table)
    if isinstance(guards, Guards):
        made += [trigger.create() for trigger in guards.triggers]
        made += [policy.create(f"{table.schema}.{table.name}") for policy in guards.policies]
    return made


def _sql(audit: Audit, operation: MigrateOperation) -> list[str]:
    """Return what Alembic would run."""
    output = io.StringIO()
    options = {"as_sql": True, "output_buffer": output, "literal_binds": True}
    context = MigrationContext.configure(dialect=audit.connection.dialect, opts=options)
    Operations(context).invoke(operation)
    return [statement for part in output.getvalue().split(";\n") if (statement := " ".join(part.split()))]
