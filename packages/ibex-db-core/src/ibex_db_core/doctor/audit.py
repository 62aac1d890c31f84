"""The audit: every check, over one connection, in one read-only look."""

from collections.abc import Callable, Iterable

from sqlalchemy import Connection, MetaData, text

from ibex_db_core.base import SCHEMA
from ibex_db_core.doctor import (
    copies,
    drift,
    functions,
    grants,
    keys,
    policies,
    replication,
    roles,
    server,
    settings,
    shards,
    signing,
    storage,
    tables,
    triggers,
    versions,
    views,
)
from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, Report
from ibex_db_core.errors import MigrationError
from ibex_db_core.migrations import metadata

__all__ = ["CHECKS", "ISOLATION", "Audit", "Check", "copies_under_way", "examine", "prepare"]

Check = Callable[[Audit], Iterable[Finding]]

ISOLATION: tuple[Check, ...] = (
    tables.check_row_security,
    tables.check_shape,
    tables.check_rules,
    tables.check_heirs,
    policies.check_policies,
    policies.check_functions,
    grants.check_tables,
    grants.check_columns,
    grants.check_schemas,
    grants.check_books,
    grants.check_defaults,
    keys.check_foreign_keys,
    keys.check_unique_keys,
    keys.check_constraints,
    triggers.check_triggers,
    triggers.check_key_triggers,
    functions.check_functions,
    functions.check_elsewhere,
    views.check_views,
    signing.check_keys,
    shards.check_shards,
)
"""Those that compare the schema with the models, and so belong to `ibex-db check` too."""

CHECKS: tuple[Check, ...] = (
    *ISOLATION,
    roles.check_roles,
    roles.check_memberships,
    roles.check_logins,
    roles.check_administrators,
    roles.check_beside,
    settings.check_settings,
    storage.check_indexes,
    storage.check_options,
    storage.check_partitions,
    server.check_parameters,
    server.check_reserved,
    server.check_event_triggers,
    replication.check_publications,
    versions.check_versions,
    drift.check_revisions,
    drift.check_models,
)

_PLACES = """
    SELECT to_regnamespace(:schema) IS NOT NULL AS made,
           (SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
             WHERE e.extname = 'vector') AS vector
"""


def examine(connection: Connection, *, models: MetaData | None = None, checks: Iterable[Check] = CHECKS) -> Report:
    """Audit the database that a connection is in; changes nothing.

    Args:
        connection: of a member of ibex_owner, or of a superuser; a transaction may be open.
        models: what the tables should be; None: those of every installed wheel.
        checks: what to look at.

    Raises:
        MigrationError: there is no ibex_core schema.
    """
    prepare(connection)
    audit = Audit(connection, metadata() if models is None else models)
    found = copies.told_as_one(audit, list(dict.fromkeys(finding for check in checks for finding in check(audit))))
    return Report(tuple(sorted(found, key=lambda finding: finding.severity.rank)))


def copies_under_way(connection: Connection, models: MetaData) -> frozenset[str]:
    """Return the names of the copies of tables that procedures of ours are making; none where nothing is made yet."""
    try:
        prepare(connection)
    except MigrationError:
        return frozenset()
    return frozenset(copies.under_way(Audit(connection, models)))


def prepare(connection: Connection) -> None:
    """Have the catalog speak the same whatever the login's settings; for this transaction.

    Raises:
        MigrationError: there is no ibex_core schema.
    """
    places = connection.execute(text(_PLACES), {"schema": SCHEMA}).one()
    if not places.made:
        raise MigrationError("this database has no ibex_core schema: run `ibex-db upgrade`, or await db.upgrade()")
    # Names outside these schemas are deparsed in full.  With ibex_core itself
    # in the path, its names would not be.
    path = "pg_catalog" if places.vector in {None, SCHEMA} else f'pg_catalog, "{places.vector}"'
    for name, value in (("search_path", path), ("row_security", "on"), ("quote_all_identifiers", "off")):
        connection.execute(text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})
