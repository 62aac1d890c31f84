"""The index of everybody's words goes: nothing reads it since memory_0009.

Revision ID: memory_0010
"""

from ibex_db_core.migrations import online

revision = "memory_0010"
down_revision = "memory_0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop it, and what a way back that was interrupted built of it."""
    online.drop_index("memories_search_vector_idx")


def downgrade() -> None:
    """Do nothing: memory_0009 builds it on its own way back, where it is needed and an upgrade would find its half."""
