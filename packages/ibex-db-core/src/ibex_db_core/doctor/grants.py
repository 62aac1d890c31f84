"""Grants: services may do with a table what they need, and nobody else anything."""

from collections.abc import Iterator, Mapping
from typing import cast

from ibex_db_core.base import SCHEMA
from ibex_db_core.doctor.catalog import Audit, LiveTable
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, ROLES, privileges

__all__ = ["check_books", "check_columns", "check_defaults", "check_schemas", "check_tables"]

_GRANTEE = "CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(g.grantee)::text END AS grantee"
_TABLES = f"""
    SELECT c.oid, {_GRANTEE}, g.privilege_type AS privilege, g.is_grantable
      FROM pg_class c, aclexplode(COALESCE(c.relacl, acldefault('r', c.relowner))) g
     WHERE c.oid = ANY (:tables) AND g.grantee <> c.relowner ORDER BY 1, 2, 3
"""
_COLUMNS = f"""
    SELECT a.attrelid, a.attname::text AS column, {_GRANTEE}, g.privilege_type AS privilege
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid, aclexplode(a.attacl) g
     WHERE a.attrelid = ANY (:tables) AND g.grantee <> c.relowner ORDER BY 1, 2, 3, 4
"""
_BOOKS = f"""
    SELECT {_GRANTEE}, string_agg(DISTINCT g.privilege_type, ', ') AS verbs
      FROM pg_class c,
           LATERAL (SELECT * FROM aclexplode(COALESCE(c.relacl, acldefault('r', c.relowner)))
                    UNION ALL
                    SELECT x.* FROM pg_attribute a, aclexplode(a.attacl) x WHERE a.attrelid = c.oid) g
     WHERE c.oid = to_regclass(:table) AND g.grantee <> c.relowner GROUP BY 1 ORDER BY 1
"""
_SCHEMAS = f"""
    SELECT n.nspname, pg_get_userbyid(n.nspowner)::text AS owner, {_GRANTEE}, g.privilege_type AS privilege
      FROM pg_namespace n
      LEFT JOIN LATERAL aclexplode(COALESCE(n.nspacl, acldefault('n', n.nspowner))) g ON g.grantee <> n.nspowner
     WHERE n.nspname = ANY (:schemas) ORDER BY 1, 3, 4
"""
_BORROWED = f"""
    SELECT n.nspname, {_GRANTEE}
      FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace,
           aclexplode(COALESCE(n.nspacl, acldefault('n', n.nspowner))) g
     WHERE e.extname = 'vector' AND n.nspname <> ALL (:schemas) AND g.privilege_type = 'CREATE'
       AND (g.grantee = 0 OR pg_get_userbyid(g.grantee) = ANY (:roles)) ORDER BY 1, 2
"""
_DEFAULTS = f"""
    SELECT pg_get_userbyid(d.defaclrole)::text AS creator, n.nspname AS schema, d.defaclobjtype::text AS kind,
           {_GRANTEE}, string_agg(DISTINCT g.privilege_type, ', ') AS privileges
      FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace, aclexplode(d.defaclacl) g
     WHERE (d.defaclnamespace = 0 OR n.nspname = ANY (:schemas)) AND d.defaclobjtype IN ('r', 'S', 'f')
       AND g.grantee <> d.defaclrole AND NOT (d.defaclobjtype = 'f' AND d.defaclnamespace = 0 AND g.grantee = 0)
       AND (g.grantee = 0 OR pg_get_userbyid(g.grantee) = ANY (:roles))
     GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""
_KINDS = {"r": "TABLES", "S": "SEQUENCES", "f": "FUNCTIONS"}

_DANGERS = {
    "TRUNCATE": "TRUNCATE ignores policies: one statement empties every organization's rows",
    "REFERENCES": "a foreign key of one's own tells which keys exist in other organizations",
    "TRIGGER": "a trigger of one's own runs on every organization's writes",
    "MAINTAIN": "VACUUM FULL, CLUSTER and LOCK TABLE stop every organization's work",
    "UPDATE": "what was written once could be changed",
    "DELETE": "what was written once could be deleted",
}


def check_tables(audit: Audit) -> Iterator[Finding]:
    """Tables give SELECT, INSERT, UPDATE, DELETE (append-only: the first two) to two roles; partitions nothing."""
    held: dict[int, dict[str, set[str]]] = {}
    for row in audit.rows(_TABLES, tables=list(audit.tables)):
        held.setdefault(cast("int", row.oid), {}).setdefault(cast("str", row.grantee), set()).add(
            cast("str", row.privilege)
        )
        if row.is_grantable and row.grantee in ROLES:
            table, grantee = audit.tables[row.oid], audit.quote(row.grantee)
            yield finding(
                "grant-excess",
                f"{table.name} to {grantee}",
                f"{grantee} may pass {row.privilege} on to anybody",
                f"REVOKE GRANT OPTION FOR {row.privilege} ON {table.name} FROM {grantee} CASCADE",
            )
    for oid, table in audit.tables.items():
        wanted = _wanted(table)
        for grantee, has in held.get(oid, {}).items():
            if excess := has - wanted.get(grantee, set()):
                yield _excess(audit, table, grantee, excess)
        for role, needs in wanted.items():
            if lacking := needs - held.get(oid, {}).get(role, set()):
                verbs = ", ".join(sorted(lacking))
                yield finding(
                    "grant-missing",
                    f"{table.name} to {role}",
                    f"services of {role} fail where they need {verbs}",
                    f"GRANT {verbs} ON {table.name} TO {role}",
                )


def _wanted(table: LiveTable) -> dict[str, set[str]]:
    verbs = privileges(append_only=table.append_only)
    if table.platform_only:
        return {PLATFORM_ROLE: set(verbs)}
    if table.partition or table.tenant_column is None:
        return {}
    wanted = {APP_ROLE: set(verbs), PLATFORM_ROLE: set(verbs)}
    for grant in table.guards.grants:
        if not grant.columns:
            wanted.setdefault(grant.role, set()).add(grant.privilege)
    return wanted


def _excess(audit: Audit, table: LiveTable, grantee: str, excess: set[str]) -> Finding:
    verbs, name = ", ".join(sorted(excess)), audit.quote(grantee)
    where = f"{table.name} to {name}"
    revoke = f"REVOKE {verbs} ON {table.name} FROM {name} CASCADE"
    dangers = "; ".join(_DANGERS[verb] for verb in sorted(excess) if verb in _DANGERS)
    if grantee == "PUBLIC":
        return finding("grant-public", where, f"every login of the cluster holds {verbs}. {dangers}".rstrip(), revoke)
    if grantee not in ROLES:
        risk = f"a role that no policy speaks of holds {verbs}. {dangers}".rstrip(" .")
        return finding("grant-other", where, risk, revoke, severity=Severity.HIGH if dangers else None)
    if table.partition:
        return finding("grant-partition", where, f"{verbs} past the parent's policies. {dangers}".rstrip(), revoke)
    return finding("grant-excess", where, dangers or f"{verbs} is more than the role needs", revoke)


def check_columns(audit: Audit) -> Iterator[Finding]:
    """No column carries a grant of its own, but for those that a model declares."""
    for row in audit.rows(_COLUMNS, tables=list(audit.tables)):
        table = audit.tables[row.attrelid]
        declared = any(
            (grant.role, grant.privilege) == (row.grantee, row.privilege) and row.column in grant.columns
            for grant in table.guards.grants
        )
        if declared and not table.partition:
            continue
        column, grantee = audit.quote(row.column), audit.quote(row.grantee)
        yield finding(
            "grant-column",
            f"{table.name}.{column} to {grantee}",
            f"a grant on one column outlives a REVOKE on the table, and is seldom looked at: {row.privilege}",
            f"REVOKE {row.privilege} ({column}) ON {table.name} FROM {grantee} CASCADE",
        )
    yield from _columns_missing(audit)


_HELD = """
    SELECT c.oid, w.role, w.privilege, w.column FROM pg_class c
      JOIN unnest(CAST(:oids AS oid[]), CAST(:roles AS text[]), CAST(:privileges AS text[]), CAST(:columns AS text[]))
           AS w (oid, role, privilege, "column") ON w.oid = c.oid
      JOIN pg_roles r ON r.rolname = w.role
     WHERE NOT has_column_privilege(r.oid, c.oid, w."column", w.privilege)
