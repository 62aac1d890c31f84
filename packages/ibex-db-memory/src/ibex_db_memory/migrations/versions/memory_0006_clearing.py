"""A space is marked before its vectors are cleared away, and the one that searches read is the last to go.

Revision ID: memory_0006
"""

from alembic import op

from ibex_db_core.policies import OWNER_ROLE

revision = "memory_0006"
down_revision = "memory_0005"
branch_labels = None
depends_on = None

_ACTIVE_LAST = """
CREATE FUNCTION ibex_core.embedding_spaces_active_last() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM gone g JOIN ibex_core.embedding_spaces s ON s.org_id = g.org_id
            WHERE g.status = 'active') THEN
        RAISE EXCEPTION 'searches read this space: it goes last'
            USING ERRCODE = '23514', CONSTRAINT = 'embedding_spaces_active_last',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NULL;
END $$
"""
_AFTER_DELETE = """
CREATE TRIGGER embedding_spaces_after_delete AFTER DELETE ON ibex_core.embedding_spaces
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION ibex_core.embedding_spaces_active_last()
"""


def upgrade() -> None:
    """Know one status more."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    _known("'filling', 'active', 'retired', 'clearing'")
    op.execute(_ACTIVE_LAST)
    op.execute(_AFTER_DELETE)
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Call it retired again: there is one other space at most, and way back there is none while vectors lack."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute("DROP TRIGGER embedding_spaces_after_delete ON ibex_core.embedding_spaces")
    op.execute("DROP FUNCTION ibex_core.embedding_spaces_active_last()")
    # Every organization's rows, which the policies keep from the owner, too.
    op.execute("ALTER TABLE ibex_core.embedding_spaces NO FORCE ROW LEVEL SECURITY")
    op.execute("UPDATE ibex_core.embedding_spaces SET status = 'retired' WHERE status = 'clearing'")
    op.execute("ALTER TABLE ibex_core.embedding_spaces FORCE ROW LEVEL SECURITY")
    _known("'filling', 'active', 'retired'")
    op.execute("SET LOCAL ROLE NONE")


def _known(statuses: str) -> None:
    name = "embedding_spaces_space_status_known"
    op.execute(f"ALTER TABLE ibex_core.embedding_spaces DROP CONSTRAINT {name}")
    op.execute(f"ALTER TABLE ibex_core.embedding_spaces ADD CONSTRAINT {name} CHECK (status IN ({statuses})) NOT VALID")
    op.execute(f"ALTER TABLE ibex_core.embedding_spaces VALIDATE CONSTRAINT {name}")
