"""Settings: what roles and databases bring into every session before anybody has asked."""

from collections.abc import Iterator

from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.doctor.reach import insiders
from ibex_db_core.policies import SIGNATURE_SETTING, TENANT_SETTING

__all__ = ["check_settings"]

_SETTINGS = """
    SELECT pg_get_userbyid(NULLIF(s.setrole, 0))::text AS role, d.datname::text AS database,
           split_part(c.setting, '=', 1) AS name, substr(c.setting, strpos(c.setting, '=') + 1) AS value
      FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) c (setting)
     WHERE (s.setdatabase = 0 OR d.datname = current_database())
       AND split_part(c.setting, '=', 1) = ANY (:names)
     ORDER BY 3, 1 NULLS FIRST, 2 NULLS FIRST
"""
_CODE = "this library's code runs inside every session, with all that the session may do"
_MEANS = {
    TENANT_SETTING: "work that forgot its tenant silently reads and writes this organization's rows",
    SIGNATURE_SETTING: "with it, work that forgot its tenant is taken for signed",
    "role": "connections become another role from the start, whatever they connected as",
    "row_security": "off makes every query that a policy would filter an error, and pg_dump incomplete or refused",
    "session_replication_role": "triggers and foreign keys are not run: org_id, versions and references go unguarded",
    "search_path": "names without a schema are looked up there: who may create in one of them puts things in the way",
    "session_preload_libraries": _CODE,
    "local_preload_libraries": _CODE,
}
_MILD = {
    "row_security": Severity.MEDIUM,
    "search_path": Severity.LOW,
    "session_preload_libraries": Severity.MEDIUM,
    "local_preload_libraries": Severity.MEDIUM,
}


def check_settings(audit: Audit) -> Iterator[Finding]:
    """No role and no database sets the tenant, the role, the path of names or the guards by default."""
    reached = insiders(audit)
    for row in audit.rows(_SETTINGS, names=list(_MEANS)):
        if row.name == "row_security" and row.value in {"on", "true", "1"}:
            continue
        # Of a role that has nothing to do with us they matter to nobody.
        if row.name in {"search_path", "session_preload_libraries", "local_preload_libraries"} and (
            row.role is not None and row.role not in reached
        ):
            continue
        subject = _subject(audit, row.role, row.database)
        yield finding(
            "role-setting",
            f"{row.name} of {subject if row.role or not row.database else subject.lower()}",
            f"set to {row.value!r}: {_MEANS[row.name]}",
            f"ALTER {subject} RESET {row.name}",
            severity=Severity.HIGH if _shadows(row.name, row.value) else _MILD.get(row.name),
        )


def _subject(audit: Audit, role: str | None, database: str | None) -> str:
    place = audit.quote(database) if database else None
    if role:
        return f"ROLE {audit.quote(role)}" + (f" IN DATABASE {place}" if place else "")
    return f"DATABASE {place}" if place else "ROLE ALL"


def _shadows(name: str, value: str) -> bool:
    """Tell whether a path puts other schemas before Postgres's own."""
    schemas = [schema.strip().strip('"') for schema in value.split(",")]
    return name == "search_path" and "pg_catalog" in schemas[1:]
