"""Sessions, checkpoints, memories in partitions, their versions, relationships and tags.

Revision ID: memory_0001

IBEX_MEMORY_PARTITIONS, read here and never again, sets in how many hash
partitions the memories lie: 1 to 1024, by default 16.  Another number later means moving every row.

All SQL is written out, so that this revision stays what it is when the models move on.
"""

import os
import re

from alembic import op

from ibex_db_core.errors import MigrationError
from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, secure

revision = "memory_0001"
down_revision = None
branch_labels = ("memory",)
depends_on = "tenancy_0001"

_PARTITIONS = 16
# Room on each page for new versions of its rows: an update that finds none
# leaves the page and enters every index anew, the vector index first.  60, not
# 70: contents of a few words would fit three rows to a page and leave too little
# (46 % HOT measured, where 60 gives 100 % at every length tried).
_FILLFACTOR = 60
_MOST_PARTITIONS = 1024

_SESSIONS = """
CREATE TABLE ibex_core.sessions (
    org_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    agent_id uuid NOT NULL,
    user_id uuid,
    directive_version_id uuid,
    external_id text,
    status varchar(32) DEFAULT 'initializing' NOT NULL,
    started_at timestamptz DEFAULT now() NOT NULL,
    last_heartbeat_at timestamptz DEFAULT now() NOT NULL,
    suspended_at timestamptz,
    ended_at timestamptz,
    checkpoint_sequence integer DEFAULT 0 NOT NULL,
    turn_count integer DEFAULT 0 NOT NULL,
    last_error text,
    metadata jsonb DEFAULT '{}' NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT sessions_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT sessions_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT sessions_org_id_agent_id_fkey FOREIGN KEY (org_id, agent_id)
        REFERENCES ibex_core.agents (org_id, id) ON DELETE CASCADE,
    CONSTRAINT sessions_org_id_user_id_fkey FOREIGN KEY (org_id, user_id)
        REFERENCES ibex_core.users (org_id, id) ON DELETE SET NULL (user_id),
    CONSTRAINT sessions_org_id_directive_version_id_fkey FOREIGN KEY (org_id, directive_version_id)
        REFERENCES ibex_core.directive_versions (org_id, id) ON DELETE SET NULL (directive_version_id),
    CONSTRAINT sessions_external_id_length CHECK (char_length(external_id) BETWEEN 1 AND 255),
    CONSTRAINT sessions_session_status_known CHECK (status IN (
        'initializing', 'active', 'suspended', 'resuming', 'completed', 'failed', 'abandoned')),
    CONSTRAINT sessions_checkpoint_sequence_range CHECK (checkpoint_sequence >= 0),
    CONSTRAINT sessions_turn_count_range CHECK (turn_count >= 0),
    CONSTRAINT sessions_metadata_is_object CHECK (jsonb_typeof(metadata) = 'object')
);
CREATE UNIQUE INDEX sessions_external_id_key ON ibex_core.sessions (org_id, agent_id, external_id)
    WHERE external_id IS NOT NULL;
CREATE INDEX sessions_agent_id_idx ON ibex_core.sessions (org_id, agent_id);
CREATE INDEX sessions_live_heartbeat_idx ON ibex_core.sessions (org_id, last_heartbeat_at)
    WHERE status IN ('initializing', 'active', 'resuming');
CREATE INDEX sessions_user_id_idx ON ibex_core.sessions (org_id, user_id) WHERE user_id IS NOT NULL;
CREATE INDEX sessions_directive_version_id_idx ON ibex_core.sessions (org_id, directive_version_id)
    WHERE directive_version_id IS NOT NULL
"""

