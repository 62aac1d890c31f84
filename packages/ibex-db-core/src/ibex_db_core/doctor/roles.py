"""Roles: nobody who works for a tenant can become, or already is, somebody whom policies do not bind."""

from collections.abc import Iterator

from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.doctor.reach import EDGES, REACH
from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, ROLES, SEARCH_ROLE

__all__ = ["check_administrators", "check_beside", "check_logins", "check_memberships", "check_roles"]

_ROLES = "SELECT * FROM pg_roles WHERE rolname = ANY (:roles)"
_ATTRIBUTES = {
    "rolsuper": "SUPERUSER",
    "rolbypassrls": "BYPASSRLS",
    "rolreplication": "REPLICATION",
    "rolcreaterole": "CREATEROLE",
    "rolcreatedb": "CREATEDB",
    "rolcanlogin": "LOGIN",
}
_GRAVE = {"SUPERUSER", "BYPASSRLS", "REPLICATION", "CREATEROLE"}


def check_roles(audit: Audit) -> Iterator[Finding]:
    """Our roles exist, cannot log in, and have no power of their own."""
    live = {row.rolname: row for row in audit.rows(_ROLES, roles=list(ROLES))}
    # The nodes of a cluster connect to each other under these names.
    idle = {word for word in _ATTRIBUTES.values() if word != "LOGIN" or not audit.distributed}
    for role in ROLES:
        if role not in live:
            yield finding(
                "role-missing",
                role,
                "policies and grants that speak of it are gone, and migrations fail",
                f"CREATE ROLE {role} NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE",
            )
            continue
        has = [word for attribute, word in _ATTRIBUTES.items() if word in idle and getattr(live[role], attribute)]
        if has:
            grave = bool(_GRAVE & set(has))
            yield finding(
                "role-attribute",
                role,
                f"it has {', '.join(has)}: "
                + ("it reads past every policy, or can make itself able to" if grave else "it is for membership only"),
                f"ALTER ROLE {role} {' '.join('NO' + word for word in has)}",
                severity=None if grave else Severity.MEDIUM,
            )


_MEMBERSHIPS = f"""
    WITH RECURSIVE edge AS ({EDGES})
    SELECT pg_get_userbyid(e.member)::text AS member, pg_get_userbyid(e.roleid)::text AS role,
           pg_get_userbyid(e.grantor)::text AS grantor, e.modern
      FROM edge e JOIN pg_roles m ON m.oid = e.member
     WHERE m.rolname = ANY (:roles) AND (e.inherits OR e.sets) ORDER BY 1, 2
"""


def check_memberships(audit: Audit) -> Iterator[Finding]:
    """Services', platform's and search's role are members of nothing: all who are members of them would be too."""
    for row in audit.rows(_MEMBERSHIPS, roles=[APP_ROLE, PLATFORM_ROLE, SEARCH_ROLE]):
        role = audit.quote(row.role)
        yield finding(
            "role-membership",
            f"{row.member} in {role}",
            f"every login that is a member of {row.member} has the rights of {role} too, and its policies",
            _revoke(role, row.member, row.grantor if row.modern else None),
        )


def _revoke(role: str, member: str, grantor: str | None) -> str:
    return f"REVOKE {role} FROM {member}" + (f' GRANTED BY "{grantor}"' if grantor else "")


_LOGINS = f"""
    WITH RECURSIVE {REACH}
    SELECT DISTINCT l.rolname::text AS login, l.rolsuper, l.rolbypassrls, l.rolreplication, l.rolcreaterole
      FROM reach r JOIN pg_roles l ON l.oid = r.start JOIN pg_roles a ON a.oid = r.oid
     WHERE a.rolname = :app AND l.rolname <> ALL (:roles) ORDER BY 1
"""
_MIXED = f"""
    WITH RECURSIVE {REACH},
    service AS (SELECT DISTINCT r.start FROM reach r JOIN pg_roles a ON a.oid = r.oid WHERE a.rolname = :app)
    SELECT DISTINCT pg_get_userbyid(r.start)::text AS login, pg_get_userbyid(r.via)::text AS via,
           pg_get_userbyid(r.grantor)::text AS grantor, r.modern, t.rolname::text AS role,
           (t.rolsuper OR t.rolbypassrls) AS mighty, r.inherits
      FROM service s JOIN reach r ON r.start = s.start JOIN pg_roles t ON t.oid = r.oid
     WHERE pg_get_userbyid(r.start) <> ALL (:roles)
       AND NOT (SELECT l.rolsuper FROM pg_roles l WHERE l.oid = r.start)
       AND (t.rolname = :owner OR t.rolname = :search OR t.rolname = :platform AND (r.inherits OR :signed)
            OR left(t.rolname, 3) = 'pg_' AND (t.oid = r.via OR left(pg_get_userbyid(r.via), 3) <> 'pg_')
            OR (t.rolsuper OR t.rolbypassrls) AND t.rolname <> ALL (:roles))
     ORDER BY 1, 5, 2
"""
_FILES = ["pg_execute_server_program", "pg_read_server_files", "pg_write_server_files"]

