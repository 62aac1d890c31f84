"""Replication: who else is sent tenants' rows."""

from collections.abc import Iterator

from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, finding

__all__ = ["check_publications"]

_PUBLICATIONS = """
    SELECT t.pubname::text AS name, count(*) AS number
      FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
     WHERE c.oid = ANY (:tables) GROUP BY 1 ORDER BY 1
"""


def check_publications(audit: Audit) -> Iterator[Finding]:
    """No logical replication sends tenants' rows unnoticed."""
    for row in audit.rows(_PUBLICATIONS, tables=list(audit.tenant_tables)):
        name = audit.quote(row.name)
        yield finding(
            "publication",
            name,
            f"its subscribers are sent every organization's rows of {row.number} tables, past the policies; "
            "if that is meant, leave this code out of the audit",
            f"DROP PUBLICATION {name}",
        )
