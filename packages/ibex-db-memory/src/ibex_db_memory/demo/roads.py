"""The roads to another organization's rows: each is walked by the owner, who must arrive, and by the intruder."""

from collections.abc import Sequence
from typing import cast
from uuid import UUID

from sqlalchemy import func, select, text

from ibex_db_core.base import Base
from ibex_db_core.errors import AccessDeniedError, ForeignKeyError, NotFoundError, TenantMismatchError
from ibex_db_core.policies import TENANT_SETTING, tenant_tables
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory.demo import attempts
from ibex_db_memory.demo.trial import WHO, Sample, Seen, Trial
from ibex_db_memory.models import Memory
from ibex_db_memory.repositories import MemoryRepository

# -- reading


async def repository(trial: Trial) -> Seen:
    """Ask the repository for the row's id."""

    async def get(session: ScopedSession) -> str:
        return str((await MemoryRepository(session).get(trial.owner.memory_id)).id)

    return await trial.owner_only(NotFoundError, get, f"finds {str(trial.owner.memory_id)[:8]}")


async def forged_id(trial: Trial) -> Seen:
    """Name the other organization in a key, and in a repository."""

    async def get(session: ScopedSession) -> object:
        return await session.get_one(Memory, (trial.owner.org_id, trial.owner.memory_id))

    async def bind(session: ScopedSession) -> object:
        return MemoryRepository(session, trial.owner.org_id).org_id

    key = await trial.owner_only(TenantMismatchError, get, "loads it")
    bound = await trial.owner_only(TenantMismatchError, bind, "has it")
    if key.holds and bound.holds:
        return Seen(holds=True, evidence="owner: may do both; intruder: TenantMismatchError for both")
    return Seen(holds=False, evidence=f"key: {key.evidence}. Repository: {bound.evidence}")


async def raw_count(trial: Trial) -> Seen:
    """Count every row that can be seen."""
    both = [trial.intruder.org_id, trial.owner.org_id]
    async with trial.db.platform(reason="count what there is to hide") as session:
        counted = select(Memory.org_id, func.count()).where(Memory.org_id.in_(both)).group_by(Memory.org_id)
        there = {row[0]: row[1] for row in (await session.execute(counted)).all()}
    async with trial.db.tenant(trial.intruder.org_id, read_only=True) as session:
        statement = text("SELECT count(*), count(*) FILTER (WHERE org_id <> :org) FROM ibex_core.memories")
        seen, foreign = (await session.execute(statement, {"org": trial.intruder.org_id})).one()
    ours, theirs = (there.get(org_id, 0) for org_id in both)
    return Seen(
        ours > 0 and theirs > 0 and seen > 0 and foreign == 0,
        f"platform: {ours:,} + {theirs:,} rows; intruder: {seen:,}, of others {foreign:,}",
    )


async def forged_where(trial: Trial) -> Seen:
    """Name the other organization in WHERE."""

    async def count(session: ScopedSession) -> int:
        statement = text("SELECT count(*) FROM ibex_core.memories WHERE org_id = :b")
        return cast("int", await session.scalar(statement, {"b": trial.owner.org_id}))

    theirs, ours = await trial.undone(trial.owner, count), await trial.undone(trial.intruder, count)
    return Seen(theirs > 0 and ours == 0, f"owner: {theirs:,} rows; intruder: {ours:,} rows")


async def every_table(trial: Trial) -> Seen:
    """Look for anybody else's rows in every table."""
    tables = {
        f"{table.schema}.{table.name}": str(table.info["tenant_column"]) for table in tenant_tables(Base.metadata)
    }
    async with trial.db.platform(reason="see which tables hold rows to hide") as session:
        full = [
            name for name, column in tables.items() if await _any(session, f"{name} WHERE {column} = :org", trial.owner)
        ]
    async with trial.db.tenant(trial.intruder.org_id, read_only=True) as session:
        open_ = [
            name
            for name, column in tables.items()
            if await _any(session, f"{name} WHERE {column} <> :org", trial.intruder)
        ]
    shown = ", ".join(open_) if open_ else "none shows any"
    return Seen(bool(full) and not open_, f"owner: has rows in {len(full)} of {len(tables)} tables; intruder: {shown}")


async def _any(session: ScopedSession, rows: str, org: Sample) -> bool:
    return bool(await session.scalar(text(f"SELECT EXISTS (SELECT FROM {rows})"), {"org": org.org_id}))


