"""Migrator: moves one database between revisions, and signs its tenants, under one advisory lock.

Alembic is imported by the verbs: a service that only connects never waits for it.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core.errors import InvalidInputError, MigrationError
from ibex_db_core.migrations import signing
from ibex_db_core.migrations.wheels import Revision, metadata
from ibex_db_core.signing import SigningKey

if TYPE_CHECKING:
    from ibex_db_core.distribution import Step

T = TypeVar("T")

# One number for "somebody migrates an ibex_core schema in this database".
# Session level, since every revision commits on its own.
_LOCK = 0x1BEC_DB01


class Migrator:
    """Moves one database between revisions.

    Args:
        engine: connects as a member of ibex_owner (the very first time: as a role
            that may create roles and the vector extension).
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def upgrade(self, revision: str = "heads") -> list[Revision]:
        """Bring the schema to a revision, by default to the newest of every installed wheel.

        Idempotent; safe to call from many processes at once: an advisory lock
        lets one migrate while the others wait and then find nothing to do.

        Returns:
            the revisions that this call applied, in order.

        Raises:
            MigrationError: a revision failed; those before it stay applied, its own changes are rolled back.
        """
        from ibex_db_core.migrations import runner

        return await self._locked(lambda connection: runner.upgrade(connection, revision))

    async def downgrade(self, revision: str) -> None:
        """Take the schema back to a revision, for example ``memory@base``, ``memory@-1`` or ``base``.

        Raises:
            MigrationError: a step failed and was rolled back.
        """
        from ibex_db_core.migrations import runner

        await self._locked(lambda connection: runner.downgrade(connection, revision))

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

    async def _locked(self, run: Callable[[Connection], T]) -> T:
        async with self._engine.connect() as connection:
            await connection.execute(text(f"SELECT pg_advisory_lock({_LOCK})"))
            await connection.commit()
            try:
                async with _alembic_to_itself():
                    return await connection.run_sync(run)
            finally:
                await connection.rollback()
                await connection.execute(text("RESET row_security"))
                await connection.execute(text(f"SELECT pg_advisory_unlock({_LOCK})"))
                await connection.commit()


@asynccontextmanager
async def _alembic_to_itself() -> AsyncGenerator[None]:
    """Wait until no other migration runs in this process, on whichever loop or thread, and keep others waiting."""
    from ibex_db_core.migrations.runner import ALONE

    while not ALONE.acquire(blocking=False):  # noqa: ASYNC110 - an asyncio.Event belongs to one loop
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        ALONE.release()
