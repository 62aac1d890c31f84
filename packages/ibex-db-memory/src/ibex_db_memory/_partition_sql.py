"""The SQL of partitioning: what the catalog says of memories, and how a copy of it is made, kept and renamed."""

from collections.abc import Sequence

from ibex_db_core.guards import Copying, Function, Policy, Trigger
from ibex_db_core.policies import OWNER_ROLE

TABLE = "ibex_core.memories"
NEXT = "ibex_core.memories_next"

STATUS = """
    SELECT (SELECT count(*) FROM pg_catalog.pg_inherits WHERE inhparent = to_regclass('ibex_core.memories'))::int
               AS partitions,
           (SELECT count(*) FROM pg_catalog.pg_inherits WHERE inhparent = to_regclass('ibex_core.memories_next'))::int
               AS copying_to,
           m.rows, n.rows AS copied, m.size,
           (SELECT count(*) FROM pg_catalog.pg_constraint WHERE confrelid = to_regclass('ibex_core.memories')
               AND NOT convalidated)::int AS unvalidated
      FROM (SELECT COALESCE(sum(greatest(c.reltuples, s.n_live_tup, 0)), 0)::bigint AS rows,
                   COALESCE(sum(pg_total_relation_size(c.oid)), 0)::bigint AS size
              FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
              LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
             WHERE i.inhparent = to_regclass('ibex_core.memories')) m,
           (SELECT COALESCE(sum(greatest(c.reltuples, s.n_live_tup, 0)), 0)::bigint AS rows
              FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
              LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
             WHERE i.inhparent = to_regclass('ibex_core.memories_next')) n
"""

COLUMNS = """
    SELECT quote_ident(attname) AS name FROM pg_catalog.pg_attribute
     WHERE attrelid = 'ibex_core.memories'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
     ORDER BY attnum
"""
PARTITION_OPTIONS = """
    SELECT COALESCE('WITH (' || array_to_string(c.reloptions, ', ') || ')', '')
      FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'ibex_core.memories'::regclass ORDER BY c.relname LIMIT 1
"""
COPY = (
    f"CREATE TABLE {NEXT} (LIKE {TABLE} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE "
    "INCLUDING COMPRESSION INCLUDING GENERATED INCLUDING COMMENTS INCLUDING STATISTICS) PARTITION BY HASH (org_id)"
)

_KEYS = """
    SELECT quote_ident(k.conname) AS name, pg_get_constraintdef(k.oid) AS definition,
           k.conrelid::regclass::text AS table, c.relkind = 'p' AS partitioned
      FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
     WHERE k.contype = 'f' AND k.conparentid = 0 AND {which} ORDER BY k.conname
"""
_MEMORIES = "'ibex_core.memories'::regclass"
OUTGOING = _KEYS.format(which=f"k.conrelid = {_MEMORIES} AND k.confrelid <> {_MEMORIES}")
ITSELF = _KEYS.format(which=f"k.conrelid = {_MEMORIES} AND k.confrelid = {_MEMORIES}")
INCOMING = _KEYS.format(which=f"k.conrelid <> {_MEMORIES} AND k.confrelid = {_MEMORIES}")
UNVALIDATED = _KEYS.format(which=f"k.confrelid = {_MEMORIES} AND NOT k.convalidated")
CHILDREN = f"""
    SELECT DISTINCT k.conrelid::regclass::text AS name FROM pg_catalog.pg_constraint k
     WHERE k.contype = 'f' AND k.conparentid = 0 AND k.confrelid = {_MEMORIES} AND k.conrelid <> {_MEMORIES} ORDER BY 1
"""

