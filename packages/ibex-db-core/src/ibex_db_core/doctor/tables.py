"""Tables: row-level security on and forced, owned by the owner role, org_id on every row, no rules."""

from collections.abc import Iterator

from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.policies import OWNER_ROLE

__all__ = ["check_heirs", "check_row_security", "check_rules", "check_shape"]


def check_row_security(audit: Audit) -> Iterator[Finding]:
    """Row-level security is enabled and forced on every tenant table and partition, and on the platform's own."""
    for table in audit.secured.values():
        if not table.rls:
            yield finding(
                "rls-disabled",
                table.name,
                "policies are not applied: whoever may read the table reads every organization's rows",
                f"ALTER TABLE {table.name} ENABLE ROW LEVEL SECURITY",
            )
        if not table.forced:
            yield finding(
                "rls-not-forced",
                table.name,
                "the table's owner and its functions read and change every organization's rows without noticing",
                f"ALTER TABLE {table.name} FORCE ROW LEVEL SECURITY",
            )


def check_shape(audit: Audit) -> Iterator[Finding]:
    """Tables belong to the owner role, are logged, and say for each row whose it is."""
    for table in audit.tables.values():
        ours = table.tenant_column is not None or table.mapped is not None
        if ours and table.owner != OWNER_ROLE:
            yield finding(
                "table-owner",
                table.name,
                f"{table.owner} may switch row-level security off, and the next migration by {OWNER_ROLE} fails here",
                f"ALTER TABLE {table.name} OWNER TO {OWNER_ROLE}",
                severity=None if table.tenant_column else Severity.MEDIUM,
            )
    for table in audit.tenant_tables.values():
        column = table.tenant_column or ""
        if column in table.columns and column not in table.required:
            yield finding(
                "org-nullable",
                f"{table.name}.{column}",
                "a row without an organization belongs to nobody: policies hide it, erasing a tenant leaves it",
                f"ALTER TABLE {table.name} ALTER COLUMN {column} SET NOT NULL",
            )
        if table.unlogged:
            yield finding(
                "table-unlogged",
                table.name,
                "a crash of the server empties the table, and replicas never have its rows",
                f"ALTER TABLE {table.name} SET LOGGED",
            )


_RULES = """
    SELECT r.ev_class, r.rulename::text FROM pg_rewrite r
     WHERE r.ev_class = ANY (:tables) ORDER BY r.ev_class, r.rulename
"""


def check_rules(audit: Audit) -> Iterator[Finding]:
    """No rewrite rule stands on a tenant table."""
    for row in audit.rows(_RULES, tables=list(audit.secured)):
        table, rule = audit.secured[row.ev_class], audit.quote(row.rulename)
        yield finding(
            "table-rule",
            f"{rule} on {table.name}",
            "a rule rewrites statements with its owner's rights: it can copy rows elsewhere, or swallow a write",
            f"DROP RULE {rule} ON {table.name}",
        )


_HEIRS = """
    SELECT n.nspname, c.relname, c.relkind = 'f' AS foreign, c.relispartition AS attached,
           p.relname::text AS parent, m.nspname::text AS place, pg_get_userbyid(c.relowner)::text AS owner
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace m ON m.oid = p.relnamespace
     WHERE m.nspname = ANY (:schemas) AND p.relkind IN ('r', 'p')
       AND (NOT c.relispartition OR c.relkind = 'f' OR n.nspname <> ALL (:schemas))
     ORDER BY 1, 2
"""


def check_heirs(audit: Audit) -> Iterator[Finding]:
    """No table, in whatever schema, inherits from one of ours, and no partition lies elsewhere."""
    for row in audit.rows(_HEIRS, schemas=audit.schemas):
        name, parent = audit.qualified(row.nspname, row.relname), audit.qualified(row.place, row.parent)
        if not row.attached:
            risk = f"its rows are part of {parent}: {row.owner} writes them past its keys and triggers, for any tenant"
            remedy = f"ALTER TABLE {name} NO INHERIT {parent}"
        elif row.foreign:
            risk = f"it is a partition of {parent} on another server: rows are sent there, past every policy"
            remedy = f"ALTER TABLE {parent} DETACH PARTITION {name}"
        else:
            risk = f"it is a partition of {parent} in another schema: {row.owner} and who uses that read past policies"
            remedy = f"ALTER TABLE {name} SET SCHEMA {audit.quote(row.place)}"
        yield finding("table-heir", name, risk, remedy)
