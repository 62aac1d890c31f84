"""Alembic's environment: runs on the connection that the runner hands over."""

from typing import TYPE_CHECKING, cast

from alembic import context

from ibex_db_core.base import SCHEMA
from ibex_db_core.migrations.runner import configure_online
from ibex_db_core.migrations.wheels import metadata

if TYPE_CHECKING:
    from alembic.runtime.environment import EnvironmentContext

if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},  # the default one doubles every % of our functions
        target_metadata=metadata(),
        version_table_schema=SCHEMA,
        literal_binds=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        context.run_migrations()
else:
    configure_online(cast("EnvironmentContext", cast("object", context)))
    with context.begin_transaction():
        context.run_migrations()
