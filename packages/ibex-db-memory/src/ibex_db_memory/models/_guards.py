"""What the migrations put around the tables beside their policies, as it is meant to be today.

The doctor compares a live database with it; a migration that changes one of
these changes it here too.
"""

from ibex_db_core.guards import Function, Grant, Guards, Policy, Trigger
from ibex_db_core.policies import APP_ROLE, PLATFORM_ROLE, SEARCH_ROLE, TENANT_EXPRESSION
from ibex_db_memory._partition_sql import COPYING
from ibex_db_memory.models import _sharded

# The trigger functions run as whoever writes, under that role's policies.
_FIRST_VERSION = Function(
    "memories_first_version",
    """
BEGIN
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
    END IF;
    INSERT INTO ibex_core.memory_versions (org_id, memory_id, version_num, operation,
        content, category, status, confidence, metadata, valid_from, valid_until, change_reason, changed_by)
    SELECT org_id, id, 1, COALESCE(NULLIF(current_setting('app.change_operation', true), ''), 'created'),
        content, category, status, confidence, metadata, valid_from, valid_until,
        NULLIF(current_setting('app.change_reason', true), ''),
        NULLIF(current_setting('app.changed_by', true), '')::uuid
    FROM added
    ON CONFLICT (org_id, memory_id, version_num) DO NOTHING;
    RETURN NULL;
END """,
)
_NEXT_VERSION = Function(
    "memories_next_version",
    """
BEGIN
    INSERT INTO ibex_core.memory_versions (org_id, memory_id, version_num, operation,
        content, category, status, confidence, metadata, valid_from, valid_until,
        replaced_embedding, replaced_embedding_model, change_reason, changed_by)
    VALUES (NEW.org_id, NEW.id,
        -- One probe of memory_versions_number_key. The row lock on the memory keeps two writers from one number.
        (SELECT COALESCE(max(v.version_num), 0) + 1 FROM ibex_core.memory_versions v
            WHERE v.org_id = NEW.org_id AND v.memory_id = NEW.id),
        COALESCE(NULLIF(current_setting('app.change_operation', true), ''), CASE
            WHEN NEW.status IS NOT DISTINCT FROM OLD.status THEN 'updated'
            WHEN NEW.status IN ('superseded', 'merged') THEN NEW.status
            ELSE 'status_changed' END),
        NEW.content, NEW.category, NEW.status, NEW.confidence, NEW.metadata,
        NEW.valid_from, NEW.valid_until,
        CASE WHEN NEW.content <> OLD.content THEN OLD.embedding END,
        CASE WHEN NEW.content <> OLD.content AND OLD.embedding IS NOT NULL THEN OLD.embedding_model END,
        NULLIF(current_setting('app.change_reason', true), ''),
        NULLIF(current_setting('app.changed_by', true), '')::uuid);
    RETURN NULL;
END """,
)
_REFUSE_STEP = Function(
    "sessions_refuse_step",
    """
BEGIN
    RAISE EXCEPTION 'a session that is % cannot become %', OLD.status, NEW.status
        USING ERRCODE = '23514', CONSTRAINT = 'sessions_legal_step',
            TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
END """,
)
# Whatever a DELETE names, and in whatever order, the newest stays; without a session it is the cascade: memory_0005.
_KEEP_NEWEST = Function(
    "checkpoints_keep_newest",
    """
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
END """,
)

