"""What triggers call in a distributed database, in place of the functions of the same names.

No distributed query takes a transition table, nor a sub-select in VALUES: these go through the rows, and ask
with their organization, whose every row is on the same worker.
"""

from ibex_db_core.guards import Function

FIRST_VERSION = Function(
    "memories_first_version",
    """
DECLARE
    org uuid;
    space record;
    versions text;
BEGIN
    FOR org IN SELECT DISTINCT a.org_id FROM added a LOOP
        IF EXISTS (SELECT FROM added a WHERE a.org_id = org AND a.embedding IS NOT NULL) THEN
            -- What the writer believed of the organization's vectors no longer holds: cut_over() was there first.
            SELECT s.dimensions, s.embedding_model INTO space FROM ibex_core.embedding_spaces s
            WHERE s.org_id = org AND s.status = 'active' AND NOT s.in_memories;
            IF FOUND THEN
                RAISE EXCEPTION 'vectors have % dimensions, of %: the organization moved to that model',
                    space.dimensions, space.embedding_model
                    USING ERRCODE = '23514', CONSTRAINT = 'memories_embedding_space',
                        TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
            END IF;
        END IF;
        -- import_() brings the versions along, in the next statement: none may stand in place of the first.
        CONTINUE WHEN current_setting('app.versions_follow', true) = 'on';
        -- One statement, not one a row: to plan a distributed one takes longer than to insert.  The time is the
        -- memory's: the transaction of the worker began a little later than the coordinator's.
        SELECT string_agg(format('(%L, %L, 1, %L, %L, %L, %L, %L, %L, %L, %L, %L, %L, %L)', a.org_id, a.id,
            COALESCE(NULLIF(current_setting('app.change_operation', true), ''), 'created'),
            a.content, a.category, a.status, a.confidence, a.metadata, a.valid_from, a.valid_until,
            NULLIF(current_setting('app.change_reason', true), ''),
            NULLIF(current_setting('app.changed_by', true), ''), a.created_at), ', ')
        INTO versions FROM added a WHERE a.org_id = org;
        EXECUTE 'INSERT INTO ibex_core.memory_versions (org_id, memory_id, version_num, operation, content, category, '
            'status, confidence, metadata, valid_from, valid_until, change_reason, changed_by, created_at) VALUES '
            || versions || ' ON CONFLICT (org_id, memory_id, version_num) DO NOTHING';
    END LOOP;
    RETURN NULL;
END """,
)

NEXT_VERSION = Function(
    "memories_next_version",
    """
DECLARE
    number integer;
BEGIN
    -- The row lock on the memory keeps two writers from one number.
    SELECT COALESCE(max(v.version_num), 0) + 1 INTO number FROM ibex_core.memory_versions v
    WHERE v.org_id = NEW.org_id AND v.memory_id = NEW.id;
    INSERT INTO ibex_core.memory_versions (org_id, memory_id, version_num, operation,
        content, category, status, confidence, metadata, valid_from, valid_until,
        replaced_embedding, replaced_embedding_model, change_reason, changed_by)
    VALUES (NEW.org_id, NEW.id, number,
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

ACTIVE_LAST = Function(
    "embedding_spaces_active_last",
    """
DECLARE
    g record;
BEGIN
    FOR g IN SELECT * FROM gone WHERE status = 'active' LOOP
        PERFORM FROM ibex_core.embedding_spaces s WHERE s.org_id = g.org_id;
        IF FOUND THEN
            RAISE EXCEPTION 'searches read this space: it goes last'
                USING ERRCODE = '23514', CONSTRAINT = 'embedding_spaces_active_last',
                    TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
        END IF;
    END LOOP;
    RETURN NULL;
END """,
)

REFUSE_LATE = Function(
    "memory_vectors_refuse_late",
    """
DECLARE
    n record;
    space record;
BEGIN
    FOR n IN SELECT DISTINCT a.org_id, a.space_id FROM added a WHERE a.embedding IS NOT NULL LOOP
        SELECT s.id, s.dimensions, s.embedding_model INTO space FROM ibex_core.embedding_spaces s
        WHERE s.org_id = n.org_id AND s.status = 'active';
        IF space.id IS DISTINCT FROM n.space_id THEN
            RAISE EXCEPTION 'vectors have % dimensions, of %: the organization moved to that model',
                space.dimensions, space.embedding_model
                USING ERRCODE = '23514', CONSTRAINT = 'memory_vectors_embedding_space',
                    TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
        END IF;
    END LOOP;
    RETURN NULL;
END """,
)
