"""For searches of the past versions keep validity and replaced vectors; memories step legally; checkpoints are pruned.

Revision ID: memory_0005
"""

from alembic import op

from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE

revision = "memory_0005"
down_revision = "memory_0004"
branch_labels = None
depends_on = None

# As memory_0004 has it.
_REFUSE_LATE = """
    -- What the writer believed of the organization's vectors no longer holds: cut_over() was there first.
    IF EXISTS (SELECT FROM ibex_core.embedding_spaces s WHERE s.status = 'active' AND NOT s.in_memories)
        AND EXISTS (SELECT FROM added a JOIN ibex_core.embedding_spaces s ON s.org_id = a.org_id
            WHERE s.status = 'active' AND NOT s.in_memories AND a.embedding IS NOT NULL) THEN
        RAISE EXCEPTION 'vectors have % dimensions, of %: the organization moved to that model',
            (SELECT s.dimensions FROM ibex_core.embedding_spaces s JOIN added a ON s.org_id = a.org_id
                WHERE s.status = 'active' LIMIT 1),
            (SELECT s.embedding_model FROM ibex_core.embedding_spaces s JOIN added a ON s.org_id = a.org_id
                WHERE s.status = 'active' LIMIT 1)
            USING ERRCODE = '23514', CONSTRAINT = 'memories_embedding_space',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;"""
_FIRST_VERSION = """
CREATE OR REPLACE FUNCTION ibex_core.memories_first_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN{refuse_late}
    INSERT INTO ibex_core.memory_versions (org_id, memory_id, version_num, operation,
        content, category, status, confidence, metadata,{names} change_reason, changed_by)
    SELECT org_id, id, 1, COALESCE(NULLIF(current_setting('app.change_operation', true), ''), 'created'),
        content, category, status, confidence, metadata,{names}
        NULLIF(current_setting('app.change_reason', true), ''),
        NULLIF(current_setting('app.changed_by', true), '')::uuid
    FROM added
    ON CONFLICT (org_id, memory_id, version_num) DO NOTHING;
    RETURN NULL;
END $$
"""
_NEXT_VERSION = """
CREATE OR REPLACE FUNCTION ibex_core.memories_next_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ibex_core.memory_versions (org_id, memory_id, version_num, operation,
        content, category, status, confidence, metadata,{names} change_reason, changed_by)
    VALUES (NEW.org_id, NEW.id,
        -- One probe of memory_versions_number_key. The row lock on the memory keeps two writers from one number.
        (SELECT COALESCE(max(v.version_num), 0) + 1 FROM ibex_core.memory_versions v
            WHERE v.org_id = NEW.org_id AND v.memory_id = NEW.id),
        COALESCE(NULLIF(current_setting('app.change_operation', true), ''), CASE
            WHEN NEW.status IS NOT DISTINCT FROM OLD.status THEN 'updated'
            WHEN NEW.status IN ('superseded', 'merged') THEN NEW.status
            ELSE 'status_changed' END),
        NEW.content, NEW.category, NEW.status, NEW.confidence, NEW.metadata,{values}
        NULLIF(current_setting('app.change_reason', true), ''),
        NULLIF(current_setting('app.changed_by', true), '')::uuid);
    RETURN NULL;
END $$
"""
_NAMES = " valid_from, valid_until,"
_VALUES = """
        NEW.valid_from, NEW.valid_until,
        CASE WHEN NEW.content <> OLD.content THEN OLD.embedding END,
        CASE WHEN NEW.content <> OLD.content AND OLD.embedding IS NOT NULL THEN OLD.embedding_model END,"""

_AFTER_UPDATE = """
CREATE TRIGGER memories_after_update AFTER UPDATE ON ibex_core.memories
    FOR EACH ROW WHEN (
        NEW.content IS DISTINCT FROM OLD.content
        OR NEW.category IS DISTINCT FROM OLD.category
        OR NEW.status IS DISTINCT FROM OLD.status
        OR NEW.confidence IS DISTINCT FROM OLD.confidence
        OR NEW.metadata IS DISTINCT FROM OLD.metadata{validity})
    EXECUTE FUNCTION ibex_core.memories_next_version()
"""
_VALIDITY = """
        OR NEW.valid_from IS DISTINCT FROM OLD.valid_from
        OR NEW.valid_until IS DISTINCT FROM OLD.valid_until"""

