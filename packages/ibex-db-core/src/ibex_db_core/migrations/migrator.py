"""Migrator: moves one database between revisions, and signs its tenants, under one advisory lock.

Alembic is imported by the verbs: a service that only connects never waits for it.
"""

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ibex_db_core.errors import InvalidInputError, MigrationError
from ibex_db_core.migrations import signing
from ibex_db_core.migrations.plans import ATTEMPTS, LOCK_TIMEOUT, MigrationPlan, Patience
from ibex_db_core.migrations.wheels import Revision, metadata
from ibex_db_core.signing import SigningKey

if TYPE_CHECKING:
    from ibex_db_core.distribution import Step

T = TypeVar("T")

# One number for "somebody migrates an ibex_core schema in this database".
# Session level, since every revision commits on its own.
_LOCK = 0x1BEC_DB01

# The backend of a pod that is killed goes on with its statement, and keeps the lock; this has it look.
# Not every system can tell it.
_NOTICE_A_DEAD_CLIENT = """
DO $$ BEGIN
    PERFORM set_config('client_connection_check_interval', '2s', false);
EXCEPTION WHEN OTHERS THEN NULL;
END $$
"""


class Migrator:
    """Moves one database between revisions.

    Args:
        engine: connects as a member of ibex_owner (the very first time: as a role
            that may create roles and the vector extension).
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def upgrade(
        self,
        revision: str = "heads",
        *,
        lock_timeout: float = LOCK_TIMEOUT,
        attempts: int = ATTEMPTS,
        allow_destructive: bool = False,
    ) -> list[Revision]:
        """Bring the schema to a revision, by default to the newest of every installed wheel.

        Idempotent; safe to call from many processes at once: an advisory lock
        lets one migrate while the others wait and then find nothing to do.

        Args:
            revision: where to.
            lock_timeout: seconds that a revision queues for a lock, and has others queue behind it, before it lets
                go of all it has; 0: no limit.
            attempts: how often each revision is tried, with jittered, exponential backoff up to 10 s.
            allow_destructive: let revisions drop tables, columns or rows, or narrow a type.

        Returns:
            the revisions that this call applied, in order.

        Raises:
            InvalidInputError: lock_timeout is negative, or attempts below 1.
            DestructiveMigrationError: data would go and allow_destructive is False; nothing was applied.
            MigrationBlockedError: a revision never got its lock; those before it stay applied.
            MigrationError: a revision failed; those before it stay applied, its own changes are rolled back.
        """
        patience = Patience(lock_timeout, attempts)
        return await self._move(revision, patience, down=False, allow_destructive=allow_destructive)

    async def downgrade(
        self,
        revision: str,
        *,
        lock_timeout: float = LOCK_TIMEOUT,
        attempts: int = ATTEMPTS,
        allow_destructive: bool = False,
    ) -> None:
        """Take the schema back to a revision, for example ``memory@base``, ``memory@-1`` or ``base``.

        Args:
            revision: where to.
            lock_timeout: as for upgrade().
            attempts: as for upgrade().
            allow_destructive: as for upgrade(); most steps back drop what their step forward made.

        Raises:
            InvalidInputError: lock_timeout is negative, or attempts below 1.
            DestructiveMigrationError: data would go and allow_destructive is False; nothing was taken back.
            MigrationBlockedError: a step never got its lock; those before it stay taken back.
            MigrationError: a step failed and was rolled back.
        """
        patience = Patience(lock_timeout, attempts)
        await self._move(revision, patience, down=True, allow_destructive=allow_destructive)

    async def plan(self, revision: str = "heads", *, down: bool = False, scratch: str | None = None) -> MigrationPlan:
        """Return what an upgrade would do now, or a downgrade: SQL, locks, rewrites, scans and losses; does nothing.

        The revisions run on a throw-away copy of the schema, in their own transactions, and the server is asked
        there what each statement locked; the live database is only read.  See decision 53.

        Args:
            revision: where to.
            down: plan a downgrade.
            scratch: the address of a superuser on a server where a database may be made and dropped, best of the
                live server's version; None: an embedded one, of the extra ``embedded``.

        Raises:
            ConfigurationError: no scratch, and the embedded Postgres is not installed.
            MigrationError: no such revision, the database is at one that no installed wheel has, a step fails, or there
                are steps and the database is distributed.
        """
        from ibex_db_core.migrations import planning

        return await planning.plan(self._engine, revision, down=down, scratch=scratch)

    async def losses(self, revision: str = "heads", *, down: bool = False) -> list[str]:
        """Return what an upgrade, or a downgrade, would destroy, one line each; asks only for sizes.

        Waits while a migration runs in this process, on whichever database.

        Raises:
            MigrationError: there is no such revision.
        """
        from ibex_db_core.migrations import moving

        async with self._engine.connect() as connection, alembic_to_itself():
            return await connection.run_sync(moving.losses, revision, down)

    async def _move(self, revision: str, patience: Patience, *, down: bool, allow_destructive: bool) -> list[Revision]:
        from ibex_db_core.migrations import moving

        if not down and await self._is_at(revision):
            return []  # no reason to wait for whoever else is at work on the schema
        async with self.exclusive() as connection:
            return await moving.move(
                self._engine, connection, revision, patience, down=down, allow_destructive=allow_destructive
            )

    async def current(self) -> list[Revision]:
        """Return every revision of the installed wheels, oldest first, each with whether it is applied."""
        from ibex_db_core.migrations import runner

        async with self._engine.connect() as connection:
            return await connection.run_sync(runner.steps)

    async def check(self) -> list[str]:
        """Return how the live schema differs from the models; an empty list means it does not.

        Alembic compares tables, columns and indexes; the doctor's checks of policies, grants,
        constraints, triggers, functions and views are told too, each with its code.
        """
        from ibex_db_core.migrations import runner

        async with self._engine.connect() as connection:
            return await connection.run_sync(runner.differences)

    async def sign(self, key: str) -> "signing.Signing":
        """Demand from every tenant transaction a signature made with this key, from now on; see decision 30.

        In one transaction, without a pause for services that have the key
        already.  Again with the same key: signs what is not signed yet.

        Args:
            key: 64 hexadecimal digits.

        Raises:
            ConfigurationError: no such key, or signing is on with another one.
            LockTimeoutError: the tables were never free together; nothing was changed.
            MigrationError: revision core_0002 is not applied.
        """
        checked = SigningKey(key)
        return await self._locked(lambda connection: signing.enable(connection, checked, metadata()))

    async def unsign(self) -> "signing.Signing":
        """Demand no signatures any more, and forget the keys.

        Raises:
            LockTimeoutError: the tables were never free together; nothing was changed.
            MigrationError: revision core_0002 is not applied.
        """
        return await self._locked(lambda connection: signing.disable(connection, metadata()))

    async def rotate(self, key: str, *, overlap: float = 86_400.0) -> "signing.Signing":
        """Take a new key; the one before it stays valid for a while, so that services can follow one by one.

        Args:
            key: 64 hexadecimal digits.
            overlap: seconds, 0 or more; 0 shuts the old key out at once.

        Raises:
            InvalidInputError: overlap is negative, or no finite number.
            ConfigurationError: no such key, signing is off, or this is the key in use.
            MigrationError: revision core_0002 is not applied.
        """
        checked = SigningKey(key)
        if not 0 <= overlap < math.inf:
            raise InvalidInputError("overlap", overlap, "must be a number of seconds, 0 or more")
        return await self._locked(lambda connection: signing.rotate(connection, checked, overlap))

    async def signing(self) -> "signing.Signing":
        """Return whether tenants must be signed, and which keys are valid; their ids only.

        Raises:
            MigrationError: revision core_0002 is not applied.
        """
        async with self._engine.connect() as connection:
            return await connection.run_sync(signing.status)

    async def distribution(self, *, shards: int = 32) -> "list[Step]":
        """Return the steps that distribute() would take, and why: none where all have been taken.

        Args:
            shards: of each table, 1 to 1024; of a database that is distributed already, what it has stays.

        Raises:
            InvalidInputError: another number of shards.
            MigrationError: no Citus coordinator with workers, or another reason why it cannot be distributed.
        """
        from ibex_db_core.distribution import plan

        async with self._engine.connect() as connection:
            return await connection.run_sync(lambda live: plan(live, metadata(), shards=shards))

    async def distribute(self, *, shards: int = 32, told: "Callable[[Step], None] | None" = None) -> "list[Step]":
        """Distribute a migrated database over the workers of its Citus cluster; return the steps taken.

        Idempotent: takes the steps that are missing, each in a transaction of its own, and so goes on where an
        earlier call was cut short.  Services must be stopped: tables are locked while their rows move.

        Args:
            shards: of each table, 1 to 1024; of a database that is distributed already, what it has stays.
            told: called before each step.

        Raises:
            InvalidInputError: another number of shards.
            MigrationError: it cannot be distributed; a node refused a step, which was rolled back; or, at the end, a
                shard is not as closed as its table.
        """
        from ibex_db_core.distribution import complaints, distribute

        def work(connection: Connection) -> "list[Step]":
            steps = distribute(connection, metadata(), shards=shards, told=told)
            if found := complaints(connection, metadata()):
                raise MigrationError("shards differ from their tables: " + "; ".join(found))
            return steps

        return await self._locked(work)

    @staticmethod
    def sql(revision: str = "heads") -> str:
        """Return the SQL of a full upgrade, without a database.

        Raises:
            MigrationError: there is no such revision, or a migration is running in this process.
        """
        from ibex_db_core.migrations import runner

        return runner.sql(revision)

    async def _is_at(self, revision: str) -> bool:
        from ibex_db_core.migrations import runner

        async with self._engine.connect() as connection:
            heads, steps = await connection.run_sync(lambda live: runner.pending(live, runner.history(), revision))
        return bool(heads) and not steps

    async def _locked(self, run: Callable[[Connection], T]) -> T:
        async with self.exclusive() as connection:
            return await connection.run_sync(run)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[AsyncConnection]:
        """Give a connection of the owner's login, for looking."""
        async with self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def exclusive(self) -> AsyncGenerator[AsyncConnection]:
        """Give a connection of the owner's login once nobody else migrates this database, and keep others waiting.

        For procedures on the schema that are no revision; an upgrade that finds every revision applied does not wait.
        """
        async with self._engine.connect() as connection:
            # Asked again and again, not waited for: who waits in a statement has a snapshot, and CREATE INDEX
            # CONCURRENTLY waits for every older one; the two would be a deadlock.
            while not await connection.scalar(text(f"SELECT pg_try_advisory_lock({_LOCK})")):
                await connection.rollback()
                await asyncio.sleep(random.uniform(0.05, 0.2))  # noqa: S311 - apart from others is all it must be
            await connection.execute(text(_NOTICE_A_DEAD_CLIENT))
            await connection.commit()
            try:
                async with alembic_to_itself():
                    yield connection
            finally:
                await connection.rollback()
                await connection.execute(text("RESET row_security"))
                await connection.execute(text(f"SELECT pg_advisory_unlock({_LOCK})"))
                await connection.commit()


@asynccontextmanager
async def alembic_to_itself() -> AsyncGenerator[None]:
    """Wait until no other migration runs in this process, on whichever loop or thread, and keep others waiting."""
    from ibex_db_core.migrations.runner import ALONE

    while not ALONE.acquire(blocking=False):  # noqa: ASYNC110 - an asyncio.Event belongs to one loop
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        ALONE.release()