# Named to fire before memories_after_update: what that one writes points at a row that must be in the copy by then.
_MIRROR = Trigger(
    "memories_aa_mirror",
    f"AFTER INSERT OR DELETE OR UPDATE ON {TABLE} FOR EACH ROW EXECUTE FUNCTION ibex_core.memories_mirror()",
)
# Policies hold for the owner too; this lets it read what it copies. Nobody who serves a tenant is a member of it.
_SEE_ALL = Policy("memories_repartition", OWNER_ROLE, "true")
MIRROR_TRIGGER = _MIRROR.create()
SEE_ALL = _SEE_ALL.create(TABLE)
NO_MIRROR = (
    f"DROP TRIGGER {_MIRROR.name} ON {TABLE}",
    "DROP FUNCTION ibex_core.memories_mirror()",
    f"DROP POLICY {_SEE_ALL.name} ON {TABLE}",
)


def mirror(columns: Sequence[str]) -> Function:
    """Return the function that writes to the copy what was written to the table; with the owner's rights."""
    names, new = ", ".join(columns), ", ".join(f"NEW.{name}" for name in columns)
    values = ", ".join(f"{name} = EXCLUDED.{name}" for name in columns if name not in {"org_id", "id"})
    return Function(
        "memories_mirror",
        f"""
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM {NEXT} WHERE org_id = OLD.org_id AND id = OLD.id;
        RETURN NULL;
    END IF;
    INSERT INTO {NEXT} ({names}) VALUES ({new})
        ON CONFLICT (org_id, id) DO UPDATE SET {values};
    RETURN NULL;
END """,
        definer=OWNER_ROLE,
        settings={"search_path": "pg_catalog, pg_temp"},
    )


COPYING = Copying(
    code="repartition-under-way",
    copy=NEXT.rpartition(".")[2],
    trigger=_MIRROR,
    function=mirror,
    policy=_SEE_ALL,
    risk="a repartition to {partitions} is under way, or was interrupted: until it ends, each write of a memory is "
    "made twice, and the copy takes room",
    remedy=(
        "where none runs, go on: ibex-db repartition --partitions {partitions}",
        "or take it back: ibex-db repartition --abandon",
    ),
)
"""What the doctor tells as one for as long as the copy is there."""


# A row is locked against deletion until it is in the copy, or the mirror of its DELETE would find nothing there yet.
# One that is updated meanwhile is newer in the copy, and stays.
FILL = f"""
    WITH batch AS MATERIALIZED (
        SELECT {{names}} FROM {TABLE} WHERE (org_id, id) > (:org, :id) ORDER BY org_id, id LIMIT :batch FOR KEY SHARE
    ), kept AS (
        INSERT INTO {NEXT} ({{names}}) SELECT {{names}} FROM batch ON CONFLICT (org_id, id) DO NOTHING
    )
    SELECT org_id, id, count(*) OVER () AS read FROM batch ORDER BY org_id DESC, id DESC LIMIT 1
"""

INDEXES = f"""
    SELECT c.relname::text AS name, i.indisunique AS unique, pg_get_indexdef(c.oid) AS definition
      FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
     WHERE i.indrelid = {_MEMORIES} AND NOT i.indisprimary ORDER BY 1
"""

# Of the copy or of one of its partitions, which no index of memories stands behind (any more).
STRAY = f"""
    SELECT c.oid::regclass::text AS name FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid AND c.relname LIKE 'next\\_%' AND NOT c.relispartition
      JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
     CROSS JOIN LATERAL (SELECT COALESCE(substring(t.relname from '_p[0-9]+$'), '') AS suffix) part
     WHERE (t.oid = '{NEXT}'::regclass OR t.oid IN (
               SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = '{NEXT}'::regclass))
       AND NOT EXISTS (
           SELECT FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class m ON m.oid = x.indexrelid
            WHERE x.indrelid = {_MEMORIES}
              AND c.relname = left('next_' || m.relname, 63 - length(part.suffix)) || part.suffix)
     ORDER BY 1
"""

COMPARE = f"""
    SELECT m.rows, m.hash, n.rows AS copied, n.hash AS copied_hash
      FROM (SELECT count(*) AS rows, sum(hashtextextended(t::text, 0)::numeric) AS hash FROM {TABLE} t) m,
           (SELECT count(*) AS rows, sum(hashtextextended(t::text, 0)::numeric) AS hash FROM {NEXT} t) n
"""

