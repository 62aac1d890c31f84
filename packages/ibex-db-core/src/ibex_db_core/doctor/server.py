"""The server: what it keeps for superusers is not lent to those who work for tenants."""

from collections.abc import Iterator

from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.doctor.reach import connected

__all__ = ["check_event_triggers", "check_parameters", "check_reserved"]

_GRANTEE = "CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(g.grantee)::text END AS grantee"
_PARAMETERS = f"""
    SELECT p.parname AS name, {_GRANTEE}, g.privilege_type AS privilege
      FROM pg_parameter_acl p, aclexplode(p.paracl) g ORDER BY 1, 2, 3
"""
_CODE = "it runs libraries of one's choice inside the server"
_MEANS = {
    "session_replication_role": "SET to replica, triggers and foreign keys are not run: rows can point at other "
    "organizations' and at none, org_id can be changed, history rewritten",
    "allow_system_table_mods": "the catalog itself can be changed: roles, policies, functions",
    "session_preload_libraries": _CODE,
    "dynamic_library_path": _CODE,
    "jit_provider": _CODE,
}


def check_parameters(audit: Audit) -> Iterator[Finding]:
    """Nobody who works for tenants or the platform may set what is kept for superusers."""
    reached = connected(audit) | {"PUBLIC"}
    for row in audit.rows(_PARAMETERS):
        if row.grantee not in reached:
            continue
        grantee = audit.quote(row.grantee)
        if row.privilege == "ALTER SYSTEM":
            risk, severity = "ALTER SYSTEM changes it for the whole server, every login and every database", None
        elif row.name in _MEANS:
            risk, severity = _MEANS[row.name], None
        else:
            risk, severity = "it is kept for superusers: logs, limits and checks can be switched off", Severity.MEDIUM
        yield finding(
            "parameter-grant",
            f"{row.privilege} {row.name} to {grantee}",
            risk,
            f"REVOKE {row.privilege} ON PARAMETER {row.name} FROM {grantee} CASCADE",
            severity=severity,
        )


# What initdb took from PUBLIC; what it granted itself, to pg_monitor for example, is a membership's matter.
_RESERVED = f"""
    SELECT f.oid::regprocedure::text AS signature, {_GRANTEE}
      FROM pg_proc f JOIN pg_init_privs i ON i.classoid = 'pg_proc'::regclass AND i.objoid = f.oid AND i.privtype = 'i',
           aclexplode(f.proacl) g
     WHERE f.pronamespace = 'pg_catalog'::regnamespace AND f.prokind = 'f' AND g.privilege_type = 'EXECUTE'
       AND NOT EXISTS (SELECT FROM aclexplode(i.initprivs) k WHERE k.grantee IN (0, g.grantee))
     ORDER BY 1, 2
"""


def check_reserved(audit: Audit) -> Iterator[Finding]:
    """Nobody who works for tenants or the platform may call the functions that installation took from PUBLIC."""
    reached = connected(audit) | {"PUBLIC"}
    for row in audit.rows(_RESERVED):
        if row.grantee in reached:
            grantee = audit.quote(row.grantee)
            yield finding(
                "function-reserved",
                f"pg_catalog.{row.signature} to {grantee}",
                "installation keeps it for superusers: such functions read and write the server's files, "
                "or steer the server, past every policy",
                f"REVOKE EXECUTE ON FUNCTION pg_catalog.{row.signature} FROM {grantee} CASCADE",
            )


_EVENTS = """
    SELECT e.evtname::text AS name, e.evtevent::text AS event, f.oid::regprocedure::text AS function,
           pg_get_userbyid(f.proowner)::text AS owner, o.rolsuper
      FROM pg_event_trigger e JOIN pg_proc f ON f.oid = e.evtfoid JOIN pg_roles o ON o.oid = f.proowner
     WHERE e.evtenabled <> 'D'
       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid
                                                 AND d.deptype = 'e')
     ORDER BY 1
"""


def check_event_triggers(audit: Audit) -> Iterator[Finding]:
    """No code of others runs inside migrations or logins unnoticed."""
    for row in audit.rows(_EVENTS):
        name = audit.quote(row.name)
        yield finding(
            "event-trigger",
            name,
            f"on {row.event} it runs {row.function} of {row.owner} with the rights of whoever is at work, "
            "the owner in a migration; if that is meant, leave this code out of the audit",
            f"DROP EVENT TRIGGER {name}",
            severity=None if row.rolsuper else Severity.HIGH,
        )