_CHECKPOINTS = """
CREATE TABLE ibex_core.checkpoints (
    org_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    session_id uuid NOT NULL,
    sequence_number integer NOT NULL,
    state jsonb NOT NULL,
    state_hash varchar(64) NOT NULL,
    state_size_bytes integer NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT checkpoints_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT checkpoints_sequence_key UNIQUE (org_id, session_id, sequence_number),
    CONSTRAINT checkpoints_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT checkpoints_org_id_session_id_fkey FOREIGN KEY (org_id, session_id)
        REFERENCES ibex_core.sessions (org_id, id) ON DELETE CASCADE,
    CONSTRAINT checkpoints_sequence_number_range CHECK (sequence_number >= 1),
    CONSTRAINT checkpoints_state_is_object CHECK (jsonb_typeof(state) = 'object'),
    CONSTRAINT checkpoints_state_hash_format CHECK (state_hash ~ '^[0-9a-f]{64}$'),
    CONSTRAINT checkpoints_state_size_range CHECK (state_size_bytes >= 2)
)
"""

_MEMORIES = """
CREATE TABLE ibex_core.memories (
    org_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    agent_id uuid NOT NULL,
    session_id uuid,
    content text NOT NULL,
    content_hash varchar(64) NOT NULL,
    embedding vector(384),
    embedding_model text,
    category varchar(32) NOT NULL,
    source varchar(32) DEFAULT 'extracted' NOT NULL,
    status varchar(32) DEFAULT 'active' NOT NULL,
    confidence numeric(4, 3) DEFAULT 0.800 NOT NULL,
    usefulness_score numeric(4, 3) DEFAULT 0.500 NOT NULL,
    retrieval_count integer DEFAULT 0 NOT NULL,
    positive_feedback integer DEFAULT 0 NOT NULL,
    negative_feedback integer DEFAULT 0 NOT NULL,
    last_retrieved_at timestamptz,
    last_injected_at timestamptz,
    superseded_by uuid,
    merged_into uuid,
    valid_from timestamptz DEFAULT now() NOT NULL,
    valid_until timestamptz,
    expires_at timestamptz,
    metadata jsonb DEFAULT '{}' NOT NULL,
    search_vector tsvector GENERATED ALWAYS AS (to_tsvector('english'::regconfig, content)) STORED NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    deleted_at timestamptz,
    CONSTRAINT memories_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT memories_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT memories_org_id_agent_id_fkey FOREIGN KEY (org_id, agent_id)
        REFERENCES ibex_core.agents (org_id, id) ON DELETE CASCADE,
    CONSTRAINT memories_org_id_session_id_fkey FOREIGN KEY (org_id, session_id)
        REFERENCES ibex_core.sessions (org_id, id) ON DELETE SET NULL (session_id),
    CONSTRAINT memories_org_id_superseded_by_fkey FOREIGN KEY (org_id, superseded_by)
        REFERENCES ibex_core.memories (org_id, id) ON DELETE SET NULL (superseded_by),
    CONSTRAINT memories_org_id_merged_into_fkey FOREIGN KEY (org_id, merged_into)
        REFERENCES ibex_core.memories (org_id, id) ON DELETE SET NULL (merged_into),
    CONSTRAINT memories_content_not_empty CHECK (content ~ '\\S'),
    CONSTRAINT memories_content_max_length CHECK (char_length(content) <= 8192),
    CONSTRAINT memories_content_hash_format CHECK (content_hash ~ '^[0-9a-f]{64}$'),
    CONSTRAINT memories_embedding_model_length CHECK (char_length(embedding_model) BETWEEN 1 AND 255),
    CONSTRAINT memories_memory_category_known CHECK (category IN (
        'factual', 'preference', 'behavioral', 'episodic', 'procedural')),
    CONSTRAINT memories_memory_source_known CHECK (source IN (
        'extracted', 'user_provided', 'imported', 'inferred')),
    CONSTRAINT memories_memory_status_known CHECK (status IN (
        'active', 'superseded', 'merged', 'archived', 'pending_review')),
    CONSTRAINT memories_confidence_range CHECK (confidence >= 0 AND confidence <= 1),
    CONSTRAINT memories_usefulness_score_range CHECK (usefulness_score >= 0 AND usefulness_score <= 1),
    CONSTRAINT memories_retrieval_count_range CHECK (retrieval_count >= 0),
    CONSTRAINT memories_feedback_range CHECK (positive_feedback >= 0 AND negative_feedback >= 0),
    CONSTRAINT memories_not_superseded_by_itself CHECK (superseded_by <> id),
    CONSTRAINT memories_not_merged_into_itself CHECK (merged_into <> id),
    CONSTRAINT memories_valid_from_before_until CHECK (valid_from < valid_until),
    CONSTRAINT memories_metadata_is_object CHECK (jsonb_typeof(metadata) = 'object')
) PARTITION BY HASH (org_id);
-- Past 2 kB a row pushes its vector out of line, and exact scans take 3.5 times as long.
ALTER TABLE ibex_core.memories ALTER COLUMN embedding SET STORAGE MAIN;
CREATE UNIQUE INDEX memories_content_hash_org ON ibex_core.memories (org_id, agent_id, content_hash)
    WHERE status = 'active' AND deleted_at IS NULL;
CREATE INDEX memories_agent_id_idx ON ibex_core.memories (org_id, agent_id);
CREATE INDEX memories_embedding_hnsw ON ibex_core.memories USING hnsw (embedding vector_cosine_ops)
    WITH (m = 16, ef_construction = 200);
CREATE INDEX memories_expires_at_idx ON ibex_core.memories (org_id, expires_at)
    WHERE expires_at IS NOT NULL AND deleted_at IS NULL;
CREATE INDEX memories_session_id_idx ON ibex_core.memories (org_id, session_id) WHERE session_id IS NOT NULL;
CREATE INDEX memories_superseded_by_idx ON ibex_core.memories (org_id, superseded_by) WHERE superseded_by IS NOT NULL;
CREATE INDEX memories_merged_into_idx ON ibex_core.memories (org_id, merged_into) WHERE merged_into IS NOT NULL
"""

