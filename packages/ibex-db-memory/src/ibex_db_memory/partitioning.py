"""Another number of hash partitions for a filled ``memories``, while services read and write.

The rows are copied into a table beside it, which a trigger keeps in step with every write from the first moment; the
copy is indexed, compared, and then takes the old one's name in one short transaction.  Until that moment nothing reads
the copy, so it can be abandoned at any time; killed anywhere, the next run goes on from what it finds.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection, Row, event, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ibex_db_core.distribution.cluster import is_distributed
from ibex_db_core.errors import DeadlockError, InvalidInputError, LockTimeoutError, MigrationError
from ibex_db_core.migrations import Migrator, online
from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, SEARCH_ROLE
from ibex_db_memory import _partition_sql as sql
from ibex_db_memory.models._guards import MEMORIES

__all__ = ["MOST_PARTITIONS", "RepartitionStatus", "abandon_repartition", "repartition", "repartition_status"]

MOST_PARTITIONS = 1024

T = TypeVar("T")
Tell = Callable[[str], None]

# Below deadlock_timeout, so that of two who wait for each other it is never the service that gives way.
_LOCK_TIMEOUT = "300ms"


@dataclass(frozen=True, slots=True)
class RepartitionStatus:
    """Where a table stands, and what a copy of it would take.

    Attributes:
        partitions: that memories lies in now.
        copying_to: the number of a copy that is under way; None: there is none.
        rows: of memories, as the server estimates.
        copied: of the copy, as the server estimates.
        size: bytes of memories with its indexes; the copy takes about as many more, until the old one goes.
        unvalidated: foreign keys to memories that are still to be validated.
    """

    partitions: int
    copying_to: int | None
    rows: int
    copied: int
    size: int
    unvalidated: int


async def repartition_status(migrator: Migrator) -> RepartitionStatus:
    """Return where memories stands; reads the catalog alone.

    Raises:
        MigrationError: there is no table of memories yet, or it lies in the shards of a cluster.
    """
    async with migrator.connection() as connection:
        return await _status(connection)


async def repartition(
    migrator: Migrator, partitions: int, *, batch: int = 2000, patience: float = 600.0, tell: Tell | None = None
) -> RepartitionStatus:
    """Lay memories into another number of partitions, while services read and write; again after a crash: go on.

    Services wait only where the copy begins, for a moment, and where it takes over: whoever reads or writes memories,
    agents, sessions, organizations, or what points at memories, for as long as the keys superseded_by and merged_into,
    and those of memory_vectors, are proved, which grows with the number of partitions.  Each write of a memory is made
    twice while it lasts.

    Args:
        migrator: of the owner's login: ``async with db.migrator() as migrator``.
        partitions: 1 to 1024.
        batch: rows copied in one transaction, 1 to 100,000; a service that deletes one of them waits that long.
        patience: seconds to try for a free moment, each time that one is needed.
        tell: is told of each stage.

    Returns:
        where memories stands now.

    Raises:
        InvalidInputError: partitions, batch or patience is out of range.
        LockTimeoutError: the tables were never free together within patience; run it again, or abandon it.
        MigrationError: a copy to another number is under way, a revision is not applied, copy and table differ, or
            memories lies in the shards of a cluster.
    """
    if not 1 <= partitions <= MOST_PARTITIONS:
        raise InvalidInputError("partitions", partitions, f"must be from 1 to {MOST_PARTITIONS}")
    if not 1 <= batch <= _MOST_ROWS:
        raise InvalidInputError("batch", batch, f"must be from 1 to {_MOST_ROWS:,}")
    if not 0 <= patience < float("inf"):
        raise InvalidInputError("patience", patience, "must be a number of seconds, 0 or more")
    if pending := [one.id for one in await migrator.current() if not one.applied]:
        raise MigrationError(f"apply {', '.join(pending)} first: `ibex-db upgrade`")
    say = tell or _unsaid
    async with migrator.exclusive() as connection:
        found = await _status(connection)
        if found.copying_to not in {None, partitions}:
            raise MigrationError(
                f"a copy in {found.copying_to} partitions is under way: go on with that number, or abandon it first"
            )
        if found.copying_to is not None or found.partitions != partitions:
            if found.copying_to is None:
                say(f"making the copy, of {partitions} partitions")
                await _patiently(patience, lambda: _begin(connection, partitions))
            await _fill(connection, batch, patience, say, found.rows)
            await _index(connection, patience, say)
            say("comparing the copy with the table")
            await _verify(connection)
            say("taking over")
            await _patiently(patience, lambda: _swap(connection))
        await _validate(connection, patience, say)
        return await _status(connection)


_MOST_ROWS = 100_000


def _unsaid(_said: str) -> None:
    """Tell nobody."""


async def abandon_repartition(migrator: Migrator, *, patience: float = 600.0) -> bool:
    """Take the copy and its trigger away; return whether there were any.  memories was never touched.

    Raises:
        LockTimeoutError: the table was never free within patience.
        MigrationError: there is no table of memories yet.
    """
    async with migrator.exclusive() as connection:
        if (await _status(connection)).copying_to is None:
            return False
        await _patiently(patience, lambda: _abandon(connection))
        return True


# -- a moment in which the tables are free


async def _patiently(
    patience: float, work: Callable[[], Awaitable[T]], *, doing: Callable[[], object] = lambda: None
) -> T:
    """Run what is short, again for as long as it meets locks; between two tries it holds none.

    ``doing`` says which part of it met them: patience is of each by itself, and begins where it first failed, since
    what came before may have taken hours and got on all the same.
    """
    loop = asyncio.get_running_loop()
    stuck: tuple[object, float] | None = None
    while True:
        try:
            return await work()
        except (LockTimeoutError, DeadlockError):
            at, now = doing(), loop.time()
            if stuck is None or stuck[0] != at:
                stuck = (at, now)
            if now - stuck[1] >= patience:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - apart from others is all it must be


@asynccontextmanager
async def _owning(connection: AsyncConnection) -> AsyncGenerator[None]:
    """Be the owner for one transaction, which gives way within a moment."""
    async with connection.begin():
        await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
        await connection.execute(text(f"SET LOCAL ROLE {OWNER_ROLE}"))
        # Policies hold for the owner too; one of them, for the time of the copy, lets it see all.
        await connection.execute(text("SET LOCAL row_security = on"))
        yield
    # A rollback is SQLAlchemy's on the way out.


async def _all(connection: AsyncConnection, statement: str) -> "list[Row[tuple[str, ...]]]":
    return list((await connection.execute(text(statement))).all())


async def _run(connection: AsyncConnection, *statements: str) -> None:
    for statement in statements:
        await connection.exec_driver_sql(statement)


async def _status(connection: AsyncConnection) -> RepartitionStatus:
    if await connection.run_sync(is_distributed):
        await connection.rollback()
        raise MigrationError(
            "this database is distributed, and its memories lie in shards in place of partitions: how many is said "
            "once, with `ibex-db distribute --shards`; citus_rebalance_start() spreads them over workers, and then "
            "`ibex-db distribute` again puts their floors back"
        )
    found = (await connection.execute(text(sql.STATUS))).one()
    await connection.rollback()
    if not found.partitions:
        raise MigrationError("this database has no memories yet: run `ibex-db upgrade`, with IBEX_MEMORY_PARTITIONS")
    return RepartitionStatus(
        found.partitions, found.copying_to or None, found.rows, found.copied, found.size, found.unvalidated
    )


# -- stages


async def _begin(connection: AsyncConnection, partitions: int) -> None:
    """Make the copy, empty, with the trigger that keeps it: from its commit on, no write can pass it by."""
    async with _owning(connection):
        options = (await connection.execute(text(sql.PARTITION_OPTIONS))).scalar_one()
        columns = [row.name for row in await _all(connection, sql.COLUMNS)]
        await _run(connection, sql.COPY, f"ALTER TABLE {sql.NEXT} ENABLE ROW LEVEL SECURITY", _closed(sql.NEXT))
        for number in range(partitions):
            part = f"{sql.NEXT}_p{number:02d}"
            await _run(
                connection,
                f"CREATE TABLE {part} PARTITION OF {sql.NEXT} "
                f"FOR VALUES WITH (MODULUS {partitions}, REMAINDER {number}) {options}",
                f"ALTER TABLE {part} ENABLE ROW LEVEL SECURITY",
                f"ALTER TABLE {part} FORCE ROW LEVEL SECURITY",
                _closed(part),
            )
        await _run(connection, f"ALTER TABLE {sql.NEXT} ADD CONSTRAINT memories_next_pkey PRIMARY KEY (org_id, id)")
        # Now, while it is empty: each row is checked as it comes, and nobody waits for a scan at the end.
        for key in await _all(connection, sql.OUTGOING):
            await _run(connection, f"ALTER TABLE {sql.NEXT} ADD CONSTRAINT {key.name} {key.definition}")
        await _run(
            connection,
            sql.mirror(columns).create(),
            "REVOKE ALL ON FUNCTION ibex_core.memories_mirror() FROM PUBLIC",
            sql.SEE_ALL,
            sql.MIRROR_TRIGGER,
        )


def _closed(table: str) -> str:
    # Default privileges of the database may have granted some.
    return f"REVOKE ALL ON {table} FROM PUBLIC, {APP_ROLE}, {PLATFORM_ROLE}, {SEARCH_ROLE}"


async def _fill(connection: AsyncConnection, batch: int, patience: float, say: Tell, rows: int) -> None:
    """Copy what was there before the trigger, in order of the key; what is copied already is passed over."""
    names = ", ".join(row.name for row in await _all(connection, sql.COLUMNS))
    await connection.rollback()
    at: tuple[UUID, UUID] = (UUID(int=0), UUID(int=0))
    done = 0

    async def one() -> "Row[tuple[UUID, UUID, int]] | None":
        async with _owning(connection):
            found = await connection.execute(
                text(sql.FILL.format(names=names)), {"org": at[0], "id": at[1], "batch": batch}
            )
            return found.first()

    while (last := await _patiently(patience, one)) is not None:
        at = (last.org_id, last.id)
        done += last.read
        say(f"copied {done:,} of about {max(rows, done):,} rows")


async def _index(connection: AsyncConnection, patience: float, say: Tell) -> None:
    """Build the copy's indexes beside its writers, all at once for each partition: ten times as fast as row by row."""
    await _patiently(patience, partial(_drop_stray, connection))
    indexes = await _all(connection, sql.INDEXES)
    await connection.rollback()
    for index in indexes:
        say(f"building {index.name}")
        definition = "USING " + index.definition.split(" USING ", 1)[1]
        build = partial(
            online.build, name=f"next_{index.name}", table="memories_next", definition=definition, unique=index.unique
        )
        await _patiently(patience, partial(_outside, connection, build), doing=partial(connection.info.get, _DOING))
    analyze = partial(_execute, statement=f"ANALYZE {sql.NEXT}")
    await _patiently(patience, partial(_outside, connection, analyze))