async def vector(trial: Trial) -> Seen:
    """Search with the row's own vector, by the repository and in raw SQL that names no organization."""

    async def search(session: ScopedSession) -> Sequence[tuple[UUID, float]]:
        hits = await MemoryRepository(session).search(embedding=trial.owner.embedding, limit=50)
        nearest = await attempts.nearest(session, trial.owner.embedding, limit=50)
        return [(hit.memory.org_id, hit.score) for hit in hits] + list(nearest)

    theirs, ours = await trial.undone(trial.owner, search), await trial.undone(trial.intruder, search)
    best, other = (max((score for _, score in hits), default=0.0) for hits in (theirs, ours))
    foreign = sum(org_id != trial.intruder.org_id for org_id, _ in ours)
    return Seen(
        best > attempts.IDENTICAL and bool(ours) and foreign == 0,
        f"owner: similarity {best:.3f}; intruder: {other:.3f} at best, {foreign} of {len(ours)} hits of others",
    )


# -- writing


async def insert(trial: Trial) -> Seen:
    """Insert a row that names the other organization."""

    async def work(session: ScopedSession) -> object:
        return await attempts.add_memory(session, trial.owner.org_id, trial.owner.agent_id)

    return await trial.owner_only(AccessDeniedError, work, "does, undone")


async def give_away(trial: Trial) -> Seen:
    """Move a row of one's own to the other organization."""

    async def keep(session: ScopedSession) -> object:
        return await attempts.move(session, trial.intruder.memory_id, trial.intruder.org_id)

    async def move(session: ScopedSession) -> object:
        return await attempts.move(session, trial.intruder.memory_id, trial.owner.org_id)

    changed = await trial.undone(trial.intruder, keep) is not None
    holds, outcome = await trial.refused(trial.intruder, AccessDeniedError, move)
    return Seen(changed and holds, f"to itself: {'does, undone' if changed else 'no row'}; to the other: {outcome}")


async def foreign_agent(trial: Trial) -> Seen:
    """Insert a row of one's own that belongs to the other's agent."""

    async def work(session: ScopedSession) -> object:
        return await attempts.add_memory(session, cast("UUID", session.org_id), trial.owner.agent_id)

    return await trial.owner_only(ForeignKeyError, work, "does, undone")


async def foreign_memory(trial: Trial) -> Seen:
    """Point from a row of one's own at the other's row."""

    async def work(session: ScopedSession) -> object:
        org = trial.intruder if session.org_id == trial.intruder.org_id else trial.owner
        source = await attempts.add_memory(session, org.org_id, org.agent_id)
        return await attempts.relate(session, org.org_id, source, trial.owner.memory_id)

    return await trial.owner_only(ForeignKeyError, work, "does, undone")


async def update(trial: Trial) -> Seen:
    """UPDATE by id alone."""
    return await trial.affected("UPDATE ibex_core.memories SET confidence = confidence WHERE id = :id")


async def delete(trial: Trial) -> Seen:
    """DELETE by id alone."""
    return await trial.affected("DELETE FROM ibex_core.memories WHERE id = :id")


# -- the pool


async def no_tenant(trial: Trial) -> Seen:
    """Count rows without a tenant, on a connection that has just served one."""
    pid, _, rows = await _as_intruder(trial)
    after = await trial.without_tenant(pid)
    if after is None:
        return _gone(pid)
    return Seen(rows > 0 and after[2] == 0, f"backend {pid}: {rows:,} rows as the tenant, then {after[2]:,}")


async def pooled(trial: Trial) -> Seen:
    """Read the tenant of a connection that has gone back to the pool."""
    pid, within, _ = await _as_intruder(trial)
    after = await trial.without_tenant(pid)
    if after is None:
        return _gone(pid)
    right = within == str(trial.intruder.org_id)
    return Seen(
        right and not after[1],
        f"backend {pid}: {TENANT_SETTING} is {within[:8]}..., then {after[1] or ''!r}",
    )


async def _as_intruder(trial: Trial) -> tuple[int, str, int]:
    async with trial.db.tenant(trial.intruder.org_id, read_only=True) as session:
        pid, tenant, rows = (await session.execute(WHO)).one()
    return pid, tenant or "", rows


def _gone(pid: int) -> Seen:
    return Seen(holds=False, evidence=f"backend {pid} did not come back to the pool")