TRIGGERS = f"""
    SELECT t.tgname::text AS name, pg_get_triggerdef(t.oid) AS statement FROM pg_catalog.pg_trigger t
     WHERE t.tgrelid = {_MEMORIES} AND NOT t.tgisinternal ORDER BY 1
"""

# Policies and grants, as statements; their text names the table, which the copy is by the time they run.
AROUND = f"""
    SELECT format('ALTER TABLE {TABLE} FORCE ROW LEVEL SECURITY') AS statement
    UNION ALL
    SELECT format('CREATE POLICY %I ON {TABLE} AS %s FOR %s TO %s', p.policyname, p.permissive, p.cmd,
               (SELECT string_agg(quote_ident(r), ', ') FROM unnest(p.roles) r))
           || COALESCE(' USING (' || p.qual || ')', '') || COALESCE(' WITH CHECK (' || p.with_check || ')', '')
      FROM pg_catalog.pg_policies p WHERE p.schemaname = 'ibex_core' AND p.tablename = 'memories'
    UNION ALL
    (SELECT format('GRANT %s ON {TABLE} TO %s', string_agg(a.privilege_type, ', '),
                quote_ident(pg_get_userbyid(a.grantee)))
       FROM pg_catalog.pg_class c,
            aclexplode(c.relacl) WITH ORDINALITY a (grantor, grantee, privilege_type, is_grantable, number)
      WHERE c.oid = {_MEMORIES} AND a.grantee <> c.relowner AND a.grantee <> 0
      GROUP BY a.grantee ORDER BY min(a.number))
    UNION ALL
    SELECT format('GRANT %s (%s) ON {TABLE} TO %s', a.privilege_type, string_agg(quote_ident(t.attname), ', '),
               quote_ident(pg_get_userbyid(a.grantee)))
      FROM pg_catalog.pg_attribute t, aclexplode(t.attacl) a
     WHERE t.attrelid = {_MEMORIES} AND t.attnum > 0 AND NOT t.attisdropped GROUP BY a.privilege_type, a.grantee
"""

# A partition's index is named after its parent, plus _pNN: what a duplicate is reported under.
RENAME = f"""
DO $$
DECLARE
    found record;
BEGIN
    ALTER TABLE {NEXT} RENAME TO memories;
    ALTER TABLE {TABLE} RENAME CONSTRAINT memories_next_pkey TO memories_pkey;
    FOR found IN
        SELECT c.oid::regclass AS name, 'memories' || substring(c.relname from '_p[0-9]+$') AS meant
        FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = '{TABLE}'::regclass
    LOOP
        EXECUTE format('ALTER TABLE %s RENAME TO %I', found.name, found.meant);
    END LOOP;
    FOR found IN
        SELECT c.oid::regclass AS name, substring(c.relname from 6) AS meant
        FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class c ON c.oid = x.indexrelid
        WHERE x.indrelid = '{TABLE}'::regclass AND c.relname LIKE 'next\\_%'
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', found.name, found.meant);
    END LOOP;
    FOR found IN
        SELECT child.oid::regclass AS name, parent.relname || substring(part.relname from '_p[0-9]+$') AS meant
        FROM pg_catalog.pg_inherits i
        JOIN pg_catalog.pg_class child ON child.oid = i.inhrelid
        JOIN pg_catalog.pg_class parent ON parent.oid = i.inhparent
        JOIN pg_catalog.pg_index x ON x.indexrelid = child.oid
        JOIN pg_catalog.pg_class part ON part.oid = x.indrelid
        JOIN pg_catalog.pg_index px ON px.indexrelid = parent.oid
        WHERE px.indrelid = '{TABLE}'::regclass
    LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', found.name, found.meant);
    END LOOP;
END $$
"""
