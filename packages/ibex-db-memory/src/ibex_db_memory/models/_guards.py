"""What the migrations put around the tables beside their policies, as it is meant to be today.

The doctor compares a live database with it; a migration that changes one of
these changes it here too.
"""

from ibex_db_core.guards import Function, Guards, Trigger

# The trigger functions run as whoever writes, under that role's policies.
_FIRST_VERSION = Function(
    "memories_first_version",
    """
BEGIN
    INSERT INTO ibex_core.memory_versions (org_id, memory_id, version_num, operation,
        content, category, status, confidence, metadata, change_reason, changed_by)
    SELECT org_id, id, 1, COALESCE(NULLIF(current_setting('app.change_operation', true), ''), 'created'),
        content, category, status, confidence, metadata,
        NULLIF(current_setting('app.change_reason', true), ''),
        NULLIF(current_setting('app.changed_by', true), '')::uuid
    FROM added;
    RETURN NULL;
END """,
)
_NEXT_VERSION = Function(
    "memories_next_version",
    """
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

MEMORIES = Guards(
    triggers=(
        Trigger(
            "memories_after_insert",
            """AFTER INSERT ON ibex_core.memories
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION ibex_core.memories_first_version()""",
        ),
        # Not of counters: bookkeeping must stay cheap, and is no history.
        Trigger(
            "memories_after_update",
            """AFTER UPDATE ON ibex_core.memories
    FOR EACH ROW WHEN (
        NEW.content IS DISTINCT FROM OLD.content
        OR NEW.category IS DISTINCT FROM OLD.category
        OR NEW.status IS DISTINCT FROM OLD.status
        OR NEW.confidence IS DISTINCT FROM OLD.confidence
        OR NEW.metadata IS DISTINCT FROM OLD.metadata)
    EXECUTE FUNCTION ibex_core.memories_next_version()""",
        ),
    ),
    functions=(_FIRST_VERSION, _NEXT_VERSION),
    # Room on each page for new versions of its rows: an update that finds none
    # leaves the page and enters every index anew, the vector index first.
    fillfactor=60,
    # Past 2 kB a row pushes its vector out of line, and exact scans take 3.5 times as long.
    storage={"embedding": "MAIN"},
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
