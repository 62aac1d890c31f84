"""Indexes that begin with the organization are for those who ask for their second column, and for nobody else.

Revision ID: memory_0011

Of an organization that statistics do not know the planner expects one row, so that reading all its rows by any index
that begins with org_id costs, as it believes, what one row by the primary key does, and ten rows by their ids cost
more.  The index that came last, or was smallest, won: get() read the whole organization, and so did the foreign
key's check for each tag, version and relationship that was written.

A partial index is open to those statements alone that imply its predicate.  ``agent_id = $1`` implies that it is not
NULL, which a foreign key's cascade says too; a statement by ids does not.  Listing newest first names no moment, so
that it says itself what the index of it asks for.
"""

from ibex_db_core.migrations import online

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


def upgrade() -> None:
    """Build them beside the old ones, and then drop those."""
    for name, table, definition in _HIDDEN:
        online.create_index(name, table, definition)
    for name, _, _ in _OPEN:
        online.drop_index(name)


def downgrade() -> None:
    """Build the old ones first."""
    for name, table, definition in _OPEN:
        online.create_index(name, table, definition)
    for name, _, _ in _HIDDEN:
        online.drop_index(name)
