"""The dry run: revisions run for true on a throw-away copy of the schema, whose server is asked what they did."""

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import uuid4

from alembic.runtime.migration import RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Row, event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core.base import SCHEMA
from ibex_db_core.distribution.cluster import is_distributed
from ibex_db_core.engine import EngineSettings, create_engine
from ibex_db_core.errors import ConfigurationError, EmbeddedPostgresError, MigrationError
from ibex_db_core.migrations import moving, runner
from ibex_db_core.migrations.plans import MODES, MigrationPlan, PlannedRevision, PlannedStatement, TableLock
from ibex_db_core.migrations.waiting import Holder
from ibex_db_core.provisioning import Cluster
from ibex_db_core.translation import translated
from ibex_db_core.url import parse

__all__ = ["plan"]

_SIZES = text("""
    SELECT COALESCE(pg_partition_root(c.oid), c.oid)::regclass::text AS name,
           bool_or(c.relkind = 'r' AND (c.reltuples >= 0 OR s.n_live_tup > 0)) AS counted,
           sum(greatest(c.reltuples, COALESCE(s.n_live_tup, 0), 0))::bigint AS rows
      FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
     WHERE c.relkind = 'r' AND c.relnamespace = to_regnamespace('ibex_core') GROUP BY 1
""")
_IN_THE_WAY = text("""
    SELECT a.pid, a.usename::text AS login, a.application_name::text AS application, a.state,
           extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds, left(a.query, 80) AS query
      FROM pg_catalog.pg_stat_activity a
     WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
       AND a.xact_start < clock_timestamp() - interval '2 seconds'
       AND EXISTS (SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_class c ON c.oid = l.relation
                    WHERE l.pid = a.pid AND l.granted
                      AND COALESCE(pg_partition_root(c.oid), c.oid)::regclass::text = ANY (:tables))
     ORDER BY a.xact_start LIMIT 10
""")


async def plan(engine: AsyncEngine, revision: str, *, down: bool, scratch: str | None) -> MigrationPlan:
    """Return what the way to a revision does; see Migrator.plan."""
    script = runner.history()
    async with engine.connect() as live:
        if strangers := await live.run_sync(runner.strangers):
            raise MigrationError(
                f"the database is at {', '.join(strangers)}, which no installed wheel has: install one that does"
            )
        heads, steps = await live.run_sync(lambda one: runner.pending(one, script, revision, down=down))
        if await live.run_sync(is_distributed) and steps:
            raise MigrationError(
                "this database is distributed, and a dry run looks at a copy on one machine, whose locks are not those "
                "of shards: read the SQL with `ibex-db upgrade --sql`, and try it on a cluster restored from a backup. "
                "Then, with services stopped, `ibex-db upgrade` and `ibex-db distribute`"
            )
        async with _alone():
            lost = await live.run_sync(lambda one: moving.each_lost(one, script, steps, heads))
        rows = {row.name: int(row.rows) if row.counted else None for row in await live.execute(_SIZES)}
        bare = await live.scalar(text("SELECT to_regnamespace(:schema) IS NULL"), {"schema": SCHEMA})
        version = str(await live.scalar(text("SHOW server_version")))
        await live.rollback()
        if not steps:
            return MigrationPlan((), version, version, ())
        async with _copy(scratch) as copied, copied.connect() as connection, _alone():
            examined = str(await connection.scalar(text("SHOW server_version")))
            await connection.rollback()
            await connection.run_sync(_bring, script, heads)
            wheels = {one.id: one for one in runner.revisions(())}
            planned: list[PlannedRevision] = []
            for step in steps:
                name = step.revision.revision
                found = await connection.run_sync(_observe, script, step, rows)
                told = wheels[name]
                planned.append(PlannedRevision(name, told.wheel, told.message, found, tuple(lost.get(name, ()))))
        if bare:
            # What is made before the first revision, of which the copy, having it already, tells nothing.
            made = PlannedStatement(f"CREATE SCHEMA {SCHEMA}", (), (), ())
            planned[0] = replace(planned[0], statements=(made, *planned[0].statements))
        tables = sorted({lock.table for one in planned for lock in one.locks})
        in_the_way = [
            str(Holder(row.pid, row.login, row.application, row.state, row.seconds, row.query))
            for row in await live.execute(_IN_THE_WAY, {"tables": tables})
        ]
    return MigrationPlan(tuple(planned), examined, version, tuple(in_the_way))


