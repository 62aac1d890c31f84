"""Functions: those of the models unchanged, and nobody else's with rights beyond the caller's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Row

from ibex_db_core.distribution import profile
from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.doctor.reach import services
from ibex_db_core.guards import Function
from ibex_db_core.policies import (
    OWNER_ROLE,
    PLATFORM_ROLE,
    SEARCH_ROLE,
    SIGNED_ORG,
    signed_function,
    trigger_functions,
)

__all__ = ["check_elsewhere", "check_functions", "function_stands"]

_FIELDS = """
    SELECT f.oid, n.nspname AS schema, f.proname::text AS name, pg_get_function_identity_arguments(f.oid) AS arguments,
           CASE f.prokind WHEN 'p' THEN 'PROCEDURE' WHEN 'a' THEN 'AGGREGATE' ELSE 'FUNCTION' END AS kind,
           f.prosecdef AS definer, l.lanname::text AS language, f.prosrc AS body, f.proleakproof AS leakproof,
           CASE f.provolatile WHEN 'i' THEN 'IMMUTABLE' WHEN 's' THEN 'STABLE' ELSE 'VOLATILE' END AS volatility,
           COALESCE(f.proconfig, '{}') AS settings, pg_get_userbyid(f.proowner)::text AS owner,
           pg_get_function_result(f.oid) AS result,
           (o.rolsuper OR o.rolbypassrls OR EXISTS (
               SELECT FROM pg_roles r WHERE r.rolname = ANY (:mighty) AND pg_has_role(o.oid, r.oid, 'USAGE'))
           ) AS mighty,
           ARRAY(SELECT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(g.grantee)::text END
                   FROM aclexplode(COALESCE(f.proacl, acldefault('f', f.proowner))) g
                  WHERE g.grantee <> f.proowner ORDER BY 1) AS callers
      FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace JOIN pg_language l ON l.oid = f.prolang
      JOIN pg_roles o ON o.oid = f.proowner
"""
_EXTENSION = """
    EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = f.oid AND d.deptype = 'e')
"""
_OURS = f"{_FIELDS} WHERE NOT {_EXTENSION} AND n.nspname = ANY (:schemas) ORDER BY 2, 3, 4"
_ELSEWHERE = f"""{_FIELDS}
     WHERE n.nspname <> ALL (:schemas)
       AND (f.prosecdef AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND NOT {_EXTENSION}
            OR f.proleakproof AND (f.oid >= 16384 AND NOT {_EXTENSION}
                                   OR n.nspname = 'pg_catalog' AND f.proname = ANY (:leaky)))
        OR f.proleakproof AND EXISTS (
               SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                WHERE d.classid = 'pg_proc'::regclass AND d.objid = f.oid AND d.deptype = 'e'
                  AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'vector')
     ORDER BY 2, 3, 4
"""
# Marked LEAKPROOF by hand, since row-level security keeps them from indexes;
# their errors or their time then tell of rows that the policy would hide.
_LEAKY = [
    "array_contained",
    "arraycontained",
    "arraycontains",
    "arrayoverlap",
    "jsonb_contains",
    "jsonb_exists",
    "lower",
    "upper",
    "numeric_eq",
    "textlike",
    "textnlike",
    "texticlike",
    "textregexeq",
    "texticregexeq",
    "ts_match_vq",
    "ts_match_qv",
    "jsonb_object_field_text",
]

_PATH = "pg_catalog, pg_temp"
_MIGHTY = [OWNER_ROLE, PLATFORM_ROLE, SEARCH_ROLE]


def check_functions(audit: Audit) -> Iterator[Finding]:
    """The schema holds the functions that the models declare, as they declare them."""
    wanted = {function.signature: function for function in _wanted(audit, signed=audit.signed)}
    others = {function.signature: function for function in _wanted(audit, signed=not audit.signed)}
    rows = audit.rows(_OURS, schemas=audit.schemas, mighty=_MIGHTY)
    live = {f"{row.schema}.{row.name}({row.arguments})": row for row in rows}
    for signature, function in wanted.items():
        if signature not in live:
            risk = "triggers or statements that call it fail, or run without it"
            yield finding("function-missing", signature, risk, *_create(function))
    for signature, row in live.items():
        declared = wanted.get(signature)
        yield from _security(signature, row, declared)
        if declared is None:
            risk = f"no model knows it; whoever may execute it ({', '.join(row.callers) or 'its owner'}) runs it"
            yield finding("function-unknown", signature, risk, f"DROP {row.kind} {signature}")
        elif _changed(row, declared) and not _changed(row, others[signature]):
            yield _mixed(audit, signature, declared)
        elif _changed(row, declared):
            risk = "it no longer does what its triggers and callers rely on"
            yield finding("function-changed", signature, risk, *_create(declared))
        owner = (declared.definer if declared is not None else None) or OWNER_ROLE
        if row.owner != owner:
            risk = f"{row.owner} may replace it at any time by something that runs inside every tenant's writes"
            yield finding("function-owner", signature, risk, f"ALTER {row.kind} {signature} OWNER TO {owner}")


def function_stands(audit: Audit, wanted: Function) -> bool:
    """Tell whether a function is there exactly as meant: owner, rights, settings and callers included."""
    for row in audit.rows(_OURS, schemas=[wanted.schema], mighty=_MIGHTY):
        if f"{row.schema}.{row.name}({row.arguments})" == wanted.signature:
            return (
                not _changed(row, wanted)
                and (row.owner, row.definer) == (wanted.definer or OWNER_ROLE, wanted.definer is not None)
                and _live(row) == dict(wanted.settings)
                and set(row.callers) == set(wanted.callers)
                and not row.leakproof
            )
    return False


def _wanted(audit: Audit, *, signed: bool) -> Sequence[Function]:
    declared = [
        signed_function(function) if signed else function
        for table in audit.roots.values()
        if table.mapped is not None
        for function in table.guards.functions
    ]
    if audit.distributed:
        there = {function.signature: function for function in profile.functions(audit.metadata)}
        declared = list({**{function.signature: function for function in declared}, **there}.values())
    return [*trigger_functions(), SIGNED_ORG, *declared]


def _mixed(audit: Audit, signature: str, wanted: Function) -> Finding:
    if audit.signed:
        risk = "signing is on and this function takes the tenant unsigned: SQL injected into a service reads through it"
    else:
        risk = "signing is off and this function demands a signature, which nobody can make: services fail here"
    severity = None if audit.signed else Severity.MEDIUM
    return finding("signing-mixed", signature, risk, *_create(wanted), severity=severity)


def _create(function: Function) -> list[str]:
    statements = [function.create(), f"ALTER FUNCTION {function.signature} OWNER TO {function.definer or OWNER_ROLE}"]
    if function.definer:
        statements.append(f"REVOKE ALL ON FUNCTION {function.signature} FROM PUBLIC")
    if function.callers:
        statements.append(f"GRANT EXECUTE ON FUNCTION {function.signature} TO {', '.join(function.callers)}")
    return statements


def _changed(row: Row[Any], wanted: Function) -> bool:
    return (
        _plain(row.body) != _plain(wanted.body)
        or (row.language, row.volatility, row.result) != (wanted.language, wanted.volatility, wanted.result)
        or (not row.definer and wanted.definer is not None)
        or _settings(row, _live(row), wanted) != _settings(row, wanted.settings, wanted)
    )


def _settings(row: Row[Any], settings: Mapping[str, str], wanted: Function) -> dict[str, str]:
    """Leave out the search_path of a definer's function, which has a code of its own."""
    told = row.definer and wanted.definer is not None
    return {name: value for name, value in settings.items() if not (told and name == "search_path")}