# A partition's index is named after its parent, plus _pNN: what a duplicate is
# reported under, so that one rule leads from it to the parent's name.
_RENAME_PARTITION_INDEXES = """
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT child.oid::regclass AS child, parent.relname || substring(part.relname from '_p[0-9]+$') AS name
        FROM pg_catalog.pg_inherits i
        JOIN pg_catalog.pg_class child ON child.oid = i.inhrelid
        JOIN pg_catalog.pg_class parent ON parent.oid = i.inhparent
        JOIN pg_catalog.pg_index x ON x.indexrelid = child.oid
        JOIN pg_catalog.pg_class part ON part.oid = x.indrelid
        JOIN pg_catalog.pg_index px ON px.indexrelid = parent.oid
        WHERE px.indrelid = 'ibex_core.memories'::regclass
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', found.child, found.name);
    END LOOP;
END $$
"""

_VERSIONS = """
CREATE TABLE ibex_core.memory_versions (
    org_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    memory_id uuid NOT NULL,
    version_num integer NOT NULL,
    operation varchar(32) NOT NULL,
    content text NOT NULL,
    category varchar(32) NOT NULL,
    status varchar(32) NOT NULL,
    confidence numeric(4, 3) NOT NULL,
    metadata jsonb NOT NULL,
    change_reason text,
    changed_by uuid,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT memory_versions_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT memory_versions_number_key UNIQUE (org_id, memory_id, version_num),
    CONSTRAINT memory_versions_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT memory_versions_org_id_memory_id_fkey FOREIGN KEY (org_id, memory_id)
        REFERENCES ibex_core.memories (org_id, id) ON DELETE CASCADE,
    CONSTRAINT memory_versions_version_num_range CHECK (version_num >= 1),
    CONSTRAINT memory_versions_version_operation_known CHECK (operation IN (
        'created', 'updated', 'status_changed', 'superseded', 'merged', 'archived', 'approved', 'restored',
        'reverted', 'imported')),
    CONSTRAINT memory_versions_memory_category_known CHECK (category IN (
        'factual', 'preference', 'behavioral', 'episodic', 'procedural')),
    CONSTRAINT memory_versions_memory_status_known CHECK (status IN (
        'active', 'superseded', 'merged', 'archived', 'pending_review'))
)
"""