_PREDEFINED = {
    "pg_read_all_data": "it reads every table of the database that no policy guards, and all that are made later",
    "pg_write_all_data": "it writes every table of the database that no policy guards, and all that are made later",
    "pg_maintain": "VACUUM FULL, CLUSTER and LOCK TABLE stop every organization's work",
    "pg_monitor": "it sees the statements of every session, other organizations' values in them",
    "pg_read_all_stats": "it sees the statements of every session, other organizations' values in them",
    "pg_signal_backend": "it ends other organizations' statements and connections",
    "pg_create_subscription": "it subscribes tables to another server's rows",
}

# Who may hand out what: the last membership WITH ADMIN on a way that may go
# through others WITH ADMIN, for each of those is one GRANT to oneself.
_ADMINS = f"""
    WITH RECURSIVE {REACH},
    service AS (SELECT r.start FROM reach r JOIN pg_roles a ON a.oid = r.oid WHERE a.rolname = :app
                UNION SELECT a.oid FROM pg_roles a WHERE a.rolname = :app),
    way (start, oid, member, roleid, grantor, modern) AS (
        SELECT s.start, e.roleid, e.member, e.roleid, e.grantor, e.modern
          FROM service s JOIN edge e ON e.admins
           AND (e.member = s.start OR EXISTS (SELECT FROM reach r WHERE r.start = s.start AND r.oid = e.member))
        UNION
        SELECT w.start, e.roleid, CASE WHEN e.admins THEN e.member ELSE w.member END,
               CASE WHEN e.admins THEN e.roleid ELSE w.roleid END,
               CASE WHEN e.admins THEN e.grantor ELSE w.grantor END, w.modern
          FROM way w JOIN edge e ON e.member = w.oid WHERE e.inherits OR e.sets OR e.admins
    )
    SELECT DISTINCT pg_get_userbyid(w.start)::text AS login, pg_get_userbyid(w.member)::text AS member,
           pg_get_userbyid(w.roleid)::text AS via, pg_get_userbyid(w.grantor)::text AS grantor, w.modern,
           t.rolname::text AS role
      FROM way w JOIN pg_roles t ON t.oid = w.oid JOIN pg_roles l ON l.oid = w.start
     WHERE NOT l.rolsuper AND (l.rolname <> ALL (:roles) OR l.rolname = :app)
       AND (t.rolname = ANY (:roles)
            AND (t.rolname <> :search OR w.roleid = t.oid OR pg_get_userbyid(w.roleid) <> :owner)
            OR left(t.rolname, 3) = 'pg_' OR t.rolbypassrls)
     ORDER BY 1, 6, 2
"""

# ibex_platform's logins see every organization's rows as it is; what they must
# not is more than that.  Nobody but ibex_owner, and who is a member of it, is
# a member of ibex_search.
_BESIDE = f"""
    WITH RECURSIVE {REACH},
    held AS (SELECT r.start, array_agg(DISTINCT t.rolname::text) AS roles
               FROM reach r JOIN pg_roles t ON t.oid = r.oid GROUP BY r.start)
    SELECT DISTINCT l.rolname::text AS login, l.rolsuper, l.rolbypassrls, :platform = ANY (h.roles) AS crosses,
           pg_get_userbyid(r.via)::text AS via, pg_get_userbyid(r.grantor)::text AS grantor, r.modern,
           t.rolname::text AS role
      FROM held h JOIN pg_roles l ON l.oid = h.start JOIN reach r ON r.start = h.start JOIN pg_roles t ON t.oid = r.oid
     WHERE l.rolcanlogin AND l.rolname <> ALL (:roles) AND :app <> ALL (h.roles)
       AND (:platform = ANY (h.roles) OR :search = ANY (h.roles) AND :owner <> ALL (h.roles) AND NOT l.rolsuper)
     ORDER BY 1, 8, 5
"""


def check_administrators(audit: Audit) -> Iterator[Finding]:
    """A member of ibex_app hands out no role of ours, nor one that is more than it.

    Who administers the roles and is no member of ibex_app, with rights or by
    SET ROLE, is no service.
    """
    names = {"app": APP_ROLE, "owner": OWNER_ROLE, "search": SEARCH_ROLE}
    for row in audit.rows(_ADMINS, **names, roles=list(ROLES)):
        login, role = audit.quote(row.login), audit.quote(row.role)
        member, via = audit.quote(row.member), audit.quote(row.via)
        grantor = f" GRANTED BY {audit.quote(row.grantor)}" if row.modern else ""
        risk = f"it may GRANT {role} to any login, itself first, and step into it then"
        yield finding(
            "login-admin",
            f"{login} over {role}",
            "it may make any login a service, and stay one through it" if row.role == APP_ROLE else risk,
            f"REVOKE ADMIN OPTION FOR {via} FROM {member}{grantor}",
            severity=Severity.HIGH if row.role == APP_ROLE or row.role.startswith("pg_") else None,
        )


