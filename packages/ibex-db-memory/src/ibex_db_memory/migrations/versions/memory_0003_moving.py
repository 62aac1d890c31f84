"""A memory that is inserted together with its first version keeps that one: history can be restored.

Revision ID: memory_0003
"""

from alembic import op

from ibex_db_core.policies import OWNER_ROLE

revision = "memory_0003"
down_revision = "memory_0002"
branch_labels = None
depends_on = "tenancy_0002"

# The trigger fires when the whole statement is done, so versions that the same
# statement inserted are there already.  A memory without a first version still cannot be.
_FIRST_VERSION = """
CREATE OR REPLACE FUNCTION ibex_core.memories_first_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ibex_core.memory_versions (org_id, memory_id, version_num, operation,
        content, category, status, confidence, metadata, change_reason, changed_by)
    SELECT org_id, id, 1, COALESCE(NULLIF(current_setting('app.change_operation', true), ''), 'created'),
        content, category, status, confidence, metadata,
        NULLIF(current_setting('app.change_reason', true), ''),
        NULLIF(current_setting('app.changed_by', true), '')::uuid
    FROM added{unless};
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    """Let a first version that is there be."""
    _replace("\n    ON CONFLICT (org_id, memory_id, version_num) DO NOTHING")


def downgrade() -> None:
    """Insert the first version in any case."""
    _replace("")


def _replace(unless: str) -> None:
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(_FIRST_VERSION.format(unless=unless))
    op.execute("SET LOCAL ROLE NONE")
