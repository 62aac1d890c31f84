"""The proof that one organization cannot reach another's rows, by any road that services have.

Each step runs the same statement twice, under the same role: in the session
of the organization that owns the row, where it must succeed, and in the
other's, where it must not.  A wall around nothing proves nothing, so a step
whose first half fails does not hold either.  Whatever a step writes is rolled
back.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast
from uuid import UUID

from sqlalchemy import CursorResult, Row, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import undefer
from sqlalchemy.pool import QueuePool

from ibex_db_core.base import Base
from ibex_db_core.database import Database
from ibex_db_core.errors import (
    AccessDeniedError,
    ForeignKeyError,
    IbexError,
    NotFoundError,
    TenantMismatchError,
    TransientError,
)
from ibex_db_core.policies import APP_ROLE, TENANT_SETTING, tenant_tables
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory.demo import attempts
from ibex_db_memory.demo.claim import Claim
from ibex_db_memory.models import Memory
from ibex_db_memory.repositories import MemoryRepository
from ibex_db_tenancy.models import Organization

__all__ = ["prove_isolation"]

T = TypeVar("T")


async def prove_isolation(db: Database, org_a: UUID, org_b: UUID) -> Sequence[Claim]:
    """Try to reach organization B's rows from A's sessions; what A must not do, B does for comparison.

    Args:
        db: as services use it.
        org_a: who tries; needs a memory, and so an agent.
        org_b: who owns what is tried for; needs a memory with a vector.

    Returns:
        one claim for each road.  One that does not hold says why in its evidence.

    Raises:
        TransientError: the database could not be reached, or locks were held, five times over.
    """
    ours, theirs = await _sample(db, org_a), await _sample(db, org_b)
    if ours is None or theirs is None:
        empty = org_a if ours is None else org_b
        return [
            Claim(
                "Both organizations have a memory to hide.",
                holds=False,
                evidence=f"organization {empty} shows no live memory with a vector, in its own session",
            )
        ]
    proof = _Proof(db, ours, theirs)
    return [await proof.claim(statement, road) for statement, road in _ROADS]


@dataclass(frozen=True, slots=True)
class _Sample:
    """One organization, and a memory of its own."""

    org_id: UUID
    name: str
    memory_id: UUID
    agent_id: UUID
    embedding: Sequence[float]


async def _sample(db: Database, org_id: UUID) -> _Sample | None:
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
        return _Sample(org_id, name, found.id, found.agent_id, cast("Sequence[float]", found.embedding))


class _Seen(NamedTuple):
    """What a road showed."""

    holds: bool
    evidence: str


class _Proof:
    def __init__(self, db: Database, ours: _Sample, theirs: _Sample) -> None:
        self.db = db
        self.a = ours
        self.b = theirs

    async def claim(self, statement: str, road: "_Road") -> Claim:
        said = statement.format(a=self.a.name, b=self.b.name)
        try:
            holds, evidence = await road(self)
        except TransientError:
            raise
        except IbexError as exc:
            return Claim(said, holds=False, evidence=f"unexpected {type(exc).__name__}: {exc}")
        return Claim(said, holds, evidence)

    # -- what each road is made of

    async def undone(self, org: _Sample, work: Callable[[ScopedSession], Awaitable[T]]) -> T:
        """Do something in an organization's session, take it back, and return what it gave."""

        async def and_undo(session: ScopedSession) -> T:
            try:
                return await work(session)
            finally:
                await session.rollback()

        return await self.db.run(org.org_id, and_undo)

    async def refused(
        self, org: _Sample, refusal: type[IbexError], work: Callable[[ScopedSession], Awaitable[object]]
    ) -> _Seen:
        """Tell whether a piece of work in an organization's session ends with the refusal that is due."""
        try:
            done = await self.undone(org, work)
        except refusal as exc:
            constraint = getattr(exc, "constraint", None)
            return _Seen(holds=True, evidence=refusal.__name__ + (f" ({constraint})" if constraint else ""))
        return _Seen(holds=False, evidence=f"not refused (gave {done!r})")

    async def only_theirs(
        self, refusal: type[IbexError], work: Callable[[ScopedSession], Awaitable[object]], verb: str
    ) -> _Seen:
        """Tell whether B may do something that A is refused."""
        await self.undone(self.b, work)
        holds, outcome = await self.refused(self.a, refusal, work)
        return _Seen(holds, f"{self.b.name}'s session {verb}; {self.a.name}'s: {outcome}")

    async def affected(self, statement: str) -> _Seen:
        """Tell whether a statement touches B's row from B's session, and nothing from A's."""

        async def work(session: ScopedSession) -> int:
            result = await session.execute(text(statement), {"id": self.b.memory_id})
            return cast("CursorResult[*tuple[Any, ...]]", result).rowcount

        theirs, ours = await self.undone(self.b, work), await self.undone(self.a, work)
        return _Seen(
            theirs == 1 and ours == 0,
            f"the same statement changes {theirs} row in {self.b.name}'s session, {ours} in {self.a.name}'s",
        )

    # -- the roads

    async def repository(self) -> _Seen:
        async def get(session: ScopedSession) -> str:
            return str((await MemoryRepository(session).get(self.b.memory_id)).id)

        return await self.only_theirs(NotFoundError, get, f"finds memory {str(self.b.memory_id)[:8]}")

    async def forged_id(self) -> _Seen:
        async def get(session: ScopedSession) -> object:
            return await session.get(Memory, (self.b.org_id, self.b.memory_id))

        async def bind(session: ScopedSession) -> object:
            return MemoryRepository(session, self.b.org_id).org_id

        by_key = await self.only_theirs(TenantMismatchError, get, "loads (org_id, id)")
        by_org = await self.refused(self.a, TenantMismatchError, bind)
        return _Seen(by_key.holds and by_org.holds, f"{by_key.evidence}; a repository for it there: {by_org.evidence}")

    async def raw_count(self) -> _Seen:
        async with self.db.platform(reason="isolation proof: count what there is to hide") as session:
            rows = await session.execute(
                select(Memory.org_id, func.count())
                .where(Memory.org_id.in_([self.a.org_id, self.b.org_id]))
                .group_by(Memory.org_id)
            )
            there = {org_id: count for org_id, count in rows.all()}  # noqa: C416 - rows are no pairs to a type checker
        async with self.db.tenant(self.a.org_id, read_only=True) as session:
            seen, foreign = await _counts(session, self.a.org_id)
        ours, theirs = there.get(self.a.org_id, 0), there.get(self.b.org_id, 0)
        return _Seen(
            ours > 0 and theirs > 0 and seen > 0 and foreign == 0,
            f"the platform counts {ours} + {theirs}; {self.a.name}'s session {seen}, {foreign} of them not its own",
        )

    async def forged_where(self) -> _Seen:
        async def count(session: ScopedSession) -> int:
            statement = text("SELECT count(*) FROM ibex_core.memories WHERE org_id = :b")
            return cast("int", await session.scalar(statement, {"b": self.b.org_id}))

        theirs, ours = await self.undone(self.b, count), await self.undone(self.a, count)
        return _Seen(theirs > 0 and ours == 0, f"{theirs} rows in {self.b.name}'s session, {ours} in {self.a.name}'s")

    async def every_table(self) -> _Seen:
        tables = [(f"{table.schema}.{table.name}", str(table.info["tenant_column"])) for table in _TABLES]
        async with self.db.platform(reason="isolation proof: which tables hold rows to hide") as session:
            full = [
                name.partition(".")[2]
                for name, column in tables
                if await _any(session, f"{name} WHERE {column} = :org", self.b.org_id)
            ]
        async with self.db.tenant(self.a.org_id, read_only=True) as session:
            leaky = [
                name for name, column in tables if await _any(session, f"{name} WHERE {column} <> :org", self.a.org_id)
            ]
        seen = f"all {len(tables)} tables show {self.a.name} nothing of others" if not leaky else f"leaks: {leaky}"
        return _Seen(bool(full) and not leaky, f"{self.b.name} has rows in {', '.join(full)}; {seen}")

    async def insert(self) -> _Seen:
        async def work(session: ScopedSession) -> object:
            return await attempts.add_memory(session, self.b.org_id, self.b.agent_id)

        return await self.only_theirs(AccessDeniedError, work, "inserts the row (undone)")

    async def give_away(self) -> _Seen:
        async def work(session: ScopedSession) -> object:
            return await attempts.move(session, self.a.memory_id, self.b.org_id)

        holds, outcome = await self.refused(self.a, AccessDeniedError, work)
        return _Seen(holds, f"UPDATE ... SET org_id in {self.a.name}'s session: {outcome}")

    async def foreign_agent(self) -> _Seen:
        async def work(session: ScopedSession) -> object:
            return await attempts.add_memory(session, cast("UUID", session.org_id), self.b.agent_id)

        return await self.only_theirs(ForeignKeyError, work, "adds a memory to that agent (undone)")

    async def foreign_memory(self) -> _Seen:
        async def work(session: ScopedSession) -> object:
            org_id = cast("UUID", session.org_id)
            agent_id = self.a.agent_id if org_id == self.a.org_id else self.b.agent_id
            source = await attempts.add_memory(session, org_id, agent_id)
            return await attempts.relate(session, org_id, source, self.b.memory_id)

        return await self.only_theirs(ForeignKeyError, work, "relates a memory to it (undone)")

    async def update(self) -> _Seen:
        return await self.affected("UPDATE ibex_core.memories SET confidence = confidence WHERE id = :id")

    async def delete(self) -> _Seen:
        return await self.affected("DELETE FROM ibex_core.memories WHERE id = :id")

    async def vector(self) -> _Seen:
        async def search(session: ScopedSession) -> Sequence[tuple[UUID, float]]:
            hits = await MemoryRepository(session).search(embedding=self.b.embedding, limit=50)
            nearest = await attempts.nearest(session, self.b.embedding, limit=50)
            return [(hit.memory.org_id, hit.score) for hit in hits] + list(nearest)

        theirs, ours = await self.undone(self.b, search), await self.undone(self.a, search)
        best = max((score for _, score in theirs), default=0.0)
        foreign = sum(org_id != self.a.org_id for org_id, _ in ours)
        return _Seen(
            best > attempts.IDENTICAL and bool(ours) and foreign == 0,
            f"{self.b.name}'s session finds it at {best:.3f}; of {len(ours)} hits in {self.a.name}'s, by search() and "
            f"by raw SQL, {foreign} are {self.b.name}'s (best {max((s for _, s in ours), default=0.0):.3f})",
        )

    async def no_tenant(self) -> _Seen:
        async with self.db.tenant(self.a.org_id, read_only=True) as session:
            seen, _ = await _counts(session, self.a.org_id)
            pid = cast("int", await session.scalar(text("SELECT pg_backend_pid()")))
        row = await self.same_connection(pid)
        if row is None:
            return _Seen(holds=False, evidence=f"backend {pid} did not come back to the pool")
        return _Seen(
            seen > 0 and row.rows == 0,
            f"backend {pid}: {seen} rows within the transaction, {row.rows} without a tenant",
        )

    async def pooled(self) -> _Seen:
        async with self.db.tenant(self.a.org_id, read_only=True) as session:
            pid, within = (await session.execute(_WHO)).one()
        row = await self.same_connection(pid)
        if row is None:
            return _Seen(holds=False, evidence=f"backend {pid} did not come back to the pool")
        return _Seen(
            within == str(self.a.org_id) and not row.tenant,
            f"backend {pid}: {TENANT_SETTING} is {within[:8]}... within the transaction, {row.tenant!r} after it",
        )

    async def same_connection(self, pid: int) -> Row[*tuple[Any, ...]] | None:
        """Take connections from the pool, no more than lie idle there, until it is this one; ask as services would."""
        pool = cast("QueuePool", self.db.engine.pool)
        async with AsyncExitStack() as held:
            for _ in range(max(pool.checkedin(), 1)):
                connection: AsyncConnection = await held.enter_async_context(self.db.engine.connect())
                # A login that steps down does so in each transaction; for all others this changes nothing.
                await connection.execute(text(f"SET LOCAL ROLE {APP_ROLE}"))
                row = (await connection.execute(_WITHOUT)).one()
                if row.pid == pid:
                    return row
        return None


