"""Alembic over the installed wheels: each ships its revisions on its own branch."""

from ibex_db_core.migrations.migrator import Migrator
from ibex_db_core.migrations.signing import Signing
from ibex_db_core.migrations.wheels import Revision, metadata, newest

__all__ = ["Migrator", "Revision", "Signing", "metadata", "newest"]
