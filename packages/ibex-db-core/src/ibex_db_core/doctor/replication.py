"""Replication: who else is sent tenants' rows."""

from collections.abc import Iterator

from ibex_db_core.base import SCHEMA
from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, Severity, finding
from ibex_db_core.policies import SIGNING_KEYS

__all__ = ["check_publications"]

_PUBLICATIONS = """
    SELECT t.pubname::text AS name, count(*) AS number, COALESCE(bool_or(c.oid = to_regclass(:keys)), false) AS keys
      FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
     WHERE c.oid = ANY (:tables) OR c.oid = to_regclass(:keys) GROUP BY 1 ORDER BY 1
"""


def check_publications(audit: Audit) -> Iterator[Finding]:
    """No logical replication sends tenants' rows, or the keys that sign for them, unnoticed."""
    for row in audit.rows(_PUBLICATIONS, tables=list(audit.secured), keys=f"{SCHEMA}.{SIGNING_KEYS}"):
        name = audit.quote(row.name)
        told = (
            f"the signing keys are among the {row.number} tables that it sends: its subscribers sign for everybody"
            if row.keys
            else f"its subscribers are sent every organization's rows of {row.number} tables, past the policies; "
            "if that is meant, leave this code out of the audit"
        )
        severity = Severity.CRITICAL if row.keys else None
        yield finding("publication", name, told, f"DROP PUBLICATION {name}", severity=severity)
