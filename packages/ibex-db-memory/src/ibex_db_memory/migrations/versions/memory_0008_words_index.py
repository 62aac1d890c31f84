"""An index of words that is each organization's own, and one of newest first.

Revision ID: memory_0008
"""

from alembic import op

from ibex_db_core.migrations import online
from ibex_db_core.policies import OWNER_ROLE

revision = "memory_0008"
down_revision = "memory_0007"
branch_labels = None
depends_on = None

_WORDS = "USING gin (ibex_core.memories_word_keys(org_id, search_vector)) WITH (fastupdate = off)"


def upgrade() -> None:
    """Build both partition by partition, while others read and write."""
    online.create_index("memories_words_idx", "memories", _WORDS)
    online.create_index("memories_created_at_idx", "memories", "(org_id, created_at, id)")


def downgrade() -> None:
    """Drop both, in the transaction in which the revision is taken back.

    So no database is at this revision without them: memory_0009 searches what it finds here.
    """
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute("LOCK TABLE ibex_core.memories IN ACCESS EXCLUSIVE MODE")
    op.execute("DROP INDEX ibex_core.memories_created_at_idx, ibex_core.memories_words_idx")
    op.execute("SET LOCAL ROLE NONE")
