"""Performance: what the server's own counters say of a database that has been at work for a while.

Counters begin with the server's last statistics reset; a database that has
done nothing yet has nothing to tell.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Row

from ibex_db_core.doctor.catalog import Audit, LiveTable
from ibex_db_core.doctor.findings import Finding, finding

__all__ = ["Limits", "checks"]

Check = Callable[[Audit], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on something is told.

    Attributes:
        rows: smaller tables are not worth a word.
        updates: fewer prove nothing about HOT.
        hot_ratio: the least share of updates that should be HOT where a table leaves room for them.
        dead_ratio: dead rows for each live one; autovacuum acts at 0.2.
        stale_ratio: rows changed since ANALYZE for each live one; autovacuum acts at 0.1.
        unused_days: an index that nothing asked for so long, counted from the statistics' reset.
        bloat: how many times the size of its entries an index may have; a fresh B-tree has about 1.1.
        bloat_bytes: smaller indexes are not worth a rebuild.
        vector_share: of shared_buffers that the vector indexes may take, all together.
        build_share: of maintenance_work_mem that the largest of them may take while it is built.
        skew: rows of the fullest partition for each of the average one.
        transaction_minutes: an open transaction older than this keeps every dead row alive.
        statement_ms: mean time of a statement.
        statement_calls: fewer runs are a fluke.
        transaction_age: transactions since the oldest unfrozen row; at 2,000 million the server stops writing.
    """

    rows: int = 10_000
    updates: int = 1_000
    hot_ratio: float = 0.9
    dead_ratio: float = 0.4
    stale_ratio: float = 0.5
    unused_days: float = 14.0
    bloat: float = 3.0
    bloat_bytes: int = 64 * 2**20
    vector_share: float = 1.0
    build_share: float = 1.0
    skew: float = 3.0
    transaction_minutes: float = 10.0
    statement_ms: float = 100.0
    statement_calls: int = 20
    transaction_age: int = 1_000_000_000


def checks(limits: Limits | None = None) -> tuple[Check, ...]:
    """Return the checks, each with its limits."""
    chosen = limits or Limits()
    every = (
        _check_rows,
        _check_skew,
        _check_indexes,
        _check_bloat,
        _check_memory,
        _check_transactions,
        _check_statements,
        _check_age,
    )
    return (*(partial(check, limits=chosen) for check in every), _check_sight)


# Partitions count for themselves: autovacuum visits each on its own.
_ROWS = """
    SELECT s.relid, s.n_live_tup AS live, s.n_dead_tup AS dead, s.n_tup_upd AS updated, s.n_tup_hot_upd AS hot,
           s.n_mod_since_analyze AS changed
      FROM pg_stat_all_tables s WHERE s.relid = ANY (:tables) ORDER BY s.relid
"""


def _check_rows(audit: Audit, *, limits: Limits) -> Iterator[Finding]:
    """Updates stay on their page, dead rows are cleared away, the planner knows the tables."""
    for row in audit.rows(_ROWS, tables=[oid for oid, table in audit.tables.items() if not table.partitioned]):
        table = audit.tables[row.relid]
        room = table.mapped is not None and table.guards.fillfactor < 100  # noqa: PLR2004 - percent
        if room and row.updated >= limits.updates and row.hot < limits.hot_ratio * row.updated:
            yield finding(
                "hot-updates",
                table.name,
                f"only {row.hot / row.updated:.0%} of {row.updated:,} updates stayed on their page (HOT): the others "
                "entered every index anew, the vector index first. Long transactions keep pages from being cleared, "
                "or rows were changed more than they were counted",
                f"VACUUM (ANALYZE) {table.name}",
            )
        if row.live < limits.rows:
            continue
        if row.dead > limits.dead_ratio * row.live:
            yield finding(
                "dead-rows",
                table.name,
                f"{row.dead:,} dead rows beside {row.live:,} live ones: scans read both, and searches of the vector "
                "index pass through both",
                f"VACUUM (ANALYZE) {table.name}",
                f"ALTER TABLE {table.name} SET (autovacuum_vacuum_scale_factor = 0.05)",
            )
        if row.changed > limits.stale_ratio * row.live:
            yield finding(
                "statistics-stale",
                table.name,
                f"{row.changed:,} rows changed since the last ANALYZE, of {row.live:,}: plans are for another table",
                f"ANALYZE {table.name}",
            )


