"""Alembic over the installed wheels: each ships its revisions on its own branch."""

from ibex_db_core.migrations.runner import Migrator, Revision, metadata, newest
from ibex_db_core.migrations.signing import Signing

__all__ = ["Migrator", "Revision", "Signing", "metadata", "newest"]
