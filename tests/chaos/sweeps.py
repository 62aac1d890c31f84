"""What runs in the background of a live database: retention, pruning, erasure, migrations, index builds."""

import asyncio
import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import asyncpg
from books import Book
from works import Works

from ibex_db import (
    CommitUnknownError,
    Database,
    IbexError,
    MemoryRepository,
    MigrationError,
    OrganizationRepository,
    SessionRepository,
    StatementTimeoutError,
    TransientError,
)

KEPT_CHECKPOINTS = 3
_BATCH = 20
_PAUSE_SECONDS = 0.3
_WRITERS_OF_THE_DOOMED = 3
_SCRATCH = "chaos_scratch"
_BACK = ("memory_0009", "memory_0008", "memory_0007", "memory_0006")

_FROM_ASYNCPG = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_EXPECTED = (TransientError, CommitUnknownError, StatementTimeoutError)


@dataclass
class Sweeps:
    """Sweepers beside the works.

    Attributes:
        db: a service's Database, straight to the server; its owner_url is the superuser's.
        books: of the organizations that stay; doomed: of those that were made to be erased.
        errors: whatever a sweeper was told that it need not expect.
        done: how often each thing came to pass; told: how often each expected error.
    """

    db: Database
    works: Works
    admin_url: str
    books: Sequence[Book]
    chance: random.Random
    doomed: list[Book] = field(default_factory=list[Book])
    errors: list[str] = field(default_factory=list[str])
    done: Counter[str] = field(default_factory=Counter[str])
    told: Counter[str] = field(default_factory=Counter[str])
    _back: int = 0

    def every(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """Return what is to be repeated, each in a task of its own."""
        return (self.expire, self.expire, self.prune, self.erase, self.migrate, self.index)

    async def repeat(self, sweep: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        """Sweep until told to stop; what was refused is tried again."""
        name = sweep.__name__
        while not stop.is_set():
            try:
                await sweep()
                self.done[name] += 1
            except _EXPECTED as error:
                self.told[type(error).__name__] += 1
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                print(f"{name}:", *traceback.format_exception(error))  # noqa: T201 - as in works.py
                self.errors.append(f"{name}: {type(error).__name__}: {error}")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def expire(self) -> None:
        """Take away what has expired, everybody's, batch by batch."""
        while True:
            async with self.db.platform(reason="chaos: sweep") as platform:
                gone = await MemoryRepository(platform).expire_due(batch_size=_BATCH)
            self.done["memories expired"] += gone
            if not gone:
                return

    async def prune(self) -> None:
        """Take old checkpoints away."""
        for book in self.books:
            async with self.db.tenant(book.org_id) as session:
                gone = await SessionRepository(session).prune_checkpoints(book.run_id, keep=KEPT_CHECKPOINTS)
            self.done["checkpoints pruned"] += gone

    async def erase(self) -> None:
        """Make an organization, have it written to, and erase it while it is."""
        book = await self.works.sign_up()
        self.doomed.append(book)
        stop = asyncio.Event()

        async def write() -> None:
            while not stop.is_set():
                await self.works.any(book)

        async with asyncio.TaskGroup() as writers:
            for _ in range(_WRITERS_OF_THE_DOOMED):
                writers.create_task(write())
            try:
                await asyncio.sleep(self.chance.uniform(0.2, 1.5))
                await self._erase(book)
            finally:
                stop.set()

    async def _erase(self, book: Book) -> None:
        book.perhaps_erased = True
        while True:
            try:
                async with self.db.platform(reason="chaos: erasure") as platform:
                    gone = await OrganizationRepository(platform).erase(book.org_id, reason="chaos")
            except CommitUnknownError as error:
                self.told[type(error).__name__] += 1
                return
            except (TransientError, StatementTimeoutError) as error:
                self.told[type(error).__name__] += 1  # nothing is gone: once more
                await asyncio.sleep(0.05)
            else:
                book.erased = True
                self.done["rows erased"] += gone.rows
                return

    async def migrate(self) -> None:
        """Take back what builds the index of words, and bring it again, from two pods at once.

        What was broken off is gone on with, as an operator does: halfway turned round, it would never be through.
        Meanwhile the database is older than the services, which are told so where they need what is not there.
        """
        self.works.older = True
        try:
            async with self.db.migrator() as migrator:
                while self._back < len(_BACK):
                    await migrator.downgrade(_BACK[self._back])
                    self._back += 1
                    self.done["revisions taken back"] += 1
            await asyncio.gather(self._upgrade(), self._upgrade())
            self._back, self.works.older = 0, False
        except MigrationError as error:
            if not isinstance(error.__cause__, _EXPECTED) and not _broken(error):
                raise
            self.told["MigrationError"] += 1

    async def _upgrade(self) -> None:
        async with self.db.migrator() as migrator:
            brought = await migrator.upgrade()
        self.done["revisions brought"] += len(brought)  # after the await: two count at once

    async def index(self) -> None:
        """Build an index concurrently, and drop it."""
        try:
            admin = await asyncpg.connect(self.admin_url, timeout=5, command_timeout=30)
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            self.told[type(error).__name__] += 1
            return
        try:
            await self.drop_scratch(admin)
            await admin.execute(
                f"CREATE INDEX CONCURRENTLY {_SCRATCH} ON ibex_core.memory_versions (org_id, created_at)"
            )
            await self.drop_scratch(admin)
        except _FROM_ASYNCPG as error:
            self.told[type(error).__name__] += 1
        finally:
            admin.terminate()

    @staticmethod
    async def drop_scratch(admin: asyncpg.Connection) -> None:
        """Leave nothing of it, finished or not."""
        await admin.execute("SET lock_timeout = '2s'")
        await admin.execute(f"DROP INDEX CONCURRENTLY IF EXISTS ibex_core.{_SCRATCH}")

    async def settle(self) -> None:
        """Bring every sweep to its end, once nothing breaks any more; the server may still be recovering."""
        while True:
            try:
                await self._upgrade()
                await self.expire()
                break
            except (*_EXPECTED, MigrationError) as error:
                self.told[type(error).__name__] += 1
                await asyncio.sleep(0.2)
        admin = await asyncpg.connect(self.admin_url)
        try:
            await self.drop_scratch(admin)
        finally:
            await admin.close()


def _broken(error: IbexError) -> bool:
    """Tell whether a migration failed because of the weather: its causes are a driver's, or SQLAlchemy's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (*_EXPECTED, OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
