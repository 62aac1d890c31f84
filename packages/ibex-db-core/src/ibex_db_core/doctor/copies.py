"""A copy that a procedure of ours keeps beside a table: one finding, in place of those for each object that it made."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ibex_db_core.doctor.catalog import Audit, LiveTable
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.doctor.functions import function_stands
from ibex_db_core.doctor.policies import policy_stands
from ibex_db_core.doctor.triggers import trigger_stands
from ibex_db_core.guards import Copying
from ibex_db_core.policies import OWNER_ROLE

__all__ = ["told_as_one", "under_way"]

# What a table lacks that nobody but the owner may touch yet; it gets all of this when it takes the other's name.
# Whatever opens it (a grant, a policy, a trigger, a rule, no row-level security) is told as on any table.
_LACKS = {
    "table-unknown",
    "rls-not-forced",
    "policy-missing",
    "policy-floor-missing",
    "trigger-missing",
    "grant-missing",
}

_COLUMNS = """
    SELECT c.oid = :table AS own, c.relkind = 'p' AND pg_get_partkeydef(c.oid) = pg_get_partkeydef(:table) AS alike,
           ARRAY(SELECT quote_ident(a.attname) FROM pg_attribute a
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                  ORDER BY a.attnum) AS columns,
           ARRAY(SELECT (a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated)::text FROM pg_attribute a
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS shape
      FROM pg_class c WHERE c.oid IN (:table, :copy)
"""
_INVALID = """
    SELECT n.nspname, c.relname::text AS name
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE i.indrelid = ANY (:tables)
"""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A copy that is there, as its procedure makes it."""

    copying: Copying
    table: LiveTable
    copy: LiveTable
    parts: tuple[LiveTable, ...]
    columns: tuple[str, ...]


def under_way(audit: Audit) -> Iterator[str]:
    """Yield the names of the copies that procedures of ours are making, without their schemas."""
    for found in _found(audit):
        yield found.copy.relname


def told_as_one(audit: Audit, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, those for what a procedure of ours made itself in one; all others stay."""
    kept = list(findings)
    for found in _found(audit):
        expected, strange = _expected(audit, found)
        rest = [one for one in kept if (one.code, one.object) not in expected and not _lacks(one, found.copy)]
        if len(rest) < len(kept):
            kept = [*rest, _finding(found, strange)]
    return kept


def _found(audit: Audit) -> Iterator[_UnderWay]:
    for table in audit.roots.values():
        copying = table.guards.copying
        if copying is None:
            continue
        named = (one for one in audit.tables.values() if (one.schema, one.relname) == (table.schema, copying.copy))
        if (copy := next(named, None)) is None:
            continue
        parts = tuple(one for one in audit.tables.values() if one.root == copy.oid and one.oid != copy.oid)
        looks = {bool(row.own): row for row in audit.rows(_COLUMNS, table=table.oid, copy=copy.oid)}
        ours = all(one.owner == OWNER_ROLE for one in (copy, *parts))
        if ours and looks[False].alike and looks[False].shape == looks[True].shape:
            columns: Sequence[str] = looks[True].columns
            yield _UnderWay(copying, table, copy, parts, tuple(columns))


def _expected(audit: Audit, found: _UnderWay) -> tuple[set[tuple[str, str]], list[str]]:
    """Return code and object of what its procedure brings about, and the objects that are not as it makes them."""
    copying, table, copy = found.copying, found.table, found.copy
    function = copying.function(found.columns)
    trigger, policy = f"{copying.trigger.name} on {table.name}", f"{copying.policy.name} on {table.name}"
    belonging = (
        (trigger_stands(audit, table, copying.trigger), trigger, ("trigger-unknown",)),
        (function_stands(audit, function), function.signature, ("function-unknown", "function-definer")),
        (policy_stands(audit, table, copying.policy), policy, ("policy-extra",)),
    )
    expected = {(code, where) for stands, where, codes in belonging if stands for code in codes}
    for row in audit.rows(_INVALID, tables=[copy.oid, *(part.oid for part in found.parts)]):
        expected.add(("index-invalid", audit.qualified(str(row.nspname), str(row.name))))
    return expected, [where for stands, where, _ in belonging if not stands]


def _lacks(one: Finding, copy: LiveTable) -> bool:
    of = one.object == copy.name or one.object.endswith(f" on {copy.name}") or one.object.startswith(f"{copy.name} to ")
    return of and one.code in _LACKS


def _finding(found: _UnderWay, strange: Sequence[str]) -> Finding:
    risk = found.copying.risk.format(partitions=len(found.parts))
    if strange:
        risk += f". NOT as it makes them: {', '.join(strange)}; writes may fail, or pass the copy by: abandon it"
    remedy = [f"-- {line.format(partitions=len(found.parts))}" for line in found.copying.remedy]
    severity = Severity.HIGH if strange else None
    return finding(found.copying.code, found.copy.name, risk, *remedy, severity=severity)
