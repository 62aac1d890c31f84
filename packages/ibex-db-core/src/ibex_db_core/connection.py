"""The driver's connection: sends the tenant within BEGIN, and refuses what would run without it."""

from typing import Any, cast
from uuid import UUID

import asyncpg

from ibex_db_core.errors import DatabaseError, TenantError
from ibex_db_core.signing import ASK, Signer, set_signature

__all__ = ["FoldedConnection"]

# What raw SQL of a transaction before may have left on a pooled connection, all of which outlives COMMIT: held cursors,
# temporary tables (and types and functions, which are looked up first), a session's role.  The first two go in a
# transaction of their own in front, for they would take the snapshot of ours, before anybody can SET TRANSACTION.
_NO_LEFTOVERS = "BEGIN; CLOSE ALL; DISCARD TEMP; COMMIT;"


class FoldedConnection(asyncpg.Connection):
    """An asyncpg connection that sends the tenant within BEGIN, in one round trip.

    A session arms it when its transaction begins in SQLAlchemy's eyes; the
    driver sends BEGIN with the first statement, and the settings go with it.
    """

    signer: Signer | None = None
    began: int = 0
    """When the last transaction was begun, in epoch seconds by the server's clock; kept where there is a signer."""

    _armed: str | None = None
    _signs: UUID | None = None
    _commands: int = 0

    @property
    def armed(self) -> bool:
        """Whether there are settings that no BEGIN has carried yet."""
        return self._armed is not None

    @property
    def commanded(self) -> bool:
        """Whether a BEGIN, COMMIT or ROLLBACK is under way."""
        return self._commands > 0

    @property
    def transacting(self) -> bool:
        """Whether a transaction is open, or about to be: from before BEGIN is sent, which the server tells later."""
        return cast("object", self._top_xact) is not None or self.is_in_transaction()

    def arm(self, settings: str, org_id: UUID | None = None) -> None:
        """Have the next BEGIN carry these SET LOCAL statements, and the signature of a tenant."""
        self._armed, self._signs = settings, org_id

    def disarm(self) -> None:
        """Forget settings that no BEGIN has carried."""
        self._armed = self._signs = None

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
        """Run a command; the first BEGIN after arm() carries the settings.

        Raises:
            DatabaseError: a COMMIT that the server took for a ROLLBACK, which it says in the command's tag only.
        """
        self._commands += 1
        try:
            return await self._execute_one(query, *args, timeout=timeout)
        finally:
            self._commands -= 1

    async def _execute_one(self, query: str, *args: object, timeout: float | None) -> str:
        if self.signer is not None and query.startswith("BEGIN"):
            self.began = self.signer.now()
        if self._armed is None:
            status = await super().execute(query, *args, timeout=timeout)
            if query == "COMMIT;" and status == "ROLLBACK":
                raise DatabaseError(
                    "nothing was committed: a statement of this transaction had failed and its error was caught, so "
                    "the server answered COMMIT with ROLLBACK; wrap what may fail in session.begin_nested()",
                    sqlstate="25P02",
                )
            return status
        if args or not query.startswith("BEGIN"):
            raise self.outside_a_transaction()
        settings, org_id = self._armed, self._signs
        self.disarm()
        try:
            if self.signer is None or org_id is None:
                return await super().execute(f"{_NO_LEFTOVERS} {query} {settings}", timeout=timeout)
            if self.signer.asks:
                await super().execute(f"{_NO_LEFTOVERS} {query} {settings}", timeout=timeout)
                ((database, moment, pid),) = await self.fetch(ASK, timeout=timeout)
                signature = self.signer.key.sign(org_id, database, moment, pid)
                return await super().execute(set_signature(signature), timeout=timeout)
            signature = self.signer.sign(org_id, self.began, self.get_server_pid())
            begin = f"{_NO_LEFTOVERS} {query} {set_signature(signature)}; {settings}"
            return await super().execute(begin, timeout=timeout)
        except Exception:
            # BEGIN may have worked and a setting failed.  SQLAlchemy takes the
            # transaction for never begun, so nobody else would end it; asyncpg
            # takes it for begun, and would make a savepoint of the next BEGIN.
            if not self.is_closed() and self.is_in_transaction():
                await super().execute("ROLLBACK")
                self._top_xact = None
            raise

    async def prepare(self, query: str, **options: Any) -> Any:
        """Prepare a statement; refused while the tenant has not been sent."""
        if self._armed is not None:
            raise self.outside_a_transaction()
        return await super().prepare(query, **options)

    @staticmethod
    def outside_a_transaction() -> TenantError:
        """Return the error of a statement that would run without its tenant."""
        return TenantError(
            "this session runs outside a transaction (isolation_level AUTOCOMMIT?): the tenant is a "
            "transaction-local setting and would vanish, so every query would silently find nothing"
        )