@asynccontextmanager
async def _alone() -> AsyncGenerator[None]:
    from ibex_db_core.migrations.migrator import alembic_to_itself

    async with alembic_to_itself():
        yield


# -- the copy


@asynccontextmanager
async def _copy(scratch: str | None) -> AsyncGenerator[AsyncEngine]:
    """Give an empty database that is nobody's, and take it away again."""
    if scratch is not None:
        async with _database(Cluster.at(scratch)) as engine:
            yield engine
        return
    from ibex_db_core.embedded import EmbeddedPostgres

    try:
        server = EmbeddedPostgres.throwaway()
        await asyncio.to_thread(server.start)
    except EmbeddedPostgresError as exc:
        raise ConfigurationError(
            "a dry run needs a server to run the revisions on, and never uses the live one: install "
            "ibex-db-core[embedded], or name one with --scratch (in Python: scratch=), as a superuser, best of the "
            f"live server's version. The embedded one: {exc}"
        ) from exc
    try:
        async with _database(Cluster.of(server)) as engine:
            yield engine
    finally:
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def _database(cluster: Cluster) -> AsyncGenerator[AsyncEngine]:
    name = f"ibex_dry_run_{uuid4().hex[:12]}"
    with translated():
        await cluster.create_database(name)
    engine = create_engine(parse(cluster.url(name)), EngineSettings().for_migrations())
    try:
        yield engine
    finally:
        await engine.dispose()
        with translated():
            await cluster.drop_database(name)


def _bring(connection: Connection, script: ScriptDirectory, heads: Sequence[str]) -> None:
    """Take the copy to where the live database is."""
    runner.prepare(connection)
    for head in heads:
        for step in runner.pending(connection, script, head)[1]:
            runner.apply(connection, script, step)


# -- what they did there

_BEFORE = text("""
    SELECT c.oid, COALESCE(pg_partition_root(c.oid), c.oid)::regclass::text AS name, c.relfilenode
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
       AND c.relname <> 'alembic_version'
""")
# The counters of this transaction; what came before it may still be among them, so two readings are compared.
_NOW = """
    SELECT t.oid, c.relfilenode, pg_stat_get_xact_numscans(t.oid) AS scans,
           ARRAY(SELECT l.mode FROM pg_catalog.pg_locks l WHERE l.pid = pg_backend_pid() AND l.relation = t.oid
                    AND l.locktype = 'relation' AND l.granted) AS modes
      FROM unnest('{{{oids}}}'::oid[]) t (oid) LEFT JOIN pg_catalog.pg_class c ON c.oid = t.oid
"""

_OUTSIDE = re.compile(r"\bCONCURRENTLY\b|\bVALIDATE\s+CONSTRAINT\b", re.IGNORECASE)
_ON = re.compile(r"\b(?:ON(?:\s+ONLY)?|ALTER\s+TABLE(?:\s+ONLY)?)\s+([\w.\"]+)", re.IGNORECASE)


