"""The whole schema as lines of facts, so that two of them can be compared."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

# What pg_dump --schema-only would say, from the catalog: one line for each thing
# of the schema, by name.  Owners and grants included, for they isolate.
_SNAPSHOT = """
    WITH rel AS (
        SELECT c.* FROM pg_class c WHERE c.relnamespace = 'ibex_core'::regnamespace
    )
    SELECT 'schema', nspname::text, pg_get_userbyid(nspowner)::text, nspacl::text FROM pg_namespace
     WHERE nspname = 'ibex_core'
    UNION ALL
    SELECT 'extension', extname::text, extversion, NULL FROM pg_extension
    UNION ALL
    SELECT 'relation', relname, concat_ws(' ', relkind, pg_get_userbyid(relowner), relrowsecurity, relforcerowsecurity,
           relispartition, pg_get_expr(relpartbound, oid), reloptions), relacl::text FROM rel
    UNION ALL
    SELECT 'column', rel.relname || '.' || a.attname, concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnum,
           a.attnotnull, a.attstorage, a.attgenerated, a.attidentity, pg_get_expr(d.adbin, d.adrelid)), a.attacl::text
      FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid AND a.attnum > 0 AND NOT a.attisdropped
      LEFT JOIN pg_attrdef d ON d.adrelid = rel.oid AND d.adnum = a.attnum
    UNION ALL
    -- That a parent's is validated is what counts: before Postgres 18 nothing tells its children for each partition
    -- that it refers to, which nobody reads.
    SELECT 'constraint', rel.relname || '.' || k.conname,
           CASE WHEN told THEN definition ELSE replace(definition, ' NOT VALID', '') END,
           CASE WHEN told THEN k.convalidated::text END
      FROM rel JOIN pg_constraint k ON k.conrelid = rel.oid
      CROSS JOIN LATERAL (
        SELECT pg_get_constraintdef(k.oid) AS definition,
               k.conparentid = 0 OR current_setting('server_version_num')::int >= 180000 AS told
      ) AS said
    UNION ALL
    SELECT 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid), concat_ws(' ', indisvalid, indisready)
      FROM rel JOIN pg_index i ON i.indrelid = rel.oid
    UNION ALL
    SELECT 'trigger', rel.relname || '.' || t.tgname, pg_get_triggerdef(t.oid), t.tgenabled::text
      FROM rel JOIN pg_trigger t ON t.tgrelid = rel.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT 'policy', tablename || '.' || policyname, concat_ws(' ', permissive, roles, cmd),
           concat_ws(' ', qual, with_check)
      FROM pg_policies WHERE schemaname = 'ibex_core'
    UNION ALL
    SELECT 'function', p.oid::regprocedure::text, pg_get_functiondef(p.oid),
           concat_ws(' ', pg_get_userbyid(p.proowner), p.proacl)
      FROM pg_proc p WHERE p.pronamespace = 'ibex_core'::regnamespace
    UNION ALL
    SELECT 'default grant', pg_get_userbyid(defaclrole), defaclobjtype::text, defaclacl::text FROM pg_default_acl
    UNION ALL
    SELECT 'type', t.typname::text, t.typtype::text, pg_get_userbyid(t.typowner) FROM pg_type t
     WHERE t.typnamespace = 'ibex_core'::regnamespace AND t.typtype IN ('d', 'e')
"""

Snapshot = set[tuple[str | None, ...]]


async def snapshot(engine: AsyncEngine) -> Snapshot:
    """Return what is there."""
    async with engine.connect() as connection:
        return {tuple(row) for row in await connection.execute(text(_SNAPSHOT))}