async def _drop_stray(connection: AsyncConnection) -> None:
    """Drop what an upgrade has dropped of memories since the copy was begun: the exchange would bring it back."""
    async with _owning(connection):
        for index in await _all(connection, sql.STRAY):
            await _run(connection, f"DROP INDEX {index.name}")


_DOING = "ibex_repartition_doing"


async def _outside(connection: AsyncConnection, work: Callable[[Connection], None]) -> None:
    """Run statements that no transaction may hold, as the owner; the last of them stays in the connection's info."""

    def note(_connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
        connection.info[_DOING] = statement

    def noted(inner: Connection) -> None:
        event.listen(inner, "before_cursor_execute", note)
        try:
            work(inner)
        finally:
            event.remove(inner, "before_cursor_execute", note)

    await connection.execution_options(isolation_level="AUTOCOMMIT")
    try:
        await _run(connection, f"SET ROLE {OWNER_ROLE}", f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
        await connection.run_sync(noted)
    finally:
        if not connection.invalidated:
            await _run(connection, "RESET ROLE", "SET lock_timeout = 0")
            await connection.rollback()
            await connection.execution_options(isolation_level="READ COMMITTED")


async def _verify(connection: AsyncConnection) -> None:
    """Hold every row, every column, of the copy against the table, as one snapshot sees both."""
    async with connection.begin():
        await _run(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", f"SET LOCAL ROLE {OWNER_ROLE}")
        await _run(connection, "SET LOCAL row_security = on")
        found = (await connection.execute(text(sql.COMPARE))).one()
    if (found.rows, found.hash) != (found.copied, found.copied_hash):
        raise MigrationError(
            f"the copy has {found.copied:,} rows and memories {found.rows:,}, or their values differ: nothing was "
            "exchanged. Abandon it (`ibex-db repartition --abandon`) and look at what else writes to the copy"
        )


async def _swap(connection: AsyncConnection) -> None:
    """Give the copy the table's name, and all that stood around it; the old table goes."""
    async with _owning(connection):
        children = [row.name for row in await _all(connection, sql.CHILDREN)]
        # All at once, or none: whoever waited while holding some would be one half of a deadlock.
        await _run(connection, f"LOCK TABLE {', '.join([sql.TABLE, sql.NEXT, *children])} IN ACCESS EXCLUSIVE MODE")
        await _run(connection, *sql.NO_MIRROR)
        around = [row.statement for row in await _all(connection, sql.AROUND)]
        # Ours as the models say them: the catalog's own words, said again, come out as others with the same meaning.
        meant = {trigger.name: trigger.create() for trigger in MEMORIES.triggers}
        around += [meant.get(row.name, row.statement) for row in await _all(connection, sql.TRIGGERS)]
        incoming = await _all(connection, sql.INCOMING)
        itself = await _all(connection, sql.ITSELF)
        for key in incoming:
            await _run(connection, f"ALTER TABLE {key.table} DROP CONSTRAINT {key.name}")
        await _run(connection, f"DROP TABLE {sql.TABLE}", sql.RENAME, *around)
        for key in itself:
            await _run(connection, f"ALTER TABLE {sql.TABLE} ADD CONSTRAINT {key.name} {key.definition}")
        for key in incoming:
            # Its rows were good a moment ago and are good now; the proof is read afterwards, while others write.
            later = "" if key.partitioned else " NOT VALID"
            await _run(connection, f"ALTER TABLE {key.table} ADD CONSTRAINT {key.name} {key.definition}{later}")


async def _validate(connection: AsyncConnection, patience: float, say: Tell) -> None:
    unvalidated = await _all(connection, sql.UNVALIDATED)
    await connection.rollback()
    for key in unvalidated:
        say(f"validating {key.name}")
        # It keeps neither readers nor writers waiting.
        statement = f"ALTER TABLE {key.table} VALIDATE CONSTRAINT {key.name}"
        await _patiently(patience, partial(_outside, connection, partial(_execute, statement=statement)))


def _execute(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement)


async def _abandon(connection: AsyncConnection) -> None:
    async with _owning(connection):
        await _run(connection, f"LOCK TABLE {sql.TABLE}, {sql.NEXT} IN ACCESS EXCLUSIVE MODE")
        await _run(connection, *sql.NO_MIRROR, f"DROP TABLE {sql.NEXT}")
