"""Policies: exactly the expected ones, word for word, and no function that could be folded into a plan."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from ibex_db_core.doctor.catalog import Audit, LiveTable
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.guards import Policy
from ibex_db_core.policies import APP_ROLE, SIGNED_CALL, TENANT_SETTING, platform_policy, policies

__all__ = ["check_functions", "check_policies", "policy_stands"]

_POLICIES = """
    SELECT p.polrelid, p.polname::text AS name, p.polpermissive AS permissive,
           CASE p.polcmd WHEN '*' THEN 'ALL' WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT'
                         WHEN 'w' THEN 'UPDATE' ELSE 'DELETE' END AS command,
           ARRAY(SELECT CASE role WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(role)::text END
                   FROM unnest(p.polroles) role) AS roles,
           pg_get_expr(p.polqual, p.polrelid) AS using, pg_get_expr(p.polwithcheck, p.polrelid) AS check
      FROM pg_policy p WHERE p.polrelid = ANY (:tables) ORDER BY p.polrelid, p.polname
"""
_FUNCTIONS = """
    SELECT DISTINCT p.polrelid, p.polname::text AS name, f.oid::regprocedure::text AS function,
           f.provolatile = 'i' AS immutable
      FROM pg_policy p
      JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
       AND d.refclassid = 'pg_proc'::regclass
      JOIN pg_proc f ON f.oid = d.refobjid
     WHERE p.polrelid = ANY (:tables) ORDER BY 1, 2, 3