_REFUSE_MEMORY_STEP = Function(
    "memories_refuse_step",
    """
BEGIN
    RAISE EXCEPTION 'a memory that is % cannot become %', OLD.status, NEW.status
        USING ERRCODE = '23514', CONSTRAINT = 'memories_legal_step',
            TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
END """,
)
_FIND_WORDS = Function(
    "memories_find_words",
    """
BEGIN
    NEW.search_vector := pg_catalog.to_tsvector('pg_catalog.english'::regconfig, NEW.content);
    RETURN NEW;
END """,
)
# What an entry of the index of words is, and why so: memory_0007.
_WORD_KEYS = Function(
    "memories_word_keys",
    """
BEGIN
    RETURN ARRAY(SELECT substring(sha256(uuid_send(org) || convert_to(
            least(COALESCE(cardinality(said.positions), 1), 4)::text || said.lexeme, 'UTF8')) FROM 1 FOR 12)
        FROM unnest(words) said);
END """,
    arguments="org uuid, words tsvector",
    result="bytea[]",
    volatility="IMMUTABLE",
    options="PARALLEL SAFE COST 1000",
    settings={"search_path": "pg_catalog, pg_temp"},
)
# What it computes, and why so: memory_0002; how it finds it: memory_0009; why its plan is kept: memory_0013.
_BM25 = Function(
    "memories_bm25",
    f"""
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
END """,
    arguments="query text, agents uuid[], corpus_rows bigint, mean_length double precision, k1 double precision, "
    "b double precision",
    result="TABLE(memory_id uuid, score double precision)",
    volatility="STABLE",
    options="PARALLEL SAFE ROWS 1000",
    definer=SEARCH_ROLE,
    callers=(APP_ROLE,),
    settings={
        "search_path": "pg_catalog, pg_temp",
        "plan_cache_mode": "force_generic_plan",
        "jit": "off",
        "cpu_index_tuple_cost": "1000000",
        "enable_seqscan": "off",
        "enable_nestloop": "off",
        "enable_sort": "off",
    },
)

MEMORIES = Guards(
    copying=COPYING,
    triggers=(
        Trigger(
            "memories_after_insert",
            """AFTER INSERT ON ibex_core.memories
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION ibex_core.memories_first_version()""",
        ),
        Trigger(
            "memories_find_words",
            "BEFORE INSERT OR UPDATE OF content, search_vector ON ibex_core.memories "
            "FOR EACH ROW EXECUTE FUNCTION ibex_core.memories_find_words()",
        ),
        # MEMORY_STEPS in SQL; what is no status at all is for the CHECK rule to refuse.
        Trigger(
            "memories_before_step",
            """BEFORE UPDATE ON ibex_core.memories
    FOR EACH ROW WHEN (NEW.status <> OLD.status AND NOT CASE OLD.status
        WHEN 'pending_review' THEN NEW.status IN ('active', 'archived')
        WHEN 'active' THEN NEW.status IN ('archived', 'superseded', 'merged')
        ELSE NEW.status = 'active' END
        AND NEW.status IN ('active', 'superseded', 'merged', 'archived', 'pending_review'))
    EXECUTE FUNCTION ibex_core.memories_refuse_step()""",
        ),
        # Not of counters: bookkeeping must stay cheap, and is no history.
        Trigger(
            "memories_after_update",
            """AFTER UPDATE OF content, category, status, confidence, metadata, valid_from, valid_until
    ON ibex_core.memories
    FOR EACH ROW WHEN (
        NEW.content IS DISTINCT FROM OLD.content
        OR NEW.category IS DISTINCT FROM OLD.category
        OR NEW.status IS DISTINCT FROM OLD.status
        OR NEW.confidence IS DISTINCT FROM OLD.confidence
        OR NEW.metadata IS DISTINCT FROM OLD.metadata
        OR NEW.valid_from IS DISTINCT FROM OLD.valid_from
        OR NEW.valid_until IS DISTINCT FROM OLD.valid_until)
    EXECUTE FUNCTION ibex_core.memories_next_version()""",
        ),
    ),
    functions=(_FIRST_VERSION, _NEXT_VERSION, _REFUSE_MEMORY_STEP, _FIND_WORDS, _WORD_KEYS, _BM25),
    # Its only power is to own memories_bm25, which filters on the tenant itself.
    policies=(Policy("memories_search", SEARCH_ROLE, "true", command="SELECT"),),
    grants=(Grant(SEARCH_ROLE, "SELECT", ("org_id", "id", "agent_id", "content", "search_vector")),),
    # Room on each page for new versions of its rows: an update that finds none
    # leaves the page and enters every index anew, the vector index first.
    fillfactor=60,
    # Past 2 kB a row pushes its vector out of line, and exact scans take 3.5 times as long.
    storage={"embedding": "MAIN"},
    sharded=(_sharded.FIRST_VERSION, _sharded.NEXT_VERSION),
)