_RELATIONSHIPS = """
CREATE TABLE ibex_core.memory_relationships (
    org_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    source_memory_id uuid NOT NULL,
    target_memory_id uuid NOT NULL,
    relationship_type varchar(32) NOT NULL,
    confidence numeric(4, 3) DEFAULT 1.000 NOT NULL,
    notes text,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT memory_relationships_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT memory_relationships_edge_key
        UNIQUE (org_id, source_memory_id, target_memory_id, relationship_type),
    CONSTRAINT memory_relationships_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT memory_relationships_org_id_source_memory_id_fkey FOREIGN KEY (org_id, source_memory_id)
        REFERENCES ibex_core.memories (org_id, id) ON DELETE CASCADE,
    CONSTRAINT memory_relationships_org_id_target_memory_id_fkey FOREIGN KEY (org_id, target_memory_id)
        REFERENCES ibex_core.memories (org_id, id) ON DELETE CASCADE,
    CONSTRAINT memory_relationships_relationship_type_known CHECK (relationship_type IN (
        'supersedes', 'contradicts', 'specializes', 'generalizes', 'merged_from', 'derived_from', 'related_to')),
    CONSTRAINT memory_relationships_no_self_loop CHECK (source_memory_id <> target_memory_id),
    CONSTRAINT memory_relationships_confidence_range CHECK (confidence >= 0 AND confidence <= 1)
);
CREATE INDEX memory_relationships_target_idx
    ON ibex_core.memory_relationships (org_id, target_memory_id, relationship_type)
"""

_TAGS = """
CREATE TABLE ibex_core.memory_tags (
    org_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    memory_id uuid NOT NULL,
    tag text NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT memory_tags_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT memory_tags_tag_key UNIQUE (org_id, memory_id, tag),
    CONSTRAINT memory_tags_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT memory_tags_org_id_memory_id_fkey FOREIGN KEY (org_id, memory_id)
        REFERENCES ibex_core.memories (org_id, id) ON DELETE CASCADE,
    CONSTRAINT memory_tags_tag_length CHECK (char_length(tag) BETWEEN 1 AND 64)
);
CREATE INDEX memory_tags_tag_idx ON ibex_core.memory_tags (org_id, tag)
"""

# The trigger functions run as whoever writes, under that role's policies.
_FUNCTIONS = (
    """
CREATE FUNCTION ibex_core.memories_first_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ibex_core.memory_versions (org_id, memory_id, version_num, operation,
        content, category, status, confidence, metadata, change_reason, changed_by)
    SELECT org_id, id, 1, COALESCE(NULLIF(current_setting('app.change_operation', true), ''), 'created'),
        content, category, status, confidence, metadata,
        NULLIF(current_setting('app.change_reason', true), ''),
        NULLIF(current_setting('app.changed_by', true), '')::uuid
    FROM added;
    RETURN NULL;
END $$
""",
    """
CREATE FUNCTION ibex_core.memories_next_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ibex_core.memory_versions (org_id, memory_id, version_num, operation,
        content, category, status, confidence, metadata, change_reason, changed_by)
    VALUES (NEW.org_id, NEW.id,
        -- One probe of memory_versions_number_key. The row lock on the memory keeps two writers from one number.
        (SELECT COALESCE(max(v.version_num), 0) + 1 FROM ibex_core.memory_versions v
            WHERE v.org_id = NEW.org_id AND v.memory_id = NEW.id),
        COALESCE(NULLIF(current_setting('app.change_operation', true), ''), CASE
            WHEN NEW.status IS NOT DISTINCT FROM OLD.status THEN 'updated'
            WHEN NEW.status IN ('superseded', 'merged') THEN NEW.status
            ELSE 'status_changed' END),
        NEW.content, NEW.category, NEW.status, NEW.confidence, NEW.metadata,
        NULLIF(current_setting('app.change_reason', true), ''),
        NULLIF(current_setting('app.changed_by', true), '')::uuid);
    RETURN NULL;
END $$
""",
    """
CREATE FUNCTION ibex_core.sessions_refuse_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a session that is % cannot become %', OLD.status, NEW.status
        USING ERRCODE = '23514', CONSTRAINT = 'sessions_legal_step',
            TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
END $$
""",
)