def _live(row: Row[Any]) -> dict[str, str]:
    return dict(setting.split("=", 1) for setting in row.settings)


def _plain(body: str) -> str:
    return " ".join(body.split())


def _security(signature: str, row: Row[Any], declared: Function | None) -> Iterator[Finding]:
    alter = f"ALTER {row.kind} {signature}"
    allowed = declared is not None and declared.definer is not None
    if row.definer and not allowed:
        risk = f"it runs with the rights of {row.owner}, so its caller may see and change what policies hide"
        yield finding("function-definer", signature, risk, f"{alter} SECURITY INVOKER")
    elif row.definer and declared is not None:
        # Without pg_temp at the end, the caller's temporary schema is looked through first.
        path, told = declared.settings.get("search_path", _PATH), _live(row).get("search_path")
        if told != path:
            risk = f"its search_path is {told or 'the one of its caller'}: what a caller puts there runs as {row.owner}"
            yield finding("function-search-path", signature, risk, f"{alter} SET search_path = {path}")
    if row.definer and declared is not None and allowed:
        for caller in sorted(set(row.callers) - set(declared.callers)):
            who = "every login of the database" if caller == "PUBLIC" else caller
            risk = f"{who} may run it with the rights of {row.owner}"
            yield finding("function-public", signature, risk, f"REVOKE EXECUTE ON {row.kind} {signature} FROM {caller}")
        for caller in sorted(set(declared.callers) - set(row.callers)):
            risk = f"services of {caller} fail where they call it"
            grant = f"GRANT EXECUTE ON {row.kind} {signature} TO {caller}"
            yield finding("grant-missing", f"{signature} to {caller}", risk, grant)
    if row.leakproof:
        yield _leakproof(signature, row)


def _leakproof(signature: str, row: Row[Any]) -> Finding:
    risk = "it is run before policies have hidden rows: its errors and its time tell of other organizations' values"
    return finding("function-leakproof", signature, risk, f"ALTER {row.kind} {signature} NOT LEAKPROOF")


def check_elsewhere(audit: Audit) -> Iterator[Finding]:
    """No function of another schema lends services the rights of a role that policies do not bind."""
    reached = services(audit) | {"PUBLIC"}
    for row in audit.rows(_ELSEWHERE, schemas=audit.schemas, leaky=_LEAKY, mighty=_MIGHTY):
        signature = f"{audit.qualified(row.schema, row.name)}({row.arguments})"
        if row.leakproof:
            yield _leakproof(signature, row)
        if row.definer and row.mighty and (callers := sorted(reached & set(row.callers))):
            risk = f"services may run it with the rights of {row.owner}, whom policies do not bind"
            names = ", ".join(audit.quote(caller) for caller in callers)
            remedy = f"REVOKE EXECUTE ON {row.kind} {signature} FROM {names}"
            yield finding("function-definer", signature, risk, remedy, severity=Severity.HIGH)