def check_beside(audit: Audit) -> Iterator[Finding]:
    """A login of the platform has no more than ibex_platform, and nobody is a member of ibex_search."""
    names = {"app": APP_ROLE, "owner": OWNER_ROLE, "search": SEARCH_ROLE, "platform": PLATFORM_ROLE}
    for row in audit.rows(_BESIDE, **names, roles=list(ROLES)):
        login, via = audit.quote(row.login), audit.quote(row.via)
        revoke = _revoke(via, login, row.grantor if row.modern else None)
        if row.rolsuper or row.rolbypassrls:
            if row.role == PLATFORM_ROLE:
                yield _past(login, revoke, mighty=row.rolsuper)
            if row.rolsuper:
                continue
        if row.role == SEARCH_ROLE and not row.crosses:
            risk = "policies TO ibex_search apply to it: it reads every organization's memories"
            yield finding("login-mixes", f"{login} in {row.role}", risk, revoke)
        elif row.role in {OWNER_ROLE, SEARCH_ROLE}:
            risk = "what works for the platform needs no more than ibex_platform: " + _mixed(row.role, steps=False)
            yield finding("login-mixes", f"{login} in {row.role}", risk, revoke, severity=Severity.HIGH)


def _past(login: str, revoke: str, *, mighty: bool) -> Finding:
    word = "SUPERUSER" if mighty else "BYPASSRLS"
    alter = f"ALTER ROLE {login} NO{word}"
    return finding(
        "login-bypasses",
        login,
        f"it works for the platform and has {word}: no policy binds it, also not those of tables that are not our own",
        *([f"-- or, with another superuser left, {alter}", revoke] if mighty else [alter]),
        severity=Severity.HIGH,
    )


def check_logins(audit: Audit) -> Iterator[Finding]:
    """A login that is a member of ibex_app is nothing else.

    Into ibex_platform it may step (a membership WITH INHERIT FALSE), for that is
    how db.platform() works with one login; not where tenants are signed, for
    injected SQL could step there too and needs no signature then.
    """
    for row in audit.rows(_LOGINS, app=APP_ROLE, roles=list(ROLES)):
        login = audit.quote(row.login)
        powers = [word for attribute, word in _ATTRIBUTES.items() if word in _GRAVE and getattr(row, attribute)]
        if {"SUPERUSER", "BYPASSRLS"} & set(powers):
            has = " ".join("NO" + word for word in powers)
            yield finding(
                "login-bypasses",
                login,
                f"a service that connects as it reads every organization's rows: it has {', '.join(powers)}",
                f"ALTER ROLE {login} {has}"
                if not row.rolsuper
                else f"-- or, with another superuser left, ALTER ROLE {login} {has}",
                *([f"REVOKE {APP_ROLE} FROM {login}"] if row.rolsuper else []),
            )
        elif powers:
            yield finding(
                "login-powers",
                login,
                f"it has {', '.join(powers)}: it can copy the whole server's data, or make itself a member of more",
                f"ALTER ROLE {login} {' '.join('NO' + word for word in powers)}",
            )
    names = {"app": APP_ROLE, "owner": OWNER_ROLE, "search": SEARCH_ROLE, "platform": PLATFORM_ROLE}
    for row in audit.rows(_MIXED, **names, roles=list(ROLES), signed=audit.signed):
        login, via = audit.quote(row.login), audit.quote(row.via)
        yield finding(
            "login-mixes",
            f"{login} in {audit.quote(row.role)}",
            _mixed(row.role, steps=not row.inherits),
            _revoke(via, login, row.grantor if row.modern else None),
            severity=Severity.HIGH if row.role.startswith("pg_") and row.role not in _FILES else None,
        )


def _mixed(role: str, *, steps: bool) -> str:
    if role == OWNER_ROLE:
        return "a service could switch row-level security off, drop tables, or grant itself more"
    if role == PLATFORM_ROLE and steps:
        return "tenants are signed here, and injected SQL may SET ROLE ibex_platform, which needs no signature"
    if role in {PLATFORM_ROLE, SEARCH_ROLE}:
        return f"policies TO {role} apply to it as well: every query of a service sees every organization"
    if role in _FILES:
        return "it reads or writes the server's files, past every table's policies"
    if role.startswith("pg_"):
        return _PREDEFINED.get(role, "it may steer the server, which no tenant's work needs")
    return f"it may become {role}, whom policies do not bind"