_TRIGGERS = (
    """
CREATE TRIGGER memories_after_insert AFTER INSERT ON ibex_core.memories
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION ibex_core.memories_first_version()
""",
    # Not of counters: bookkeeping must stay cheap, and is no history.
    """
CREATE TRIGGER memories_after_update AFTER UPDATE ON ibex_core.memories
    FOR EACH ROW WHEN (
        NEW.content IS DISTINCT FROM OLD.content
        OR NEW.category IS DISTINCT FROM OLD.category
        OR NEW.status IS DISTINCT FROM OLD.status
        OR NEW.confidence IS DISTINCT FROM OLD.confidence
        OR NEW.metadata IS DISTINCT FROM OLD.metadata)
    EXECUTE FUNCTION ibex_core.memories_next_version()
""",
    # SESSION_STEPS in SQL.
    """
CREATE TRIGGER sessions_before_step BEFORE UPDATE ON ibex_core.sessions
    FOR EACH ROW WHEN (NEW.status <> OLD.status AND NOT CASE OLD.status
        WHEN 'initializing' THEN NEW.status IN ('active', 'completed', 'failed', 'abandoned')
        WHEN 'active' THEN NEW.status IN ('suspended', 'completed', 'failed', 'abandoned')
        WHEN 'suspended' THEN NEW.status IN ('resuming', 'completed', 'failed', 'abandoned')
        WHEN 'resuming' THEN NEW.status IN ('active', 'suspended', 'completed', 'failed', 'abandoned')
        WHEN 'failed' THEN NEW.status = 'resuming'
        WHEN 'abandoned' THEN NEW.status = 'resuming'
        ELSE false END)
    EXECUTE FUNCTION ibex_core.sessions_refuse_step()
""",
)


def upgrade() -> None:
    """Make the tables, their partitions, policies and triggers."""
    count = _partition_count()
    # All that is made below belongs to the owner role from the start.
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    _run(_SESSIONS)
    _run(_CHECKPOINTS)
    _run(_MEMORIES)
    for number in range(count):
        _partition(number, count)
    op.execute(_RENAME_PARTITION_INDEXES)
    _run(_VERSIONS)
    _run(_RELATIONSHIPS)
    _run(_TAGS)
    for function in _FUNCTIONS:
        op.execute(function)
    for table, append_only, touched in (
        ("sessions", False, True),
        ("checkpoints", True, False),
        ("memories", False, True),
        ("memory_versions", True, False),
        ("memory_relationships", False, False),
        ("memory_tags", False, False),
    ):
        for statement in secure(table, append_only=append_only, touched=touched):
            op.execute(statement)
    for trigger in _TRIGGERS:
        op.execute(trigger)
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Drop it all, rows included; 1024 partitions want max_locks_per_transaction raised from 64 first."""
    for table in ("memory_tags", "memory_relationships", "memory_versions", "memories", "checkpoints", "sessions"):
        op.execute(f"DROP TABLE ibex_core.{table}")
    for function in ("memories_first_version", "memories_next_version", "sessions_refuse_step"):
        op.execute(f"DROP FUNCTION ibex_core.{function}()")


def _run(statements: str) -> None:
    """Execute one at a time: a prepared statement holds only one."""
    for statement in statements.split(";\n"):
        op.execute(statement)


def _partition(number: int, count: int) -> None:
    """Make one partition: closed to all but its parent, with room for HOT updates on each page."""
    name = f"ibex_core.memories_p{number:02d}"
    op.execute(
        f"CREATE TABLE {name} PARTITION OF ibex_core.memories "
        f"FOR VALUES WITH (MODULUS {count}, REMAINDER {number}) WITH (fillfactor = {_FILLFACTOR})"
    )
    op.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY")
    # Default privileges of the database may have granted some.
    op.execute(f"REVOKE ALL ON {name} FROM PUBLIC, {APP_ROLE}, {PLATFORM_ROLE}")


def _partition_count() -> int:
    given = os.environ.get("IBEX_MEMORY_PARTITIONS", str(_PARTITIONS)).strip()
    if not re.fullmatch("[0-9]{1,4}", given) or not 1 <= int(given) <= _MOST_PARTITIONS:
        raise MigrationError(
            f"IBEX_MEMORY_PARTITIONS must be a whole number from 1 to {_MOST_PARTITIONS}, not {given!r}"
        )
    return int(given)
