"""Keys and constraints: org_id on both sides of every key, first in every unique one, and all as the models say."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from ibex_db_core.doctor import definitions
from ibex_db_core.doctor.catalog import Audit, LiveTable
from ibex_db_core.doctor.findings import Finding, finding

__all__ = ["check_constraints", "check_foreign_keys", "check_unique_keys"]

_COLUMNS = """ARRAY(SELECT a.attname::text FROM unnest(k.{keys}) WITH ORDINALITY u (number, place)
    JOIN pg_attribute a ON a.attrelid = k.{relation} AND a.attnum = u.number ORDER BY u.place)"""
_FOREIGN = f"""
    SELECT k.conname::text AS name, k.conrelid, k.confrelid, pg_get_constraintdef(k.oid) AS definition,
           {_COLUMNS.format(keys="conkey", relation="conrelid")} AS columns,
           {_COLUMNS.format(keys="confkey", relation="confrelid")} AS targets
      FROM pg_constraint k
     WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid = ANY (:tables) AND k.confrelid = ANY (:tables)
     ORDER BY k.conrelid, k.conname
"""


def check_foreign_keys(audit: Audit) -> Iterator[Finding]:
    """A key between tenants' tables holds the organization on both sides: its checks ignore policies."""
    for row in audit.rows(_FOREIGN, tables=list(audit.tenant_tables)):
        child, parent = audit.tenant_tables[row.conrelid], audit.tenant_tables[row.confrelid]
        pairs = list(zip(row.columns, row.targets, strict=True))
        if (child.tenant_column, parent.tenant_column) in pairs:
            continue
        name = audit.quote(row.name)
        action = re.sub(r"^.*?\)(?= REFERENCES).*?\)", "", row.definition)
        columns, targets = ", ".join(row.columns), ", ".join(row.targets)
        if "SET NULL" in action:  # of the link only: org_id is never NULL
            action = action.replace("SET NULL", f"SET NULL ({columns})")
        yield finding(
            "key-without-org",
            f"{name} on {child.name}",
            "a tenant can point at another's row, learn by trying which ids exist there, and lose rows "
            "when the other deletes its own: foreign-key checks ignore row-level security",
            f"ALTER TABLE {child.name} DROP CONSTRAINT {name}",
            f"ALTER TABLE {child.name} ADD CONSTRAINT {name} FOREIGN KEY ({child.tenant_column}, {columns}) "
            f"REFERENCES {parent.name} ({parent.tenant_column}, {targets}){action}",
        )


_UNIQUE = """
    SELECT c.relname::text AS name, n.nspname, i.indrelid, i.indisprimary, k.conname::text AS constraint,
           a.attname::text AS first, pg_get_indexdef(i.indexrelid) AS definition,
           ARRAY(SELECT x.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY u (number, place)
                   JOIN pg_attribute x ON x.attrelid = i.indrelid AND x.attnum = u.number
                  WHERE u.place <= i.indnkeyatts ORDER BY u.place) AS columns
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')
      LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
     WHERE (i.indisunique OR i.indisexclusion) AND i.indrelid = ANY (:tables)
       AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = i.indexrelid)
     ORDER BY i.indrelid, c.relname
"""


def check_unique_keys(audit: Audit) -> Iterator[Finding]:
    """Unique keys begin with org_id; those of the organizations themselves apart."""
    scoped = {oid: table for oid, table in audit.tenant_tables.items() if table.tenant_column == "org_id"}
    for row in audit.rows(_UNIQUE, tables=list(scoped)):
        if row.first == "org_id":
            continue
        table, name = scoped[row.indrelid], audit.quote(row.name)
        mapped = table.mapped
        known = mapped is not None and row.name in {
            *definitions.constraints(mapped),
            *(index.name for index in mapped.indexes),
        }
        if row.constraint is not None:
            remedy = [f"ALTER TABLE {table.name} DROP CONSTRAINT {audit.quote(row.constraint)}"]
        else:
            remedy = [f"DROP INDEX {audit.quote(row.nspname)}.{name}"]
        if known or row.indisprimary:
            kind = "PRIMARY KEY" if row.indisprimary else "UNIQUE"
            columns = ", ".join(["org_id", *(column for column in row.columns if column != "org_id")])
            remedy.append(f"ALTER TABLE {table.name} ADD CONSTRAINT {name} {kind} ({columns})")
        yield finding(
            "unique-without-org",
            f"{name} on {table.name}",
            "a duplicate is refused across organizations: a tenant learns what others hold, and can take it from them",
            *remedy,
        )