_SIZES = """
    SELECT c.oid, c.reltuples::bigint AS rows FROM pg_class c WHERE c.oid = ANY (:tables) AND c.reltuples > 0
"""


def _check_skew(audit: Audit, *, limits: Limits) -> Iterator[Finding]:
    """No partition holds several times what the others hold."""
    parts: dict[int, list[tuple[LiveTable, int]]] = {}
    leaves = [oid for oid, table in audit.tables.items() if table.partition and not table.partitioned]
    held = {row.oid: row.rows for row in audit.rows(_SIZES, tables=leaves)}
    for oid in leaves:
        table = audit.tables[oid]
        parts.setdefault(table.root, []).append((table, held.get(oid, 0)))
    for root, found in parts.items():
        fullest, most = max(found, key=lambda one: one[1])
        mean = sum(rows for _, rows in found) / len(found)
        if most >= limits.rows and most > limits.skew * mean:
            yield finding(
                "partition-skew",
                fullest.name,
                f"{most:,} rows, {most / mean:.1f} times the mean of the {len(found)} of {audit.tables[root].name}:"
                " its vector index is the largest and slowest, and everybody in it shares that",
                f"-- SELECT org_id, count(*) FROM {fullest.name} GROUP BY org_id ORDER BY 2 DESC LIMIT 5; "
                "move the largest out, or take more partitions: docs/operations",
            )


# Summed over the partitions of an index: one organization's searches use one of them.
_INDEXES = """
    SELECT root.oid::regclass::text AS name, max(st.relid) AS relid, sum(st.idx_scan) AS scans,
           sum(pg_relation_size(st.indexrelid)) AS bytes, sum(t.n_live_tup) AS rows, bool_or(x.indisunique) AS unique,
           extract(epoch FROM now() - COALESCE(d.stats_reset, pg_postmaster_start_time())) / 86400.0 AS days
      FROM pg_stat_all_indexes st
      JOIN pg_index x ON x.indexrelid = st.indexrelid
      JOIN pg_stat_all_tables t ON t.relid = st.relid
      JOIN pg_class root ON root.oid = COALESCE(pg_partition_root(st.indexrelid)::oid, st.indexrelid)
      JOIN pg_stat_database d ON d.datname = current_database()
     WHERE st.relid = ANY (:tables)
     GROUP BY root.oid, d.stats_reset ORDER BY 1
"""


def _check_indexes(audit: Audit, *, limits: Limits) -> Iterator[Finding]:
    """Every index that is written is read."""
    for row in audit.rows(_INDEXES, tables=list(audit.tables)):
        if row.scans or row.unique or row.rows < limits.rows or row.days < limits.unused_days:
            continue
        root = audit.tables[audit.tables[row.relid].root]
        ours = root.mapped is not None and any(
            f"{root.mapped.schema}.{index.name}" == row.name.replace('"', "") for index in root.mapped.indexes
        )
        remedy = (
            "-- it belongs to the models: `ibex-db check` would miss it; tell its maintainers that nothing here asks it"
            if ours
            else f"DROP INDEX {row.name}"
        )
        yield finding(
            "index-unused",
            row.name,
            f"no query asked it in {row.days:.0f} days; every write pays for its {_bytes(row.bytes)}. Look at the "
            "replicas too, which count for themselves",
            remedy,
        )


