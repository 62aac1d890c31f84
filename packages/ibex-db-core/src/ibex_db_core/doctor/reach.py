"""Reach: whom a role is, or may become, through its memberships."""

from typing import cast

from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, ROLES, SEARCH_ROLE

__all__ = ["EDGES", "REACH", "connected", "insiders", "services"]

# One membership each.  On Postgres 16+ one with neither INHERIT nor SET is no
# way to rows by itself; with ADMIN it is one GRANT away, which doctor.roles
# tells of those who work for tenants.
EDGES = """
    SELECT m.member, m.roleid, m.grantor, m.admin_option AS admins,
           COALESCE((to_jsonb(m) ->> 'inherit_option') = 'true', r.rolinherit) AS inherits,
           COALESCE((to_jsonb(m) ->> 'set_option') = 'true', true) AS sets,
           to_jsonb(m) ? 'inherit_option' AS modern
      FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
"""
REACH = f"""
    edge AS ({EDGES}),
    reach (start, via, grantor, modern, oid, inherits) AS (
        SELECT e.member, e.roleid, e.grantor, e.modern, e.roleid, e.inherits FROM edge e WHERE e.inherits OR e.sets
        UNION
        SELECT r.start, r.via, r.grantor, r.modern, e.roleid, r.inherits AND e.inherits
          FROM reach r JOIN edge e ON e.member = r.oid WHERE e.inherits OR e.sets
    )
"""

# Superusers hold everything without a grant: roles.check_logins tells of those.
_REACHED = f"""
    WITH RECURSIVE {REACH},
    start AS (SELECT DISTINCT r.start FROM reach r JOIN pg_roles t ON t.oid = r.oid JOIN pg_roles l ON l.oid = r.start
               WHERE t.rolname = ANY (:targets) AND NOT l.rolsuper AND l.rolname <> ALL (:ours))
    SELECT pg_get_userbyid(s.start)::text AS name FROM start s
    UNION SELECT pg_get_userbyid(r.oid)::text FROM start s JOIN reach r ON r.start = s.start
     ORDER BY 1
"""


def services(audit: Audit) -> set[str]:
    """The members of ibex_app, and all that they are or may become, but for our other roles."""
    return _reached(audit, [APP_ROLE]) - {OWNER_ROLE, PLATFORM_ROLE, SEARCH_ROLE} | {APP_ROLE}


def connected(audit: Audit) -> set[str]:
    """The same of ibex_app's and ibex_platform's members together, and our roles themselves."""
    return _reached(audit, [APP_ROLE, PLATFORM_ROLE]) | set(ROLES)


def insiders(audit: Audit) -> set[str]:
    """The same of ibex_owner's too: all whom our roles have anything to do with."""
    return _reached(audit, list(ROLES)) | set(ROLES)


def _reached(audit: Audit, targets: list[str]) -> set[str]:
    return {cast("str", row.name) for row in audit.rows(_REACHED, targets=targets, ours=list(ROLES))}
