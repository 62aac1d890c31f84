"""Whether an organization's searches read a space is asked by a function that keeps its plan.

Revision ID: memory_0013

Each vector search carries that question as a condition.  Statements are planned anew each time (decision 0005), and
planning a second table with policies of its own was most of what the server took longer for our search of a small
tenant than for a plain one.  The function's plan is generic, which is the right one: it reads one organization's few
spaces by their key, whoever that is.

Processes of before this revision ask as they did; those of after it need the function.
"""

from alembic import op

from ibex_db_core.policies import OWNER_ROLE

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


def upgrade() -> None:
    """Make it."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(_IS_ACTIVE)
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Take it away."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute("DROP FUNCTION ibex_core.embedding_spaces_is_active(uuid, uuid)")
    op.execute("SET LOCAL ROLE NONE")
