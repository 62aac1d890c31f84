"""Indexes that are open to every statement of an organization go: nothing needs them since memory_0011.

Revision ID: memory_0012
"""

from ibex_db_core.migrations import online

revision = "memory_0012"
down_revision = "memory_0011"
branch_labels = None
depends_on = None

_OPEN = (
    "memories_agent_id_idx",
    "memories_created_at_idx",
    "sessions_agent_id_idx",
    "memory_tags_tag_idx",
    "memory_relationships_target_idx",
)


def upgrade() -> None:
    """Drop them, and what a way back that was interrupted built of them."""
    for name in _OPEN:
        online.drop_index(name)


def downgrade() -> None:
    """Do nothing: memory_0011 builds them on its own way back, where they are needed and an upgrade would find them."""
