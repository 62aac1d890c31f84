"""The scenes between storing and proving: duplicates, hot memories, the history of one memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isclose
from uuid import UUID

from sqlalchemy import select, text

from ibex_db_core.database import Database
from ibex_db_core.errors import AccessDeniedError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory.content import content_hash
from ibex_db_memory.demo.claim import Claim
from ibex_db_memory.demo.questions import Scope
from ibex_db_memory.demo.storing import Stored
from ibex_db_memory.models import Memory, MemoryCategory, MemoryVersion
from ibex_db_memory.repositories import MemoryRepository
from ibex_db_memory.search import HotMemory, HotWeights
from ibex_db_tenancy.models import Agent

__all__ = ["Hot", "Version", "duplicates", "history", "hottest", "kept"]


# -- what was stored


async def kept(db: Database, stored: Stored) -> Sequence[Claim]:
    """Count in the database what should be there."""
    found = 0
    for org_id in stored.organizations.values():
        async with db.tenant(org_id, read_only=True) as session:
            found += await MemoryRepository(session).count(Memory.id.in_(set(stored.ids.values())))
    records = stored.corpus.records
    different = len({record.twin_key for record in records})
    return [
        Claim(
            f"All {len(records)} memories are in the database, each once.",
            holds=len(stored.ids) == len(records) and found == different,
            evidence=f"{stored.created} created, {stored.known} known; {different} differ, and {found} rows hold them",
        )
    ]


# -- duplicates


async def duplicates(db: Database, first: Stored, again: Stored) -> Sequence[Claim]:
    """Judge what remembering everything a second time did, and say one memory in other letters.

    Args:
        db: the database.
        first: what was stored.
        again: the same corpus, stored once more.
    """
    record = first.corpus.records[0]
    content = str(record.draft["content"])
    variant = f"  {content.upper()}\n"
    if content_hash(variant) != content_hash(content):  # letters whose upper case is spelled in another way
        variant = f"  {content}\n"
    async with db.tenant(first.organizations[record.scope[0]]) as session:
        told = await MemoryRepository(session).remember(
            agent_id=first.agents[record.scope], content=variant, category=MemoryCategory.EPISODIC
        )
        created, twin = told.created, told.memory.id
        await session.rollback()
    return [
        Claim(
            f"Remembering all {len(again.ids)} again creates nothing.",
            holds=again.created == 0 and again.ids == first.ids,
            evidence=f"{again.created} created, {again.known} known, with the ids of the first time",
        ),
        Claim(
            "Other letters and other white space are the same memory.",
            holds=not created and twin == first.ids[0],
            evidence=f"{_short(variant.strip())} is memory {str(twin)[:8]}",
        ),
    ]


def _short(content: str) -> str:
    return repr(content if len(content) <= 40 else f"{content[:40]}...")  # noqa: PLR2004 - half a narrow line


# -- hot memories


@dataclass(frozen=True, slots=True)
class Hot:
    """One hot memory, as it is shown."""

    score: float
    category: str
    uses: int
    days_since_use: float | None
    content: str


async def hottest(db: Database, stored: Stored, scope: Scope, *, limit: int) -> tuple[Sequence[Hot], Sequence[Claim]]:
    """Ask what an agent should have at hand, and add the documented score up again."""
    async with db.tenant(stored.organizations[scope[0]], read_only=True) as session:
        found = await MemoryRepository(session).hot(stored.agents[scope], limit=limit, explain=True)
        rows = [_hot(one) for one in found]
        elsewhere = sum(one.memory.agent_id != stored.agents[scope] for one in found)
    weights = HotWeights()
    summed = all(
        one.parts is not None
        and isclose(
            one.score,
            weights.relevance * one.parts.relevance
            + weights.recency * one.parts.recency
            + weights.usefulness * one.parts.usefulness
            + weights.confidence * one.parts.confidence
            + weights.frequency * one.parts.frequency,
            abs_tol=1e-9,
        )
        for one in found
    )
    scores = [row.score for row in rows]
    return rows, [
        Claim(
            "Hot memories come hottest first, by the documented score, and are the agent's own.",
            holds=bool(rows) and summed and scores == sorted(scores, reverse=True) and not elsewhere,
            evidence=f"{len(rows)} scores from {max(scores, default=0):.3f} to {min(scores, default=0):.3f}, each the "
            "weighted sum of relevance, recency, usefulness, confidence and frequency",
        )
    ]


def _hot(one: HotMemory) -> Hot:
    memory = one.memory
    last = memory.last_retrieved_at
    days = None if last is None else (datetime.now(UTC) - last).total_seconds() / 86400
    return Hot(one.score, memory.category.value, memory.retrieval_count, days, memory.content)


# -- the history of one memory


@dataclass(frozen=True, slots=True)
class Version:
    """One version, as it is shown."""

    number: int
    operation: str
    content: str
    reason: str | None


_FIRST_WORDING = "The Alder Street garage closes at 22:00; later, patients leave by the loading ramp."
_SECOND_WORDING = "The Alder Street garage closes at 23:00 under its new lease; the loading ramp stays shut."
_MARK = {"scene": "ibex-db demo: history"}


async def history(db: Database, stored: Stored, scope: Scope) -> tuple[Sequence[Version], Sequence[Claim]]:
    """Change a memory and take it back, once in its life, and read what the database wrote down about it."""
    org_id = stored.organizations[scope[0]]
    memory_id = await db.run(org_id, _changed, stored.agents[scope])
    async with db.tenant(org_id) as session:
        repository = MemoryRepository(session)
        memory = await repository.get(memory_id)
        versions = await repository.history(memory_id)
        shown = [Version(one.version_num, one.operation.value, one.content, one.change_reason) for one in versions]
        last = versions[-1]
        same = (last.content, last.confidence, last.status) == (memory.content, memory.confidence, memory.status)
        refusal = await _rewritten(session, last)
    numbers = [one.number for one in shown]
    return shown, [
        Claim(
            "Every change of a memory is a version, without gaps, and the last one is what it says now.",
            holds=len(numbers) > 1 and numbers == list(range(1, len(numbers) + 1)) and same,
            evidence=f"versions {numbers[0]} to {numbers[-1]}, written by the database",
        ),
        Claim("Nobody rewrites history.", holds=refusal is not None, evidence=f"UPDATE: {refusal or 'went through'}"),
    ]


async def _changed(session: ScopedSession, agent_id: UUID) -> UUID:
    """Return the memory of this scene, making and changing it where that was not done yet; all or nothing."""
    # Two demos at once: the second waits here, and finds what the first has made.
    await session.execute(select(Agent.id).where(Agent.id == agent_id).with_for_update(key_share=True))
    repository = MemoryRepository(session)
    found = await repository.find(Memory.agent_id == agent_id, Memory.metadata_.contains(_MARK), limit=1)
    if found:
        return found[0].id
    made = await repository.remember(
        agent_id=agent_id,
        content=_FIRST_WORDING,
        category=MemoryCategory.FACTUAL,
        metadata=dict(_MARK),
    )
    await repository.update(made.memory.id, content=_SECOND_WORDING, embedding=None)
    await repository.revert(made.memory.id, 1, reason="the new lease starts next year")
    return made.memory.id


async def _rewritten(session: ScopedSession, version: MemoryVersion) -> str | None:
    """Try to change a version in raw SQL; return the refusal, or None where it went through."""
    try:
        async with session.begin_nested():
            await session.execute(
                text("UPDATE ibex_core.memory_versions SET content = 'never happened' WHERE id = :id"),
                {"id": version.id},
            )
    except AccessDeniedError as exc:
        return type(exc).__name__
    else:
        await session.rollback()
        return None
