"""What a migration would do, and how patiently it does it: facts only, so that importing them imports no Alembic."""

import math
from dataclasses import dataclass

from ibex_db_core.errors import InvalidInputError

__all__ = ["MigrationPlan", "Patience", "PlannedRevision", "PlannedStatement", "TableLock"]

LOCK_TIMEOUT = 2.0
"""Seconds: whoever comes after a migration that queues, queues behind it, so this is how long a service may stand."""

ATTEMPTS = 30
"""With backoff up to 10 s: some four minutes, which outlasts most reports and backups of one table."""

# Weakest first.
MODES = (
    "ACCESS SHARE",
    "ROW SHARE",
    "ROW EXCLUSIVE",
    "SHARE UPDATE EXCLUSIVE",
    "SHARE",
    "SHARE ROW EXCLUSIVE",
    "EXCLUSIVE",
    "ACCESS EXCLUSIVE",
)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a revision queues for a lock, and how often."""

    lock_timeout: float
    attempts: int

    def __post_init__(self) -> None:
        """Check both."""
        if not 0 <= self.lock_timeout < math.inf:
            raise InvalidInputError("lock_timeout", self.lock_timeout, "must be a number of seconds, 0 or more")
        if self.attempts < 1:
            raise InvalidInputError("attempts", self.attempts, "must be 1 or more")


@dataclass(frozen=True, slots=True)
class TableLock:
    """A lock that a revision takes on a table that is there already.

    Attributes:
        table: qualified; a partitioned one stands for its partitions too.
        mode: as Postgres's documentation calls it, ``ACCESS EXCLUSIVE`` for example.
        rows: of the live table, as the server estimates; None: it has never counted.
    """

    table: str
    mode: str
    rows: int | None

    @property
    def blocks(self) -> str:
        """Whom it keeps waiting until the revision commits: ``reads and writes``, ``writes``, or ``nobody``."""
        if self.mode == "ACCESS EXCLUSIVE":
            return "reads and writes"
        return "writes" if MODES.index(self.mode) >= MODES.index("SHARE") else "nobody"


@dataclass(frozen=True, slots=True)
class PlannedStatement:
    """One statement of a revision.

    Attributes:
        sql: as it is sent, values in their places aside.
        locks: those that it takes anew, or stronger than the ones before it.
        rewrites: tables that it writes anew, row by row, with all their indexes.
        scans: tables that it reads from end to end.
        transaction: False: on its own, as CREATE INDEX CONCURRENTLY is; its lock is then Postgres's word, not measured.
    """

    sql: str
    locks: tuple[TableLock, ...] = ()
    rewrites: tuple[str, ...] = ()
    scans: tuple[str, ...] = ()
    transaction: bool = True


@dataclass(frozen=True, slots=True)
class PlannedRevision:
    """One revision that would be applied, or taken back.

    Attributes:
        destroys: what is lost, one line each; such a revision needs allow_destructive.
    """

    id: str
    wheel: str
    message: str
    statements: tuple[PlannedStatement, ...]
    destroys: tuple[str, ...]

    @property
    def locks(self) -> list[TableLock]:
        """The strongest lock on each table, the strongest first."""
        strongest: dict[str, TableLock] = {}
        for lock in (lock for statement in self.statements for lock in statement.locks):
            known = strongest.get(lock.table)
            if known is None or MODES.index(lock.mode) > MODES.index(known.mode):
                strongest[lock.table] = lock
        return sorted(strongest.values(), key=lambda lock: (-MODES.index(lock.mode), lock.table))


@dataclass(frozen=True, slots=True)
class MigrationPlan:
    """What an upgrade, or a downgrade, would do to the live database now.

    Attributes:
        revisions: in their order.
        examined_on: the version of Postgres that took the locks.
        live: the version of the live server.
        in_the_way: transactions of the live server that have lasted more than two seconds and hold one of the tables.
    """

    revisions: tuple[PlannedRevision, ...]
    examined_on: str
    live: str
    in_the_way: tuple[str, ...]