SESSIONS = Guards(
    triggers=(
        # SESSION_STEPS in SQL.
        Trigger(
            "sessions_before_step",
            """BEFORE UPDATE ON ibex_core.sessions
    FOR EACH ROW WHEN (NEW.status <> OLD.status AND NOT CASE OLD.status
        WHEN 'initializing' THEN NEW.status IN ('active', 'completed', 'failed', 'abandoned')
        WHEN 'active' THEN NEW.status IN ('suspended', 'completed', 'failed', 'abandoned')
        WHEN 'suspended' THEN NEW.status IN ('resuming', 'completed', 'failed', 'abandoned')
        WHEN 'resuming' THEN NEW.status IN ('active', 'suspended', 'completed', 'failed', 'abandoned')
        WHEN 'failed' THEN NEW.status = 'resuming'
        WHEN 'abandoned' THEN NEW.status = 'resuming'
        ELSE false END)
    EXECUTE FUNCTION ibex_core.sessions_refuse_step()""",
        ),
    ),
    functions=(_REFUSE_STEP,),
)

CHECKPOINTS = Guards(
    triggers=(
        Trigger(
            "checkpoints_before_delete",
            "BEFORE DELETE ON ibex_core.checkpoints FOR EACH ROW EXECUTE FUNCTION ibex_core.checkpoints_keep_newest()",
        ),
    ),
    functions=(_KEEP_NEWEST,),
    # Append-only but for pruning; decision 0033.
    grants=(Grant(APP_ROLE, "DELETE"), Grant(PLATFORM_ROLE, "DELETE")),
)

_ACTIVE_LAST = Function(
    "embedding_spaces_active_last",
    """
BEGIN
    IF EXISTS (SELECT FROM gone g JOIN ibex_core.embedding_spaces s ON s.org_id = g.org_id
            WHERE g.status = 'active') THEN
        RAISE EXCEPTION 'searches read this space: it goes last'
            USING ERRCODE = '23514', CONSTRAINT = 'embedding_spaces_active_last',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NULL;
END """,
)

# Why a function asks, and why its plan is kept: memory_0013.
_IS_ACTIVE = Function(
    "embedding_spaces_is_active",
    """
BEGIN
    IF space IS NULL THEN
        RETURN NOT EXISTS (SELECT FROM ibex_core.embedding_spaces s
            WHERE s.org_id = org AND s.status = 'active' AND NOT s.in_memories);
    END IF;
    RETURN EXISTS (SELECT FROM ibex_core.embedding_spaces s
        WHERE s.org_id = org AND s.status = 'active' AND s.id = space);
END """,
    arguments="org uuid, space uuid",
    result="boolean",
    volatility="STABLE",
    options="PARALLEL SAFE",
    settings={"search_path": "pg_catalog, pg_temp", "plan_cache_mode": "force_generic_plan"},
)

SPACES = Guards(
    triggers=(
        Trigger(
            "embedding_spaces_after_delete",
            """AFTER DELETE ON ibex_core.embedding_spaces
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION ibex_core.embedding_spaces_active_last()""",
        ),
    ),
    functions=(_ACTIVE_LAST, _IS_ACTIVE),
    sharded=(_sharded.ACTIVE_LAST,),
)

# Vectors of a space that is being filled come by UPDATE of a claim; what is inserted is a writer's.
_REFUSE_LATE = Function(
    "memory_vectors_refuse_late",
    """
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
END """,
)

VECTORS = Guards(
    triggers=(
        Trigger(
            "memory_vectors_after_insert",
            """AFTER INSERT ON ibex_core.memory_vectors
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION ibex_core.memory_vectors_refuse_late()""",
        ),
    ),
    functions=(_REFUSE_LATE,),
    # In line, as memories.embedding is; a vector of more than 2,000 numbers goes out of line all the same.
    storage={"embedding": "MAIN"},
    sharded=(_sharded.REFUSE_LATE,),
)