# A B-tree's entry: 8 bytes of header, 4 of line pointer, and its columns, on pages filled to 90 %.
_BLOAT = """
    SELECT c.oid::regclass::text AS name, pg_relation_size(c.oid) AS bytes,
           pg_relation_size(c.oid) / nullif(c.reltuples * (12 + w.width) / 0.9, 0) AS ratio
      FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid AND c.relkind = 'i'
      JOIN pg_am am ON am.oid = c.relam AND am.amname = 'btree'
      JOIN pg_class t ON t.oid = x.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
      CROSS JOIN LATERAL (
          SELECT sum(COALESCE(s.avg_width, 8)) AS width
            FROM unnest(x.indkey::int2[]) k (attnum)
            JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum
            LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = t.relname AND s.attname = a.attname
      ) w
     WHERE x.indrelid = ANY (:tables) AND x.indexprs IS NULL AND c.reltuples > 0
     ORDER BY 1
"""


def _check_bloat(audit: Audit, *, limits: Limits) -> Iterator[Finding]:
    """B-trees are about as large as what they hold."""
    for row in audit.rows(_BLOAT, tables=list(audit.tables)):
        if row.bytes >= limits.bloat_bytes and row.ratio is not None and row.ratio > limits.bloat:
            yield finding(
                "index-bloated",
                row.name,
                f"{_bytes(row.bytes)}, about {row.ratio:.1f} times its entries: lookups read more pages than they need",
                f"REINDEX INDEX CONCURRENTLY {row.name}",
            )


# A graph of 384 numbers a vector takes 2,252 bytes a row while it is built and 2,049 on disk; larger vectors take less
# than their pages do, which they seldom fill.
_BUILT = 1.1
_MEMORY = """
    SELECT COALESCE(sum(pg_relation_size(c.oid)), 0) AS bytes, COALESCE(max(pg_relation_size(c.oid)), 0) AS largest,
           pg_size_bytes(current_setting('shared_buffers')) AS buffers,
           pg_size_bytes(current_setting('maintenance_work_mem')) AS building
      FROM pg_class c JOIN pg_am a ON a.oid = c.relam AND a.amname = 'hnsw' JOIN pg_index x ON x.indexrelid = c.oid
     WHERE x.indrelid = ANY (:tables) AND c.relkind = 'i'
"""


def _check_memory(audit: Audit, *, limits: Limits) -> Iterator[Finding]:
    """The vector indexes fit into memory: a search visits their pages at random, and so does who builds one."""
    for row in audit.rows(_MEMORY, tables=list(audit.tables)):
        if row.bytes > limits.vector_share * row.buffers:
            yield finding(
                "vector-index-memory",
                "shared_buffers",
                f"the vector indexes take {_bytes(row.bytes)}, and shared_buffers is {_bytes(row.buffers)}: a search "
                "walks their pages at random, and waits for the disk where they are in no cache",
                "-- ALTER SYSTEM SET shared_buffers = '...'  -- a quarter of the memory at least, and restart; or more "
                "memory, or smaller vectors",
            )
        needed = row.largest * _BUILT
        if needed > limits.build_share * row.building:
            yield finding(
                "vector-index-build",
                "maintenance_work_mem",
                f"the largest vector index takes {_bytes(needed)} to build, and maintenance_work_mem is "
                f"{_bytes(row.building)}: past that a build goes on through the table, many times slower (REINDEX, "
                "restoring a backup, another partition count)",
                f"-- SET maintenance_work_mem = '{_megabytes(needed)}MB' in the session that builds, where the "
                "server has so much to spare",
            )


_HIDDEN = """
    SELECT current_user AS login, quote_ident(current_user) AS quoted
     WHERE NOT (pg_has_role('pg_read_all_stats', 'USAGE') AND pg_has_role('pg_read_all_settings', 'USAGE'))
"""