"""


def _columns_missing(audit: Audit) -> Iterator[Finding]:
    wanted = [
        (table.oid, grant.role, grant.privilege, column)
        for table in audit.roots.values()
        for grant in table.guards.grants
        for column in grant.columns
        if column in table.columns
    ]
    if not wanted:
        return
    oids, roles, verbs, columns = (list(values) for values in zip(*wanted, strict=True))
    for row in audit.rows(_HELD, oids=oids, roles=roles, privileges=verbs, columns=columns):
        table, column = audit.tables[row.oid], audit.quote(row.column)
        yield finding(
            "grant-missing",
            f"{table.name}.{column} to {row.role}",
            f"what runs as {row.role} fails where it needs {row.privilege}",
            f"GRANT {row.privilege} ({column}) ON {table.name} TO {row.role}",
        )


def check_books(audit: Audit) -> Iterator[Finding]:
    """Alembic's table of versions is the owner's alone."""
    table = f"{SCHEMA}.alembic_version"
    for row in audit.rows(_BOOKS, table=table):
        grantee = audit.quote(row.grantee)
        code = "grant-public" if grantee == "PUBLIC" else "grant-excess" if row.grantee in ROLES else "grant-other"
        yield finding(
            code,
            f"{table} to {grantee}",
            f"it holds {row.verbs}: who writes here has migrations skipped, guards among them, or run twice",
            f"REVOKE ALL ON {table} FROM {grantee} CASCADE",
            severity=Severity.MEDIUM if row.verbs == "SELECT" else Severity.HIGH,
        )


def check_schemas(audit: Audit) -> Iterator[Finding]:
    """Only the owner creates in the schema; only the roles of services use it."""
    held: dict[str, dict[str, set[str]]] = {}
    for row in audit.rows(_SCHEMAS, schemas=audit.schemas):
        schema, holders = audit.quote(row.nspname), held.setdefault(cast("str", row.nspname), {})
        if row.owner != OWNER_ROLE and row.nspname == SCHEMA:
            yield finding(
                "schema-owner",
                schema,
                f"{row.owner} may drop any table of the schema, and migrations by {OWNER_ROLE} fail",
                f"ALTER SCHEMA {schema} OWNER TO {OWNER_ROLE}",
            )
        if row.grantee is None:
            continue
        holders.setdefault(cast("str", row.grantee), set()).add(cast("str", row.privilege))
        yield from _schema(audit, schema, row.grantee, row.privilege)
    for role in audit.privileged if SCHEMA in held else ():
        if "USAGE" not in held[SCHEMA].get(role, set()):
            yield finding(
                "grant-missing",
                f"{SCHEMA} to {role}",
                f"nothing that connects as {role} finds a table",
                f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role}",
            )
    for row in audit.rows(_BORROWED, schemas=audit.schemas, roles=list(ROLES[1:])):
        yield _create(audit.quote(row.nspname), audit.quote(row.grantee), Severity.MEDIUM)


def _schema(audit: Audit, schema: str, grantee: str, privilege: str) -> Iterator[Finding]:
    name = audit.quote(grantee)
    if privilege == "CREATE":
        yield _create(schema, name, None)
    elif grantee not in audit.privileged and schema == SCHEMA:
        yield finding(
            "schema-usage",
            f"{schema} to {name}",
            "it can look tables and functions up here, and use whatever is granted to it by mistake",
            f"REVOKE USAGE ON SCHEMA {schema} FROM {name} CASCADE",
        )


def _create(schema: str, grantee: str, severity: Severity | None) -> Finding:
    return finding(
        "schema-create",
        f"{schema} to {grantee}",
        "it can make tables without policies, and functions that take the place of others in a search path",
        f"REVOKE CREATE ON SCHEMA {schema} FROM {grantee} CASCADE",
        severity=severity,
    )


def check_defaults(audit: Audit) -> Iterator[Finding]:
    """No default privilege opens the next table to services before its policies stand."""
    for row in audit.rows(_DEFAULTS, schemas=audit.schemas, roles=list(ROLES[1:])):
        kinds: Mapping[str, str] = _KINDS
        creator, grantee, kind = audit.quote(row.creator), audit.quote(row.grantee), kinds[row.kind]
        place = f" IN SCHEMA {audit.quote(row.schema)}" if row.schema else ""
        yield finding(
            "grant-default",
            f"new {kind.lower()} of {creator}{place} to {grantee}",
            f"whatever {creator} makes next is open to {grantee} ({row.privileges}) before anybody secures it",
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {creator}{place} REVOKE ALL ON {kind} FROM {grantee}",
        )