class _Observer:
    """What each statement of one revision did to the tables that were there before it."""

    def __init__(self, before: Sequence["Row[tuple[int, str, int]]"], rows: dict[str, int | None]) -> None:
        self._names = {row.oid: str(row.name) for row in before}
        self._nodes = {row.oid: row.relfilenode for row in before}
        self._scans: dict[int, int] = {}
        self._held: dict[str, str] = {}
        self._rows = rows
        self._asking = False
        self.statements: list[PlannedStatement] = []

    def begins(self, connection: Connection, *_others: object) -> None:
        """Read the counters as they are when a transaction begins."""
        self._held = {}
        self._asking = True
        try:
            self._scans = {row.oid: row.scans for row in self._now(connection)}
        finally:
            self._asking = False

    def executed(self, connection: Connection, _cursor: object, statement: str, *_others: object) -> None:
        """Ask the server after a statement."""
        if self._asking or "alembic_version" in statement or _SILENT.match(statement):
            return
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            self.statements.append(self._outside(statement))
            return
        self._asking = True
        try:
            rewrites, scans, locks = set[str](), set[str](), dict[str, str]()
            for row in self._now(connection):
                name = self._names[row.oid]
                if row.relfilenode not in {None, self._nodes[row.oid]}:  # one that is gone is not rewritten
                    rewrites.add(name)
                    self._nodes[row.oid] = row.relfilenode
                if row.scans > self._scans.get(row.oid, 0):
                    scans.add(name)
                    self._scans[row.oid] = row.scans
                for mode in map(_spelled, row.modes):
                    if _stronger(mode, self._held.get(name)):
                        self._held[name] = locks[name] = mode
        finally:
            self._asking = False
        self.statements.append(
            PlannedStatement(statement.strip(), self._locks(locks), tuple(sorted(rewrites)), tuple(sorted(scans)))
        )

    def _now(self, connection: Connection) -> "Sequence[Row[tuple[object, ...]]]":
        return connection.exec_driver_sql(_NOW.format(oids=",".join(map(str, self._names)))).all()

    def _locks(self, found: dict[str, str]) -> tuple[TableLock, ...]:
        return tuple(TableLock(name, mode, self._rows.get(name, 0)) for name, mode in sorted(found.items()))

    def _outside(self, statement: str) -> PlannedStatement:
        """Say what Postgres's documentation says: such a statement lets go of its locks before anybody can look."""
        mode = "SHARE UPDATE EXCLUSIVE" if _OUTSIDE.search(statement) else "ACCESS EXCLUSIVE"
        if re.match(r"\s*CREATE\b.*\bINDEX\b", statement, re.IGNORECASE) and not _OUTSIDE.search(statement):
            mode = "SHARE"
        named = _ON.search(statement)
        parents = {name.rpartition(".")[2].strip('"'): name for name in self._names.values()}
        table = parents.get(re.sub(r"_p\d+$", "", named[1].rpartition(".")[2].strip('"'))) if named else None
        locks = self._locks({table: mode}) if table is not None else ()
        scans = (table,) if table is not None and _READS.search(statement) else ()
        return PlannedStatement(statement.strip(), locks, (), scans, transaction=False)


# What is ours around a revision's own statements.
_SILENT = re.compile(
    r"\s*SELECT\s(?:\s*(?:pg_catalog\.)?(?:set_config|to_reg|EXISTS)|.*\bFROM\s+pg_catalog\.)",
    re.IGNORECASE | re.DOTALL,
)
_READS = re.compile(r"\bCREATE\b.*\bINDEX\s+CONCURRENTLY\b|\bVALIDATE\s+CONSTRAINT\b", re.IGNORECASE | re.DOTALL)


def _spelled(mode: str) -> str:
    """``AccessExclusiveLock``, as the catalog has it, in the documentation's words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", mode.removesuffix("Lock")).upper()


def _stronger(mode: str, than: str | None) -> bool:
    return than is None or MODES.index(mode) > MODES.index(than)


def _observe(
    connection: Connection, script: ScriptDirectory, step: RevisionStep, rows: dict[str, int | None]
) -> tuple[PlannedStatement, ...]:
    """Run one step on the copy, and return what it did there, statement by statement."""
    before = connection.execute(_BEFORE).all()
    connection.rollback()
    observer = _Observer(before, rows)
    event.listen(connection, "begin", observer.begins)
    event.listen(connection, "after_cursor_execute", observer.executed)
    try:
        runner.apply(connection, script, step)
    finally:
        event.remove(connection, "begin", observer.begins)
        event.remove(connection, "after_cursor_execute", observer.executed)
    return tuple(observer.statements)
