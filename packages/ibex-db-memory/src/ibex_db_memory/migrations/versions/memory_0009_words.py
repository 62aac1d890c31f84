"""Searches of words read the index that is each organization's own; counters reach no trigger.

Revision ID: memory_0009

One short transaction with memories to itself: old and new function, and old
and new trigger, are exchanged for readers and writers at once.

Processes of before this revision give the mean length of a memory in lexemes;
the length that the function compares with it is a tenth of a content's bytes,
which is about as many.  Their searches go on, with scores that differ a little.

The way back builds the old index first, for memory_0010 took it: interrupted
there, it leaves an index that the next upgrade drops with the old one.
"""

from alembic import op

from ibex_db_core.migrations import online
from ibex_db_core.policies import OWNER_ROLE, SEARCH_ROLE, TENANT_EXPRESSION

revision = "memory_0009"
down_revision = "memory_0008"
branch_labels = None
depends_on = None

# DROP TRIGGER locks the partitions and then their parent; whoever reads or writes locks the parent first, and one of
# the two would have to give way.
_TO_ITSELF = "LOCK TABLE ibex_core.memories IN ACCESS EXCLUSIVE MODE"
_OLD_INDEX = ("memories_search_vector_idx", "memories", "USING gin (search_vector) WITH (fastupdate = off)")

_HEAD = """
CREATE OR REPLACE FUNCTION ibex_core.memories_bm25(
    query text, agents uuid[], corpus_rows bigint, mean_length float8, k1 float8, b float8
) RETURNS TABLE (memory_id uuid, score float8)
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER ROWS 1000
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
SET jit = off"""
_AS = "\nAS $$"
# What the plan is, whatever statistics say.  Of an organization that they do not know the planner expects one row, and
# would take each of its rows' words apart for each entry (2 s at 1,000 memories) rather than look into the index of
# words.  So an entry of an index is dear here; three conditions that say the same are believed to leave next to none in
# the index of words, where no statistics of the entry that is asked for are (0.005 * 0.01 * 0.005); and OFFSET 0 keeps
# the condition inside.  Of what is found too few rows are expected then: it is hashed all the same.
_PLANNED = """
SET cpu_index_tuple_cost = 1000000
SET enable_seqscan = off
SET enable_nestloop = off
SET enable_sort = off"""
# Okapi BM25, as memory_0002 has it and explains it, with the length of a memory from its bytes: octet_length() reads
# the header of a value, not the value.  A word that is said n times has an entry of its own for each n, so each row is
# visited once for each of the query's words that it says, and nothing of it is read from out of line.
_BM25 = f"""{_HEAD}{_PLANNED}{_AS}
#variable_conflict use_column
DECLARE
    org CONSTANT uuid := {TENANT_EXPRESSION};
    asked CONSTANT text[] := tsvector_to_array(to_tsvector('english'::regconfig, query));
BEGIN
    IF org IS NULL OR cardinality(asked) = 0 THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH said AS MATERIALIZED (
        SELECT word.number, word.tf, m.id, m.length
        FROM (
            SELECT number, times::float8 AS tf,
                ARRAY[substring(sha256(uuid_send(org) || convert_to(times::text || lexeme, 'UTF8')) FROM 1 FOR 12)]
                    AS key
            FROM unnest(asked) WITH ORDINALITY AS asked (lexeme, number), generate_series(1, 4) AS times
            OFFSET 0
        ) word
        CROSS JOIN LATERAL (
            SELECT m.id, octet_length(m.content) / 10.0::float8 AS length
            FROM ibex_core.memories m
            WHERE m.org_id = org AND (agents IS NULL OR m.agent_id = ANY (agents))
                AND ibex_core.memories_word_keys(m.org_id, m.search_vector) @> word.key
                -- Twice more in other words: memory_0009 says for whom.
                AND ibex_core.memories_word_keys(m.org_id, m.search_vector) && word.key
                AND ibex_core.memories_word_keys(m.org_id, m.search_vector) @> (word.key || word.key)
            OFFSET 0
        ) m
    ), weighed AS (
        SELECT number, ln(1 + (greatest(corpus_rows - count(*), 0) + 0.5::float8) / (count(*) + 0.5::float8)) AS idf
        FROM said GROUP BY number
    )
    SELECT said.id, sum(round(
            idf * said.tf * (k1 + 1) / (said.tf + k1 * (1 - b + b * said.length / mean_length)) * 4294967296
        )) / 4294967296
    FROM said JOIN weighed USING (number)
    GROUP BY said.id;
END $$
"""
# As memory_0002 has it.
_OLD_BM25 = f"""{_HEAD}{_AS}
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

# An UPDATE that names none of these columns cannot change them: counters do not even have them compared, which
# fetched long contents from out of line.
_AFTER_UPDATE = """
CREATE TRIGGER memories_after_update AFTER UPDATE{of} ON ibex_core.memories
    FOR EACH ROW WHEN (
        NEW.content IS DISTINCT FROM OLD.content
        OR NEW.category IS DISTINCT FROM OLD.category
        OR NEW.status IS DISTINCT FROM OLD.status
        OR NEW.confidence IS DISTINCT FROM OLD.confidence
        OR NEW.metadata IS DISTINCT FROM OLD.metadata
        OR NEW.valid_from IS DISTINCT FROM OLD.valid_from
        OR NEW.valid_until IS DISTINCT FROM OLD.valid_until)
    EXECUTE FUNCTION ibex_core.memories_next_version()
"""
_KEPT = " OF content, category, status, confidence, metadata, valid_from, valid_until"


def upgrade() -> None:
    """Have the function read the new index, and the trigger fire for what it keeps."""
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(_TO_ITSELF)
    _replace(_BM25)
    _watch(_KEPT)
    op.execute("SET LOCAL ROLE NONE")


def downgrade() -> None:
    """Build the one index of everybody's words, and search it again."""
    online.create_index(*_OLD_INDEX)
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(_TO_ITSELF)
    _watch("")
    _replace(_OLD_BM25)
    op.execute("SET LOCAL ROLE NONE")


def _replace(function: str) -> None:
    """Be the search role, who owns the function and may make nothing in the schema, for just this long."""
    op.execute(f"GRANT CREATE ON SCHEMA ibex_core TO {SEARCH_ROLE}")
    op.execute(f"SET LOCAL ROLE {SEARCH_ROLE}")
    op.execute(function)
    op.execute(f"SET LOCAL ROLE {OWNER_ROLE}")
    op.execute(f"REVOKE CREATE ON SCHEMA ibex_core FROM {SEARCH_ROLE}")


def _watch(columns: str) -> None:
    op.execute("DROP TRIGGER memories_after_update ON ibex_core.memories")
    op.execute(_AFTER_UPDATE.format(of=columns))