def _check_sight(audit: Audit) -> Iterator[Finding]:
    """What others do is shown to this login: hidden rows would look like nothing found."""
    for row in audit.rows(_HIDDEN):
        yield finding(
            "activity-hidden",
            f"login {row.login}",
            "the server hides other logins' transactions and statements from it: old transactions and slow statements "
            "were not looked for",
            "-- by a superuser; or leave it out: --ignore activity-hidden",
            f"GRANT pg_monitor TO {row.quoted}",
        )


_TRANSACTIONS = """
    SELECT a.pid, COALESCE(a.usename, '?') AS login, COALESCE(a.application_name, '') AS application, a.state,
           extract(epoch FROM now() - a.xact_start) / 60.0 AS minutes
      FROM pg_stat_activity a
     WHERE a.datname = current_database() AND a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()
       AND a.backend_type = 'client backend'
     ORDER BY a.xact_start
"""


def _check_transactions(audit: Audit, *, limits: Limits) -> Iterator[Finding]:
    """Nobody holds a transaction open for long."""
    for row in audit.rows(_TRANSACTIONS):
        if row.minutes >= limits.transaction_minutes:
            yield finding(
                "transaction-old",
                f"backend {row.pid}",
                f"{row.login} ({row.application}) has held a transaction open for {row.minutes:.0f} minutes, now "
                f"{row.state}: no dead row younger than it can be cleared away, in any table, and HOT updates run out "
                "of room",
                f"-- SELECT pg_terminate_backend({row.pid}); set idle_in_transaction_session_timeout for that login",
            )


_WATCHED = """
    SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
     WHERE e.extname = 'pg_stat_statements'
       AND (SELECT s.setting FROM pg_settings s WHERE s.name = 'shared_preload_libraries') LIKE '%pg_stat_statements%'
"""


def _check_statements(audit: Audit, *, limits: Limits) -> Iterator[Finding]:
    """No statement on our tables is slow, where pg_stat_statements watches them."""
    watched = audit.rows(_WATCHED)
    if not watched:
        return
    slow = audit.rows(
        f"""
        SELECT s.queryid, s.calls, s.mean_exec_time AS mean,
               left(regexp_replace(s.query, '\\s+', ' ', 'g'), 120) AS said
          FROM {audit.qualified(watched[0].nspname, "pg_stat_statements")} s
          JOIN pg_database d ON d.oid = s.dbid AND d.datname = current_database()
         WHERE s.query LIKE '%ibex_core.%' AND s.calls >= :calls AND s.mean_exec_time >= :mean
           AND s.query ~* '^\\s*(with|select|insert|update|delete)\\y'
         ORDER BY s.calls * s.mean_exec_time DESC LIMIT 10
        """,
        calls=limits.statement_calls,
        mean=limits.statement_ms,
    )
    for row in slow:
        yield _slow(row)


def _slow(row: Row[tuple[object, ...]]) -> Finding:
    return finding(
        "statement-slow",
        f"statement {row.queryid}",
        f"{row.mean:.0f} ms on average over {row.calls:,} calls: {row.said}",
        "-- EXPLAIN (ANALYZE, BUFFERS) it within db.tenant(org_id); ANALYZE its tables first",
    )


_AGE = "SELECT age(datfrozenxid) AS age FROM pg_database WHERE datname = current_database()"


def _check_age(audit: Audit, *, limits: Limits) -> Iterator[Finding]:
    """Rows are frozen long before transaction numbers run out."""
    for row in audit.rows(_AGE):
        if row.age > limits.transaction_age:
            yield finding(
                "transaction-age",
                "database",
                f"its oldest rows are {row.age:,} transactions old; at 2,000,000,000 the server refuses every write",
                "VACUUM (FREEZE)",
            )


def _megabytes(size: float) -> int:
    """Return a round number of megabytes above a size."""
    return (int(size) // 2**20 // 64 + 1) * 64


def _bytes(size: float) -> str:
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:  # noqa: PLR2004 - of one unit in the next
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
