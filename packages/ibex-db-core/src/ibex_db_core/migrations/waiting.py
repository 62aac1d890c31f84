"""Who holds the lock that a migration waits for, seen from beside it while it waits.

The server's error names neither the relation nor the holder, and once it is raised the wait is over: so a second
connection looks, half way through lock_timeout, and only then.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core.errors import IbexError

__all__ = ["Holder", "Waiting", "watched"]

_WANTED = text("""
    SELECT w.relation::regclass::text AS relation, w.mode
      FROM pg_catalog.pg_locks w WHERE w.pid = :pid AND NOT w.granted LIMIT 1
""")
# state and xact_start of another login are shown to members of pg_read_all_stats only.
_HOLDERS = text("""
    SELECT a.pid, a.usename::text AS login, a.application_name::text AS application, a.state,
           extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds, left(a.query, 80) AS query
      FROM pg_catalog.pg_stat_activity a WHERE a.pid = ANY (pg_blocking_pids(:pid)) ORDER BY a.xact_start LIMIT 5
""")


@dataclass(frozen=True, slots=True)
class Holder:
    """A transaction that is in a migration's way.

    Attributes:
        state: as pg_stat_activity has it; None: hidden from this login.
        seconds: since its transaction began; None: hidden from this login.
    """

    pid: int
    login: str | None
    application: str
    state: str | None
    seconds: float | None
    query: str | None

    def __str__(self) -> str:
        """Say it in one line."""
        since = f", in its transaction for {self.seconds:.1f} s" if self.seconds is not None else ""
        state = self.state or "state hidden: GRANT pg_read_all_stats to see it"
        query = f": {' '.join(self.query.split())}" if self.query and not self.query.startswith("<") else ""
        return (
            f"pid {self.pid} ({self.application or 'no application_name'}, login {self.login}, {state}{since}){query}"
        )


@dataclass
class Waiting:
    """What was seen of a wait, last: where nobody could look in time, what an earlier try saw stands."""

    relation: str | None = None
    mode: str | None = None
    holders: tuple[Holder, ...] = field(default_factory=tuple)


@asynccontextmanager
async def watched(engine: AsyncEngine, pid: int, lock_timeout: float, seen: Waiting) -> AsyncGenerator[None]:
    """Note in ``seen`` what a backend waits for while the block runs; a block that is done sooner is not looked at."""
    watcher = asyncio.create_task(_watch(engine, pid, lock_timeout, seen))
    try:
        yield
    finally:
        watcher.cancel()
        # The task itself is not awaited: its being cancelled could not be told from the caller's.
        await asyncio.wait([watcher])
        if not watcher.cancelled():
            watcher.result()


async def _watch(engine: AsyncEngine, pid: int, lock_timeout: float, seen: Waiting) -> None:
    await asyncio.sleep(lock_timeout / 2)
    # An engine of one connection has none to spare: then the error says less, and is the same error.
    with suppress(IbexError, SQLAlchemyError, OSError):
        async with engine.connect() as beside:
            while True:
                wanted = (await beside.execute(_WANTED, {"pid": pid})).first()
                if wanted is not None:
                    holders = (await beside.execute(_HOLDERS, {"pid": pid})).all()
                    seen.relation, seen.mode = wanted.relation, wanted.mode
                    if holders:  # none: the wait was over between the two looks
                        seen.holders = tuple(
                            Holder(row.pid, row.login, row.application, row.state, row.seconds, row.query)
                            for row in holders
                        )
                await beside.rollback()
                await asyncio.sleep(max(lock_timeout / 8, 0.05))
