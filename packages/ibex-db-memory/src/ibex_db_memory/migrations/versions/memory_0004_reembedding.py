"""Spaces of embeddings, and the vectors that lie beside the memories: an organization can move to another model.

Revision ID: memory_0004

Taking it back drops what lies beside the memories: an organization that moved
and has finished its move is left without vectors.
"""

from alembic import op

from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, secure

revision = "memory_0004"
down_revision = "memory_0003"
branch_labels = None
depends_on = None

_SPACES = """
CREATE TABLE ibex_core.embedding_spaces (
    org_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    embedding_model text,
    dimensions integer NOT NULL,
    status varchar(32) NOT NULL,
    in_memories boolean NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT embedding_spaces_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT embedding_spaces_status_key UNIQUE (org_id, status),
    CONSTRAINT embedding_spaces_dimensions_key UNIQUE (org_id, id, dimensions),
    CONSTRAINT embedding_spaces_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT embedding_spaces_embedding_model_length CHECK (char_length(embedding_model) BETWEEN 1 AND 255),
    CONSTRAINT embedding_spaces_dimensions_range CHECK (dimensions BETWEEN 1 AND 16000),
    CONSTRAINT embedding_spaces_space_status_known CHECK (status IN ('filling', 'active', 'retired'))
)
"""

_VECTORS = """
CREATE TABLE ibex_core.memory_vectors (
    org_id uuid NOT NULL,
    space_id uuid NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    content_hash varchar(64) NOT NULL,
    dimensions integer NOT NULL,
    embedding vector,
    claimed_until timestamptz,
    CONSTRAINT memory_vectors_pkey PRIMARY KEY (org_id, space_id, id),
    CONSTRAINT memory_vectors_org_id_fkey FOREIGN KEY (org_id)
        REFERENCES ibex_core.organizations (id) ON DELETE CASCADE,
    CONSTRAINT memory_vectors_org_id_id_fkey FOREIGN KEY (org_id, id)
        REFERENCES ibex_core.memories (org_id, id) ON DELETE CASCADE,
    CONSTRAINT memory_vectors_org_id_space_id_dimensions_fkey FOREIGN KEY (org_id, space_id, dimensions)
        REFERENCES ibex_core.embedding_spaces (org_id, id, dimensions) ON DELETE CASCADE,
    CONSTRAINT memory_vectors_embedding_dimensions CHECK (vector_dims(embedding) = dimensions),
    CONSTRAINT memory_vectors_embedded_or_claimed CHECK ((embedding IS NULL) = (claimed_until IS NOT NULL))
) PARTITION BY HASH (org_id)
"""

_INDEXED = (384, 512, 768, 1024, 1536)

# As many partitions as memories has, each closed to all but its parent.
_PARTITIONS = f"""
DO $$
DECLARE
    parts CONSTANT integer := (SELECT count(*) FROM pg_catalog.pg_inherits i
        WHERE i.inhparent = 'ibex_core.memories'::regclass);
    name text;
BEGIN
    FOR number IN 0 .. parts - 1 LOOP
        name := format('ibex_core.memory_vectors_p%s', lpad(number::text, greatest(2, length(number::text)), '0'));
        EXECUTE format('CREATE TABLE %s PARTITION OF ibex_core.memory_vectors FOR VALUES WITH (MODULUS %s, '
            'REMAINDER %s)', name, parts, number);
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, {APP_ROLE}, {PLATFORM_ROLE}', name);
    END LOOP;
END $$
"""

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
        WHERE px.indrelid = 'ibex_core.memory_vectors'::regclass
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', found.child, found.name);
    END LOOP;
END $$
"""

# Whoever wrote on the old belief is told, and not obeyed: asked in the trigger
# that each INSERT fires anyway, once a statement.  It runs after the foreign
# key's check of the organization, for which cut_over() lets nobody through, and
# sees what was committed meanwhile.
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
        content, category, status, confidence, metadata, change_reason, changed_by)
    SELECT org_id, id, 1, COALESCE(NULLIF(current_setting('app.change_operation', true), ''), 'created'),
        content, category, status, confidence, metadata,
        NULLIF(current_setting('app.change_reason', true), ''),
        NULLIF(current_setting('app.changed_by', true), '')::uuid
    FROM added
    ON CONFLICT (org_id, memory_id, version_num) DO NOTHING;
    RETURN NULL;
END $$
"""

_VECTORS_REFUSE_LATE = """
CREATE FUNCTION ibex_core.memory_vectors_refuse_late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added a WHERE a.embedding IS NOT NULL AND NOT EXISTS (
            SELECT FROM ibex_core.embedding_spaces s
            WHERE s.org_id = a.org_id AND s.id = a.space_id AND s.status = 'active')) THEN
        RAISE EXCEPTION 'vectors have % dimensions, of %: the organization moved to that model',
            (SELECT s.dimensions FROM ibex_core.embedding_spaces s JOIN added a ON s.org_id = a.org_id
                WHERE s.status = 'active' LIMIT 1),
            (SELECT s.embedding_model FROM ibex_core.embedding_spaces s JOIN added a ON s.org_id = a.org_id
                WHERE s.status = 'active' LIMIT 1)
            USING ERRCODE = '23514', CONSTRAINT = 'memory_vectors_embedding_space',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NULL;
END $$
"""
_VECTORS_TRIGGER = """
CREATE TRIGGER memory_vectors_after_insert AFTER INSERT ON ibex_core.memory_vectors
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION ibex_core.memory_vectors_refuse_late()
"""


def upgrade() -> None:
    """Make both tables, empty: no row of memories is touched."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(_SPACES)
    op.execute(_VECTORS)
    op.execute("ALTER TABLE ibex_core.memory_vectors ALTER COLUMN embedding SET STORAGE MAIN")
    op.execute(_PARTITIONS)
    op.execute("CREATE INDEX memory_vectors_id_idx ON ibex_core.memory_vectors (org_id, id)")
    for dimensions in _INDEXED:
        op.execute(
            f"CREATE INDEX memory_vectors_{dimensions}_hnsw ON ibex_core.memory_vectors "
            f"USING hnsw ((embedding::vector({dimensions})) vector_cosine_ops) "
            f"WITH (m = 16, ef_construction = 200) WHERE dimensions = {dimensions}"
        )
    op.execute(_RENAME_PARTITION_INDEXES)
    for table, touched in (("embedding_spaces", True), ("memory_vectors", False)):
        for statement in secure(table, touched=touched):
            op.execute(statement)
    op.execute(_FIRST_VERSION.format(refuse_late=_REFUSE_LATE))
    op.execute(_VECTORS_REFUSE_LATE)
    op.execute(_VECTORS_TRIGGER)
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Drop both."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    # Whatever is taken from memories locks its partitions first, and services lock memories first.
    op.execute("LOCK TABLE ibex_core.memories IN ACCESS EXCLUSIVE MODE")
    op.execute(_FIRST_VERSION.format(refuse_late=""))
    op.execute("SET LOCAL ROLE NONE")
    op.execute("DROP TABLE ibex_core.memory_vectors")
    op.execute("DROP TABLE ibex_core.embedding_spaces")
    op.execute("DROP FUNCTION ibex_core.memory_vectors_refuse_late()")