_Road = Callable[[_Proof], Awaitable[_Seen]]
_TABLES = list(tenant_tables(Base.metadata))
_WHO = text(f"SELECT pg_backend_pid(), current_setting('{TENANT_SETTING}', true)")
_WITHOUT = text(
    f"SELECT pg_backend_pid() AS pid, current_setting('{TENANT_SETTING}', true) AS tenant, "
    "(SELECT count(*) FROM ibex_core.memories) AS rows"
)


async def _counts(session: ScopedSession, org_id: UUID) -> tuple[int, int]:
    statement = text("SELECT count(*), count(*) FILTER (WHERE org_id <> :org) FROM ibex_core.memories")
    seen, foreign = (await session.execute(statement, {"org": org_id})).one()
    return seen, foreign


async def _any(session: ScopedSession, rows: str, org_id: UUID) -> bool:
    return bool(await session.scalar(text(f"SELECT EXISTS (SELECT FROM {rows})"), {"org": org_id}))


_ROADS: Sequence[tuple[str, _Road]] = (
    ("{a}'s repository does not find {b}'s memory by its id.", _Proof.repository),
    ("A forged key, or a repository for {b}, is refused in {a}'s session.", _Proof.forged_id),
    ("Raw SQL without any WHERE counts {a}'s memories only.", _Proof.raw_count),
    ("Raw SQL with WHERE org_id = {b} finds nothing.", _Proof.forged_where),
    ("No other table shows {a} a row of anybody else.", _Proof.every_table),
    ("{a} cannot insert a row into {b}.", _Proof.insert),
    ("{a} cannot move a row of its own to {b}.", _Proof.give_away),
    ("{a} cannot give a memory to {b}'s agent: the foreign key names the organization.", _Proof.foreign_agent),
    ("{a} cannot point at {b}'s memory by foreign key.", _Proof.foreign_memory),
    ("{a} cannot UPDATE {b}'s row by its id.", _Proof.update),
    ("{a} cannot DELETE {b}'s row by its id.", _Proof.delete),
    ("A search with the very vector of {b}'s memory never returns it to {a}.", _Proof.vector),
    ("Without a tenant, SQL finds no row at all.", _Proof.no_tenant),
    ("The connection goes back to the pool without {a} on it.", _Proof.pooled),
)
