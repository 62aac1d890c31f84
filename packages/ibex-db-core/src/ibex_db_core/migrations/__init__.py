"""Alembic over the installed wheels: each ships its revisions on its own branch."""

from ibex_db_core.migrations import online
from ibex_db_core.migrations.migrator import Migrator
from ibex_db_core.migrations.plans import MigrationPlan, PlannedRevision, PlannedStatement, TableLock
from ibex_db_core.migrations.signing import Signing
from ibex_db_core.migrations.wheels import Revision, metadata, newest

__all__ = [
    "MigrationPlan",
    "Migrator",
    "PlannedRevision",
    "PlannedStatement",
    "Revision",
    "Signing",
    "TableLock",
    "metadata",
    "newest",
    "online",
]
