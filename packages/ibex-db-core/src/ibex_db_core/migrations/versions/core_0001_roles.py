"""Roles, the vector extension, and the functions that every table's trigger calls.

Revision ID: core_0001
"""

from alembic import op

from ibex_db_core.base import SCHEMA
from ibex_db_core.policies import (
    APP_ROLE,
    OWNER_ROLE,
    PLATFORM_ROLE,
    SEARCH_TO_OWNER,
    create_roles,
    create_trigger_functions,
    drop_trigger_functions,
)

revision = "core_0001"
down_revision = None
branch_labels = ("core",)
depends_on = None


def upgrade() -> None:
    """Make what the tables of every wheel stand on."""
    for statement in create_roles():
        op.execute(statement)
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.execute(SEARCH_TO_OWNER)
    # The owner role owns the schema and all in it, so whoever migrates later
    # needs no more than membership.
    op.execute(f"GRANT {OWNER_ROLE} TO CURRENT_USER")
    op.execute(f"ALTER SCHEMA {SCHEMA} OWNER TO {OWNER_ROLE}")
    op.execute(f"REVOKE ALL ON SCHEMA {SCHEMA} FROM PUBLIC")
    op.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO {APP_ROLE}, {PLATFORM_ROLE}")
    op.execute(f"ALTER TABLE {SCHEMA}.alembic_version OWNER TO {OWNER_ROLE}")
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    for statement in create_trigger_functions():
        op.execute(statement)
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Take the functions away; roles and the extension belong to the cluster and may serve others."""
    for statement in drop_trigger_functions():
        op.execute(statement)