"""


@dataclass(frozen=True, slots=True)
class _Live:
    name: str
    permissive: bool
    command: str
    roles: tuple[str, ...]
    using: str | None
    check: str | None

    def says(self, wanted: Policy) -> bool:
        return (self.permissive, self.command, self.roles) == (wanted.permissive, wanted.command, (wanted.role,))


def _live(audit: Audit, tables: Sequence[int]) -> dict[int, list[_Live]]:
    live: dict[int, list[_Live]] = {}
    for row in audit.rows(_POLICIES, tables=list(tables)):
        made = _Live(row.name, row.permissive, row.command, tuple(row.roles), row.using, row.check)
        live.setdefault(cast("int", row.polrelid), []).append(made)
    return live


def policy_stands(audit: Audit, table: LiveTable, wanted: Policy) -> bool:
    """Tell whether a policy stands on a table exactly as meant."""
    found = [live for live in _live(audit, [table.oid]).get(table.oid, []) if live.name == wanted.name]
    return bool(found) and not _wrong(audit, table, [(found[0], wanted)])


def check_policies(audit: Audit) -> Iterator[Finding]:
    """Every tenant table has its policies, and no other; partitions have none."""
    live = _live(audit, list(audit.secured))
    for oid, table in audit.secured.items():
        found = {policy.name: policy for policy in live.get(oid, [])}
        if table.partition:
            yield from _extra(audit, table, found.values())
            continue
        wanted = _wanted(audit, table)
        names = {policy.name for policy in wanted}
        present = [policy for policy in wanted if policy.name in found]
        wrong = _wrong(audit, table, [(found[policy.name], policy) for policy in present])
        others = [policy for policy in _tenant(table, signed=not audit.signed) if policy.name in wrong]
        mixed = {policy.name for policy in others} - _wrong(audit, table, [(found[one.name], one) for one in others])
        yield from (_mixed(audit, table, policy) for policy in present if policy.name in mixed)
        yield from (_changed(table, found[policy.name], policy) for policy in present if policy.name in wrong - mixed)
        yield from (_missing(table, policy) for policy in wanted if policy.name not in found)
        yield from _extra(audit, table, [policy for name, policy in found.items() if name not in names])


def _wanted(audit: Audit, table: LiveTable) -> list[Policy]:
    if table.platform_only:
        return [platform_policy(table.relname), *table.guards.policies]
    return [*_tenant(table, signed=audit.signed), *table.guards.policies]


def _tenant(table: LiveTable, *, signed: bool) -> list[Policy]:
    if table.platform_only:
        return []
    return policies(table.relname, tenant_column=table.tenant_column or "", signed=signed)


def _mixed(audit: Audit, table: LiveTable, wanted: Policy) -> Finding:
    if audit.signed:
        risk = "signing is on and this policy takes the setting as it comes: injected SQL opens any organization's rows"
    else:
        risk = "signing is off and this policy is of a signed table: services fail, or searches lose their index"
    return finding(
        "signing-mixed",
        f"{wanted.name} on {table.name}",
        risk,
        f"DROP POLICY {wanted.name} ON {table.name}",
        wanted.create(table.name),
        severity=None if audit.signed else Severity.MEDIUM,
    )


# A sub-select, as we and as Postgres write it; EXPLAIN, which compares, would show an init plan's number in its place.
_SUB_SELECT = re.compile(
    rf"""\(\s*SELECT\s+(?P<inside>{re.escape(SIGNED_CALL)}
        |\(?NULLIF\(current_setting\('{re.escape(TENANT_SETTING)}'(?:::text)?,\ true\),\ ''(?:::text)?\)\)?::uuid)
        (?:\s+AS\s+"?\w+"?)?\)""",
    re.VERBOSE,
)


def _told(expression: str) -> str:
    """Write a sub-select as something that EXPLAIN shows, and that is not the same as what is inside it."""
    return _SUB_SELECT.sub(r"COALESCE(\g<inside>, \g<inside>)", expression)


def _wrong(audit: Audit, table: LiveTable, pairs: Sequence[tuple[_Live, Policy]]) -> set[str]:
    """Return the names of the policies that are not for whom, or do not say what, they should."""
    wrong = {live.name for live, wanted in pairs if not live.says(wanted)}
    spoken: list[tuple[str, str, str]] = []
    for live, wanted in pairs:
        expressions = {"INSERT": [live.check], "SELECT": [live.using], "DELETE": [live.using]}.get(
            # Without WITH CHECK, USING is checked.
            wanted.command,
            [live.using, live.check if live.check is not None else live.using],
        )
        spoken += [(live.name, expression or "NULL::boolean", wanted.using) for expression in expressions]
    same = audit.alike(table, [(_told(expression), _told(wanted)) for _, expression, wanted in spoken])
    return wrong | {name for (name, _, _), alike in zip(spoken, same, strict=True) if not alike}


def _changed(table: LiveTable, live: _Live, wanted: Policy) -> Finding:
    kind = "permissive" if live.permissive else "restrictive"
    return finding(
        "policy-changed",
        f"{live.name} on {table.name}",
        f"it is {kind} FOR {live.command} TO {', '.join(live.roles)} USING ({live.using}) WITH CHECK ({live.check}) "
        f"and not what isolates tenants: rows may be read or written across organizations, or not at all",
        f"DROP POLICY {live.name} ON {table.name}",
        wanted.create(table.name),
        severity=Severity.CRITICAL if APP_ROLE in {wanted.role, *live.roles} or "PUBLIC" in live.roles else None,
    )


def _missing(table: LiveTable, wanted: Policy) -> Finding:
    if wanted.permissive:
        return finding(
            "policy-missing",
            f"{wanted.name} on {table.name}",
            f"{wanted.role} sees no row of the table and can write none; a hasty replacement may open it",
            wanted.create(table.name),
        )
    return finding(
        "policy-floor-missing",
        f"{wanted.name} on {table.name}",
        "without the restrictive floor, one more permissive policy opens every organization's rows",
        wanted.create(table.name),
    )


def _extra(audit: Audit, table: LiveTable, found: Iterable[_Live]) -> Iterator[Finding]:
    for policy in found:
        name = audit.quote(policy.name)
        yield finding(
            "policy-extra",
            f"{name} on {table.name}",
            f"no model knows it: TO {', '.join(policy.roles)} USING ({policy.using}) "
            + ("opens rows beside the tenant's own policy" if policy.permissive else "hides rows that should be seen"),
            f"DROP POLICY {name} ON {table.name}",
            severity=None if policy.permissive else Severity.MEDIUM,
        )


def check_functions(audit: Audit) -> Iterator[Finding]:
    """No policy calls a function outside Postgres's own, but for a floor's signed_org()."""
    known: Mapping[int, LiveTable] = audit.secured
    for row in audit.rows(_FUNCTIONS, tables=list(known)):
        table = known[row.polrelid]
        name = audit.quote(row.name)
        if row.function == SIGNED_CALL and row.name == f"{table.relname}_floor" and not row.immutable:
            continue  # check_policies says whether it should
        if row.immutable:
            risk = "is IMMUTABLE: folded into a cached plan, one tenant's answer is served to the next"
        else:
            risk = "decides who sees what: whoever may replace it opens the table, and it hides the index's condition"
        wanted = next((policy for policy in _wanted(audit, table) if policy.name == row.name), None)
        again = [wanted.create(table.name)] if wanted is not None and not table.partition else []
        yield finding(
            "policy-function",
            f"{name} on {table.name}",
            f"{row.function}, which the policy calls, {risk}",
            f"DROP POLICY IF EXISTS {name} ON {table.name}",
            *again,
            severity=Severity.CRITICAL if row.immutable else None,
        )