_CONSTRAINTS = """
    SELECT k.conname::text AS name, k.conrelid, k.contype::text AS kind, pg_get_constraintdef(k.oid) AS definition,
           pg_get_expr(k.conbin, k.conrelid) AS expression, k.convalidated AS valid,
           COALESCE((to_jsonb(k) ->> 'conenforced') = 'true', true) AS enforced
      FROM pg_constraint k
     WHERE k.conrelid = ANY (:tables) AND k.contype IN ('c', 'f', 'p', 'u', 'x') AND k.conparentid = 0
     ORDER BY k.conrelid, k.conname
"""


@dataclass(frozen=True, slots=True)
class _Live:
    name: str
    kind: str
    definition: str
    expression: str | None
    valid: bool


def check_constraints(audit: Audit) -> Iterator[Finding]:
    """The constraints of each model's table are those of the model, CHECK rules and keys' actions included."""
    mapped = {oid: table for oid, table in audit.tables.items() if table.mapped is not None and not table.partition}
    live: dict[int, dict[str, _Live]] = {oid: {} for oid in mapped}
    for row in audit.rows(_CONSTRAINTS, tables=list(mapped)):
        found = _Live(row.name, row.kind, row.definition, row.expression, row.valid and row.enforced)
        live[cast("int", row.conrelid)][found.name] = found
    for oid, table in mapped.items():
        yield from _compare(audit, table, live[oid])


def _compare(audit: Audit, table: LiveTable, live: dict[str, _Live]) -> Iterator[Finding]:
    if table.mapped is None:
        return
    wanted = definitions.constraints(table.mapped)
    both = [name for name in wanted if name in live]
    rules = {name: _there(audit, definitions.rule(wanted[name])) for name in both}
    checks = [name for name in both if live[name].expression is not None]
    same = audit.alike(table, [(live[name].expression or "", rules[name]) for name in checks])
    wrong = {name for name, alike in zip(checks, same, strict=True) if not alike} | {
        name for name in both if name not in checks and _plain(live[name].definition) != _plain(rules[name])
    }
    drop = f"ALTER TABLE {table.name} DROP CONSTRAINT"
    for name, constraint in wanted.items():
        where, add = f"{name} on {table.name}", _there(audit, definitions.add_constraint(constraint))
        if name not in live:
            yield finding("constraint-missing", where, "rows that the models rule out can be written", add)
        elif name in wrong:
            risk = f"it says {live[name].definition}: rows that the models rule out can be written, or good ones not"
            yield finding("constraint-changed", where, risk, f"{drop} {name}", add)
        elif not live[name].valid:
            risk = "it was added without a look at the rows: some may break it, and the planner cannot rely on it"
            yield finding("constraint-not-valid", where, risk, *_validated(table, name, add, live[name]))
    for name in live.keys() - wanted.keys():
        quoted = audit.quote(name)
        risk = f"no model knows it: {live[name].definition}; writes that the models allow are refused"
        yield finding("constraint-unknown", f"{quoted} on {table.name}", risk, f"{drop} {quoted}")


def _there(audit: Audit, definition: str) -> str:
    """Return a key as it is on shards, where a trigger does what ON DELETE SET NULL does elsewhere."""
    return definition.partition(" ON DELETE SET NULL")[0] if audit.distributed else definition


def _validated(table: LiveTable, name: str, add: str, live: _Live) -> Sequence[str]:
    if "NOT ENFORCED" in live.definition:
        return (f"ALTER TABLE {table.name} DROP CONSTRAINT {name}", add)
    return (f"ALTER TABLE {table.name} VALIDATE CONSTRAINT {name}",)


def _plain(definition: str) -> str:
    """Take away what two spellings of one key may differ in."""
    return re.sub(r'\s|"|NOTVALID$|NOTENFORCED$', "", re.sub(r'\s|"', "", definition)).lower()
