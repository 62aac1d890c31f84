"""Triggers: those that hold org_id, refuse updates and write versions are there, enabled and unchanged."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

from ibex_db_core.distribution import profile
from ibex_db_core.doctor.catalog import Audit, LiveTable
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.guards import Trigger
from ibex_db_core.policies import trigger

__all__ = ["check_key_triggers", "check_triggers", "trigger_stands"]

_TRIGGERS = """
    SELECT t.tgrelid, t.tgname::text AS name, t.tgenabled IN ('O', 'A') AS enabled, t.tgparentid <> 0 AS cloned,
           pg_get_triggerdef(t.oid) AS definition
      FROM pg_trigger t WHERE t.tgrelid = ANY (:tables) AND NOT t.tgisinternal ORDER BY t.tgrelid, t.tgname
"""
_KEYS = """
    SELECT t.tgrelid, count(*) AS number FROM pg_trigger t
     WHERE t.tgrelid = ANY (:tables) AND t.tgisinternal AND t.tgenabled NOT IN ('O', 'A')
     GROUP BY t.tgrelid ORDER BY t.tgrelid
"""
# As we write it and as pg_get_triggerdef() does: what it stands on, when, and what it calls.
_SHAPE = re.compile(
    r"CREATE TRIGGER \S+ (?P<head>.*?)(?:\s+WHEN \((?P<when>.*)\))?\s+EXECUTE FUNCTION (?P<call>.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class _Live:
    name: str
    enabled: bool
    cloned: bool
    definition: str


def check_triggers(audit: Audit) -> Iterator[Finding]:
    """Every tenant table has its triggers, and no other."""
    live: dict[int, dict[str, _Live]] = {oid: {} for oid in audit.secured}
    for row in audit.rows(_TRIGGERS, tables=list(audit.secured)):
        found = _Live(row.name, row.enabled, row.cloned, row.definition)
        live[cast("int", row.tgrelid)][found.name] = found
    for oid, table in audit.secured.items():
        wanted = {} if table.partition else {made.name: made for made in _wanted(audit, table)}
        for name, made in wanted.items():
            if name not in live[oid]:
                yield finding("trigger-missing", f"{name} on {table.name}", _risk(table, name), made.create())
        yield from _present(audit, table, wanted, live[oid])


def trigger_stands(audit: Audit, table: LiveTable, wanted: Trigger) -> bool:
    """Tell whether a trigger stands on a table exactly as meant, and fires."""
    return any(
        row.name == wanted.name and row.enabled and _alike(audit, table, cast("str", row.definition), wanted.create())
        for row in audit.rows(_TRIGGERS, tables=[table.oid])
    )


def _wanted(audit: Audit, table: LiveTable) -> list[Trigger]:
    own = trigger(
        table.relname,
        append_only=table.append_only,
        touched="updated_at" in table.columns,
        tenant_column=table.tenant_column or "",
        schema=table.schema,
    )
    # The catalog says a name without the quotes that SQL wants.
    there = profile.triggers(audit.metadata) if audit.distributed else ()
    unlinks = [replace(made, name=made.name.strip('"')) for parent, made in there if parent == table.relname]
    return [own, *table.guards.triggers, *unlinks]


def _risk(table: LiveTable, name: str) -> str:
    if not name.endswith("_before_update"):
        return "what it guards or writes (versions, legal steps) is skipped without a word"
    if table.append_only:
        return "history can be rewritten: nothing refuses an UPDATE"
    return "a row can be moved to another organization by whoever sees both, and updated_at stands still"


def _present(audit: Audit, table: LiveTable, wanted: dict[str, Trigger], live: dict[str, _Live]) -> Iterator[Finding]:
    for name, found in live.items():
        quoted = audit.quote(name)
        where = f"{quoted} on {table.name}"
        if name not in wanted and not found.cloned:
            yield finding(
                "trigger-unknown",
                where,
                "no model knows it: it runs inside every write of every organization, and can copy or change rows",
                f"DROP TRIGGER {quoted} ON {table.name}",
            )
        elif name in wanted and not _alike(audit, table, found.definition, wanted[name].create()):
            yield finding(
                "trigger-changed",
                where,
                f"it says {' '.join(found.definition.split())}: {_risk(table, name)}",
                f"DROP TRIGGER {quoted} ON {table.name}",
                wanted[name].create(),
            )
        elif not found.enabled:
            yield finding(
                "trigger-disabled", where, _risk(table, name), f"ALTER TABLE {table.name} ENABLE TRIGGER {quoted}"
            )


def _alike(audit: Audit, table: LiveTable, live: str, wanted: str) -> bool:
    left, right = _SHAPE.match(live), _SHAPE.match(wanted)
    if left is None or right is None:
        return False
    if any(_plain(left[part]) != _plain(right[part]) for part in ("head", "call")):
        return False
    if left["when"] is None or right["when"] is None:
        return left["when"] == right["when"]
    return audit.alike(table, [(left["when"], right["when"])], "new", "old")[0]


def _plain(words: str) -> str:
    return " ".join(words.split()).lower()


def check_key_triggers(audit: Audit) -> Iterator[Finding]:
    """The triggers by which Postgres keeps foreign keys are enabled."""
    for row in audit.rows(_KEYS, tables=list(audit.tables)):
        table = audit.tables[row.tgrelid]
        yield finding(
            "key-disabled",
            table.name,
            f"{row.number} triggers of foreign keys are disabled: rows can point at other organizations' and at none",
            f"ALTER TABLE {table.name} ENABLE TRIGGER ALL",
            severity=None if table.tenant_column else Severity.MEDIUM,
        )
