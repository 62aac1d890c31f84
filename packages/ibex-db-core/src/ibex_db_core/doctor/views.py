"""Views: they look with the rights of whoever asks."""

from collections.abc import Iterator
from typing import cast

from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.policies import SIGNING_KEYS

__all__ = ["check_views"]

_VIEWS = """
    WITH RECURSIVE reader (oid) AS (
        SELECT r.ev_class FROM pg_depend d
          JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
         WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY (:tables)
        UNION
        SELECT r.ev_class FROM reader
          JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = reader.oid
          JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    )
    SELECT n.nspname, c.relname, c.relkind = 'm' AS materialized, pg_get_userbyid(c.relowner)::text AS owner,
           COALESCE((SELECT o.option_value IN ('true', 'on', 'yes', '1')
                       FROM pg_options_to_table(c.reloptions) o WHERE o.option_name = 'security_invoker'), false)
           AS invoker
      FROM reader JOIN pg_class c ON c.oid = reader.oid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('v', 'm') ORDER BY 1, 2
"""


_OURS = """
    SELECT c.oid, c.relname::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = ANY (:schemas) AND c.relkind IN ('r', 'p')
"""


def check_views(audit: Audit) -> Iterator[Finding]:
    """No view over a table of ours, in any schema, looks with its owner's rights or keeps a copy."""
    every = {cast("int", row.oid): row.name for row in audit.rows(_OURS, schemas=audit.schemas)}
    grave = {oid for oid, name in every.items() if oid in audit.secured or name == SIGNING_KEYS}
    told: set[str] = set()
    for tables, severity in ((grave, None), (every.keys() - grave, Severity.MEDIUM)):
        for found in _told(audit, list(tables), severity):
            if found.object not in told:
                yield found
                told.add(found.object)


def _told(audit: Audit, tables: list[int], severity: Severity | None) -> Iterator[Finding]:
    for row in audit.rows(_VIEWS, tables=tables):
        name = audit.qualified(row.nspname, row.relname)
        if row.materialized:
            yield finding(
                "view-materialized",
                name,
                "it keeps a copy of rows that no policy guards: whoever may read it reads every organization's",
                f"DROP MATERIALIZED VIEW {name}",
                severity=severity,
            )
        elif not row.invoker:
            yield finding(
                "view-not-invoker",
                name,
                f"it looks with the rights of {row.owner}: policies for whoever asks are not applied "
                "(CREATE OR REPLACE VIEW drops the option)",
                f"ALTER VIEW {name} SET (security_invoker = true)",
                severity=severity,
            )
