"""Alembic over the installed wheels: each ships its revisions on its own branch."""

from ibex_db_core.migrations.runner import Migrator, Revision, metadata, newest

__all__ = ["Migrator", "Revision", "metadata", "newest"]
