"""What has one plan that is right for every organization keeps it, in a function: no search plans it anew.

Revision ID: memory_0013

Statements are planned anew each time, for where a vector index may or may not be taken no plan is right for all
(decision 0005).  Two parts of a search are not of that kind:

- whether the organization's searches read a space.  Each vector search carries that question as a condition, and
  planning a second table with policies of its own was most of what the server took longer for our search of a small
  tenant than for a plain one.  A function asks now: it reads one organization's few spaces by their key.
- the words, in memories_bm25: its plan is forced by its settings, whatever statistics say (memory_0009).

Processes of before this revision ask as they did; those of after it need the new function.
"""

from alembic import op

from ibex_db_core.policies import OWNER_ROLE, SEARCH_ROLE

revision = "memory_0013"
down_revision = "memory_0012"
branch_labels = None
depends_on = None

_IS_ACTIVE = """
CREATE OR REPLACE FUNCTION ibex_core.embedding_spaces_is_active(org uuid, space uuid) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    IF space IS NULL THEN
        RETURN NOT EXISTS (SELECT FROM ibex_core.embedding_spaces s
            WHERE s.org_id = org AND s.status = 'active' AND NOT s.in_memories);
    END IF;
    RETURN EXISTS (SELECT FROM ibex_core.embedding_spaces s
        WHERE s.org_id = org AND s.status = 'active' AND s.id = space);
END $$
"""
_BM25 = "ibex_core.memories_bm25(text, uuid[], bigint, float8, float8, float8)"


def upgrade() -> None:
    """Make the one function, and have the other keep its plan."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(_IS_ACTIVE)
    op.execute(f"SET LOCAL ROLE {SEARCH_ROLE}")
    op.execute(f"ALTER FUNCTION {_BM25} SET plan_cache_mode = force_generic_plan")
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Take the one away, and have the other plan anew."""
    op.execute(f"SET LOCAL ROLE {SEARCH_ROLE}")
    op.execute(f"ALTER FUNCTION {_BM25} SET plan_cache_mode = force_custom_plan")
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute("DROP FUNCTION ibex_core.embedding_spaces_is_active(uuid, uuid)")
    op.execute("SET LOCAL ROLE NONE")
