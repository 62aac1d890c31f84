"""Lexical search: the index of words, the function that scores them, and search_vector by trigger.

Revision ID: memory_0002

search_vector is no longer a generated column.  Postgres computes a generated
column anew on every UPDATE of a table that has a BEFORE UPDATE trigger, and a
fresh value never equals one that was stored compressed or out of line; with an
index on the column, such an UPDATE is not HOT, and every bump of a counter
would enter the row into the vector index anew.  A trigger computes it where
the content changes, and only there.
"""

from alembic import op

from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, SEARCH_ROLE, TENANT_EXPRESSION

revision = "memory_0002"
down_revision = "memory_0001"
branch_labels = None
depends_on = None

_FOLLOW_CONTENT = """
CREATE FUNCTION ibex_core.memories_find_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.search_vector := pg_catalog.to_tsvector('pg_catalog.english'::regconfig, NEW.content);
    RETURN NEW;
END $$
"""

# fastupdate off: a pending list would be read from end to end by every search,
# and beside the vector index the immediate insert does not show.
_INDEX = """
CREATE INDEX memories_search_vector_idx ON ibex_core.memories USING gin (search_vector) WITH (fastupdate = off)
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
        WHERE i.inhparent = 'ibex_core.memories_search_vector_idx'::regclass
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', found.child, found.name);
    END LOOP;
END $$
"""

# Okapi BM25 (Robertson and Zaragoza, The Probabilistic Relevance Framework:
# BM25 and Beyond, 2009) with the idf that is never negative, as Lucene has it:
#   sum over the query's lexemes of ln(1 + (N - df + 0.5) / (df + 0.5)) * tf * (k1 + 1)
#                                   / (tf + k1 * (1 - b + b * length / mean length))
# df counts the caller's own rows, never another tenant's.  What the caller
# passes in moves the caller's scores only; whose rows are read is not a parameter.
#
# ts_rank_cd of one word with every weight 1 is the number of its positions: tf.
# Parts are added as whole numbers (of 2^-32), which a float8 adds without
# rounding, so that no plan's order of rows changes the last bit of a sum.
_BM25 = f"""
CREATE FUNCTION ibex_core.memories_bm25(
    query text, agents uuid[], corpus_rows bigint, mean_length float8, k1 float8, b float8
) RETURNS TABLE (memory_id uuid, score float8)
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER ROWS 1000
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    org CONSTANT uuid := {TENANT_EXPRESSION};
    terms tsquery[];
    any_term tsquery;
BEGIN
    -- Quoted as tsquery's input wants it: no word of a text is ever an operator.
    SELECT array_agg(quoted::tsquery), string_agg(quoted, ' | ')::tsquery INTO terms, any_term
    FROM (
        SELECT '''' || replace(replace(word.lexeme, '\\', '\\\\'), '''', '''''') || ''''
        FROM unnest(to_tsvector('english'::regconfig, query)) word
    ) AS words (quoted);
    IF org IS NULL OR terms IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH found AS MATERIALIZED (
        -- Concatenated with nothing: read from out of line once, not for each term.
        SELECT m.id, m.search_vector || ''::tsvector AS words
        FROM ibex_core.memories m
        WHERE m.org_id = org AND (agents IS NULL OR m.agent_id = ANY (agents)) AND m.search_vector @@ any_term
    ), used AS (
        SELECT found.id, length(found.words) AS length, count(*) OVER (PARTITION BY term.number) AS df,
            ts_rank_cd('{{1, 1, 1, 1}}', found.words, term.query)::float8 AS tf
        FROM unnest(terms) WITH ORDINALITY AS term (query, number)
        JOIN found ON found.words @@ term.query
    )
    SELECT used.id, sum(round(
            ln(1 + (greatest(corpus_rows - used.df, 0) + 0.5::float8) / (used.df + 0.5::float8))
            * used.tf * (k1 + 1) / (used.tf + k1 * (1 - b + b * used.length / mean_length)) * 4294967296
        )) / 4294967296
    FROM used
    GROUP BY used.id;
END $$
"""
_SIGNATURE = "ibex_core.memories_bm25(text, uuid[], bigint, float8, float8, float8)"


def upgrade() -> None:
    """Make the index, the function and what its owner may read."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute("ALTER TABLE ibex_core.memories ALTER COLUMN search_vector DROP EXPRESSION")
    op.execute(_FOLLOW_CONTENT)
    # search_vector is named too: whatever a writer puts there is overwritten.
    op.execute(
        "CREATE TRIGGER memories_find_words BEFORE INSERT OR UPDATE OF content, search_vector ON ibex_core.memories "
        "FOR EACH ROW EXECUTE FUNCTION ibex_core.memories_find_words()"
    )
    op.execute(_INDEX)
    op.execute(_RENAME_PARTITION_INDEXES)
    # TO ibex_search alone: its only power is to own the function below, which filters on the tenant itself.
    op.execute(f"CREATE POLICY memories_search ON ibex_core.memories FOR SELECT TO {SEARCH_ROLE} USING (true)")
    op.execute(f"GRANT USAGE ON SCHEMA ibex_core TO {SEARCH_ROLE}")
    op.execute(f"GRANT SELECT (org_id, id, agent_id, search_vector) ON ibex_core.memories TO {SEARCH_ROLE}")
    op.execute(_BM25)
    op.execute(f"REVOKE ALL ON FUNCTION {_SIGNATURE} FROM PUBLIC")
    # Not ibex_platform: its sessions name no tenant, so the function would find nothing and not say why.
    op.execute(f"GRANT EXECUTE ON FUNCTION {_SIGNATURE} TO {APP_ROLE}")
    # The owner may become ibex_search (core_0001), which needs CREATE for no longer than it takes to own the function.
    op.execute(f"GRANT CREATE ON SCHEMA ibex_core TO {SEARCH_ROLE}")
    op.execute(f"ALTER FUNCTION {_SIGNATURE} OWNER TO {SEARCH_ROLE}")
    op.execute(f"REVOKE CREATE ON SCHEMA ibex_core FROM {SEARCH_ROLE}")
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Take lexical search away; the words are a generated column again."""
    # The schema's owner may drop what others own in it.
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    # Whatever is taken from memories locks its partitions first, and services lock memories first.
    op.execute("LOCK TABLE ibex_core.memories IN ACCESS EXCLUSIVE MODE")
    op.execute(f"DROP FUNCTION {_SIGNATURE}")
    op.execute(f"REVOKE SELECT (org_id, id, agent_id, search_vector) ON ibex_core.memories FROM {SEARCH_ROLE}")
    op.execute(f"REVOKE USAGE ON SCHEMA ibex_core FROM {SEARCH_ROLE}")
    op.execute("DROP POLICY memories_search ON ibex_core.memories")
    op.execute("DROP TRIGGER memories_find_words ON ibex_core.memories")
    op.execute("DROP FUNCTION ibex_core.memories_find_words()")
    op.execute("DROP INDEX ibex_core.memories_search_vector_idx")
    op.execute("ALTER TABLE ibex_core.memories DROP COLUMN search_vector")
    op.execute(
        "ALTER TABLE ibex_core.memories ADD COLUMN search_vector tsvector "
        "GENERATED ALWAYS AS (to_tsvector('english'::regconfig, content)) STORED NOT NULL"
    )
    op.execute("SET LOCAL ROLE NONE")
