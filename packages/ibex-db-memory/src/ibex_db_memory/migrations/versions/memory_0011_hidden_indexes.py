"""Indexes that begin with the organization are for those who ask for their second column, and for nobody else.

Revision ID: memory_0011

Of an organization that statistics do not know the planner expects one row, so that reading all its rows by any index
that begins with org_id costs, as it believes, what one row by the primary key does, and ten rows by their ids cost
more.  The index that came last, or was smallest, won: get() read the whole organization, and so did the foreign
key's check for each tag, version and relationship that was written.

A partial index is open to those statements alone that imply its predicate.  ``agent_id = $1`` implies that it is not
NULL, which a foreign key's cascade says too; a statement by ids does not.  Listing newest first names no moment, so
that it says itself what the index of it asks for.

What is open goes with memory_0012, once nothing needs it.
"""

from alembic import op

from ibex_db_core.migrations import online
from ibex_db_core.policies import OWNER_ROLE

revision = "memory_0011"
down_revision = "memory_0010"
branch_labels = None
depends_on = None

_OPEN = (
    ("memories_agent_id_idx", "memories", "(org_id, agent_id)"),
    ("memories_created_at_idx", "memories", "(org_id, created_at, id)"),
    ("sessions_agent_id_idx", "sessions", "(org_id, agent_id)"),
    ("memory_tags_tag_idx", "memory_tags", "(org_id, tag)"),
    ("memory_relationships_target_idx", "memory_relationships", "(org_id, target_memory_id, relationship_type)"),
)
_HIDDEN = (
    ("memories_by_agent_idx", "memories", "(org_id, agent_id) WHERE agent_id IS NOT NULL"),
    # Every row: a moment may be -infinity.
    ("memories_newest_idx", "memories", "(org_id, created_at, id) WHERE created_at >= '-infinity'"),
    ("sessions_by_agent_idx", "sessions", "(org_id, agent_id) WHERE agent_id IS NOT NULL"),
    ("memory_tags_by_tag_idx", "memory_tags", "(org_id, tag) WHERE tag IS NOT NULL"),
    (
        "memory_relationships_by_target_idx",
        "memory_relationships",
        "(org_id, target_memory_id, relationship_type) WHERE target_memory_id IS NOT NULL",
    ),
)


# memories first, as whoever reads or writes has it; but who writes a tag or an edge has locked that table before its
# key looks at memories.  Below deadlock_timeout, so that of two who wait for each other it is never the service that
# gives way: the Migrator tries again.
_A_MOMENT = "SET LOCAL lock_timeout = '300ms'"
_TO_ITSELF = """
LOCK TABLE ibex_core.memories, ibex_core.sessions, ibex_core.memory_tags, ibex_core.memory_relationships
    IN ACCESS EXCLUSIVE MODE
"""


def upgrade() -> None:
    """Build them beside the open ones."""
    for name, table, definition in _HIDDEN:
        online.create_index(name, table, definition)


def downgrade() -> None:
    """Build the open ones, and drop these in the transaction in which the revision is taken back.

    So no database is at this revision without them; of the open ones half may be there, and memory_0012 takes it away.
    """
    for name, table, definition in _OPEN:
        online.create_index(name, table, definition)
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(_A_MOMENT)
    op.execute(_TO_ITSELF)
    op.execute(f"DROP INDEX {', '.join(f'ibex_core.{name}' for name, _, _ in _HIDDEN)}")
    op.execute("SET LOCAL ROLE NONE")
