"""Trial: two organizations, and how a piece of work is tried in the sessions of both."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast
from uuid import UUID

from sqlalchemy import CursorResult, Row, select, text
from sqlalchemy.orm import undefer
from sqlalchemy.pool import QueuePool

from ibex_db_core.database import Database
from ibex_db_core.errors import IbexError
from ibex_db_core.policies import APP_ROLE, TENANT_SETTING
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory.models import Memory
from ibex_db_tenancy.models import Organization

__all__ = ["WHO", "Sample", "Seen", "Trial", "sample"]

T = TypeVar("T")

# Which backend, for which tenant, and how many memories it sees.
WHO = text(
    f"SELECT pg_backend_pid(), current_setting('{TENANT_SETTING}', true), (SELECT count(*) FROM ibex_core.memories)"
)

Work = Callable[[ScopedSession], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One organization, and a memory of its own."""

    org_id: UUID
    name: str
    memory_id: UUID
    agent_id: UUID
    embedding: Sequence[float]


async def sample(db: Database, org_id: UUID) -> Sample | None:
    """Return an organization's first live memory with a vector, as its own session sees it; None where it sees none."""
    async with db.tenant(org_id, read_only=True) as session:
        name = await session.scalar(select(Organization.name).where(Organization.id == org_id))
        statement = select(Memory).where(
            Memory.org_id == org_id,
            Memory.embedding.is_not(None),
            Memory.status == "active",
            Memory.deleted_at.is_(None),
            Memory.expires_at.is_(None),
        )
        found = await session.scalar(statement.order_by(Memory.id).limit(1).options(undefer(Memory.embedding)))
        if found is None or name is None:
            return None
        return Sample(org_id, name, found.id, found.agent_id, cast("Sequence[float]", found.embedding))


class Seen(NamedTuple):
    """What was seen on one road."""

    holds: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Trial:
    """Who tries, and who owns what is tried for."""

    db: Database
    intruder: Sample
    owner: Sample

    async def undone(self, org: Sample, work: Work[T]) -> T:
        """Do something in an organization's session, take it back, and return what it gave."""

        async def and_undo(session: ScopedSession) -> T:
            try:
                return await work(session)
            finally:
                await session.rollback()

        return await self.db.run(org.org_id, and_undo)

    async def refused(self, org: Sample, refusal: type[IbexError], work: Work[object]) -> Seen:
        """Tell whether work in an organization's session ends with the refusal that is due."""
        try:
            done = await self.undone(org, work)
        except refusal as exc:
            constraint = getattr(exc, "constraint", None)
            return Seen(holds=True, evidence=refusal.__name__ + (f" ({constraint})" if constraint else ""))
        return Seen(holds=False, evidence=f"NOT REFUSED, gave {done!r}")

    async def owner_only(self, refusal: type[IbexError], work: Work[object], verb: str) -> Seen:
        """Tell whether the owner may do something that the intruder is refused."""
        await self.undone(self.owner, work)
        holds, outcome = await self.refused(self.intruder, refusal, work)
        return Seen(holds, f"owner: {verb}; intruder: {outcome}")

    async def affected(self, statement: str) -> Seen:
        """Tell whether a statement touches the row named by :id for its owner, and nothing for the intruder."""

        async def work(session: ScopedSession) -> int:
            result = await session.execute(text(statement), {"id": self.owner.memory_id})
            return cast("CursorResult[*tuple[Any, ...]]", result).rowcount

        theirs, ours = await self.undone(self.owner, work), await self.undone(self.intruder, work)
        return Seen(theirs == 1 and ours == 0, f"owner: {theirs} row, undone; intruder: {ours} rows")

    async def without_tenant(self, pid: int) -> Row[int, str | None, int] | None:
        """Ask without a tenant on the pooled connection with this backend; None where it is not in the pool.

        Returns:
            the backend, the tenant that is set, and how many memories are seen.
        """
        pool = cast("QueuePool", self.db.engine.pool)
        async with AsyncExitStack() as held:
            for _ in range(max(pool.checkedin(), 1)):
                connection = await held.enter_async_context(self.db.engine.connect())
                # A login that steps down does so in each transaction; for all others this changes nothing.
                await connection.execute(text(f"SET LOCAL ROLE {APP_ROLE}"))
                row = (await connection.execute(WHO)).one()
                if row[0] == pid:
                    return cast("Row[int, str | None, int]", row)
        return None