# A row is refused where nothing newer stands by it, so whatever a DELETE names, and in whatever order, the newest
# stays.  The session's row is locked: nobody erases it, or prunes it too, between the look and the deletion.
# Where the session itself is gone, this is the cascade.
_KEEP_NEWEST = """
CREATE FUNCTION ibex_core.checkpoints_keep_newest() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM ibex_core.sessions s WHERE s.org_id = OLD.org_id AND s.id = OLD.session_id FOR NO KEY UPDATE;
    IF FOUND AND NOT EXISTS (
        SELECT FROM ibex_core.checkpoints c
        WHERE c.org_id = OLD.org_id AND c.session_id = OLD.session_id AND c.sequence_number > OLD.sequence_number
    ) THEN
        RAISE EXCEPTION 'checkpoint % is the newest of its session: it goes with the session only', OLD.sequence_number
            USING ERRCODE = '42501', TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN OLD;
END $$
"""

_REFUSE_STEP = """
CREATE FUNCTION ibex_core.memories_refuse_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a memory that is % cannot become %', OLD.status, NEW.status
        USING ERRCODE = '23514', CONSTRAINT = 'memories_legal_step',
            TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
END $$
"""
# MEMORY_STEPS in SQL; what is no status at all is for the CHECK rule to refuse.
_BEFORE_STEP = """
CREATE TRIGGER memories_before_step BEFORE UPDATE ON ibex_core.memories
    FOR EACH ROW WHEN (NEW.status <> OLD.status AND NOT CASE OLD.status
        WHEN 'pending_review' THEN NEW.status IN ('active', 'archived')
        WHEN 'active' THEN NEW.status IN ('archived', 'superseded', 'merged')
        ELSE NEW.status = 'active' END
        AND NEW.status IN ('active', 'superseded', 'merged', 'archived', 'pending_review'))
    EXECUTE FUNCTION ibex_core.memories_refuse_step()
"""


def upgrade() -> None:
    """Have versions keep more, and open checkpoints to pruning."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    # Before the versions, as whoever writes; and before its partitions, which DROP TRIGGER would lock first.
    op.execute("LOCK TABLE ibex_core.memories IN ACCESS EXCLUSIVE MODE")
    # No dimension: the model may change, and what was replaced keeps the dimension that it had.
    op.execute(
        "ALTER TABLE ibex_core.memory_versions ADD COLUMN valid_from timestamptz, ADD COLUMN valid_until timestamptz, "
        "ADD COLUMN replaced_embedding vector, ADD COLUMN replaced_embedding_model text"
    )
    _versions(first=_NAMES, names=f"{_NAMES}\n        replaced_embedding, replaced_embedding_model,", values=_VALUES)
    _watch(_VALIDITY)
    op.execute(_REFUSE_STEP)
    op.execute(_BEFORE_STEP)
    op.execute(_KEEP_NEWEST)
    op.execute(
        "CREATE TRIGGER checkpoints_before_delete BEFORE DELETE ON ibex_core.checkpoints "
        "FOR EACH ROW EXECUTE FUNCTION ibex_core.checkpoints_keep_newest()"
    )
    op.execute(f"GRANT DELETE ON ibex_core.checkpoints TO {APP_ROLE}, {PLATFORM_ROLE}")
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Forget replaced vectors and past validity; checkpoints are there for good again."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    # Before the versions, as whoever writes; and before its partitions, which DROP TRIGGER would lock first.
    op.execute("LOCK TABLE ibex_core.memories IN ACCESS EXCLUSIVE MODE")
    op.execute(f"REVOKE DELETE ON ibex_core.checkpoints FROM {APP_ROLE}, {PLATFORM_ROLE}")
    op.execute("DROP TRIGGER checkpoints_before_delete ON ibex_core.checkpoints")
    op.execute("DROP FUNCTION ibex_core.checkpoints_keep_newest()")
    op.execute("DROP TRIGGER memories_before_step ON ibex_core.memories")
    op.execute("DROP FUNCTION ibex_core.memories_refuse_step()")
    _watch("")
    _versions(first="", names="", values="")
    op.execute(
        "ALTER TABLE ibex_core.memory_versions DROP COLUMN valid_from, DROP COLUMN valid_until, "
        "DROP COLUMN replaced_embedding, DROP COLUMN replaced_embedding_model"
    )
    op.execute("SET LOCAL ROLE NONE")


def _versions(*, first: str, names: str, values: str) -> None:
    op.execute(_FIRST_VERSION.format(names=first, refuse_late=_REFUSE_LATE))
    op.execute(_NEXT_VERSION.format(names=names, values=values))


def _watch(validity: str) -> None:
    op.execute("DROP TRIGGER memories_after_update ON ibex_core.memories")
    op.execute(_AFTER_UPDATE.format(validity=validity))
