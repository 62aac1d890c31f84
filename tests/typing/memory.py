"""A service's file on ibex-db-memory: what the verbs give, as the service's type checker sees it.

Never run; see core.py.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import assert_type
from uuid import UUID

from sqlalchemy import select

from ibex_db import (
    Agent,
    Checkpoint,
    Database,
    Hit,
    Hits,
    HotMemory,
    Kept,
    Memory,
    MemoryCategory,
    MemoryDraft,
    MemoryRepository,
    MemoryTag,
    MemoryVersion,
    Migrator,
    Organization,
    OrganizationTier,
    RememberedMany,
    RepartitionStatus,
    ScopedSession,
    Session,
    SessionRepository,
    abandon_repartition,
    repartition,
    repartition_status,
)
from ibex_db_memory.testing import DraftFields, MakeMemory, MakeSession


async def statements(db: Database, org_id: UUID) -> None:
    async with db.tenant(org_id, read_only=True) as session:
        assert_type(await session.get(Agent, org_id), Agent | None)
        assert_type((await session.scalars(select(Memory.content))).all(), Sequence[str])


async def unit_of_work(session: ScopedSession, agent_id: UUID, *, limit: int) -> Sequence[Hit]:
    return (await MemoryRepository(session).search(agent_id=agent_id, embedding=[1.0], limit=limit))[:limit]


async def retried(db: Database, org_id: UUID) -> None:
    assert_type(await db.run(org_id, unit_of_work, org_id, limit=3), Sequence[Hit])


async def memories(session: ScopedSession, agent_id: UUID, vector: list[float]) -> None:
    memories = MemoryRepository(session)
    kept = await memories.remember(agent_id=agent_id, content="Tea.", category="preference", embedding=vector)
    assert_type(kept, Kept)
    assert_type(kept.memory, Memory)
    assert_type(kept.created, bool)
    many = await memories.remember_many(
        [MemoryDraft(agent_id=agent_id, content="Tea.", category=MemoryCategory.PREFERENCE)]
    )
    assert_type(many, RememberedMany)
    assert_type(many.outcomes[0].id, UUID)

    hits = await memories.search(agent_id=agent_id, embedding=vector, limit=10)
    assert_type(hits, Hits)
    assert_type(hits[0], Hit)
    assert_type(hits[0].memory, Memory)
    assert_type(hits[0].score, float)
    assert_type(hits[0].similarity, float | None)
    assert_type(await memories.find_similar(vector), Hits)
    assert_type(await memories.hot(agent_id), Sequence[HotMemory])
    assert_type(await memories.history(hits[0].memory.id), Sequence[MemoryVersion])
    assert_type(await memories.record_retrieval(hit.memory.id for hit in hits), int)
    assert_type(await memories.get(agent_id), Memory)


def columns(memory: Memory, organization: Organization) -> None:
    assert_type(memory.id, UUID)
    assert_type(memory.org_id, UUID)
    assert_type(memory.embedding, list[float] | None)
    assert_type(memory.category, MemoryCategory)
    assert_type(memory.confidence, Decimal)
    assert_type(memory.expires_at, datetime | None)
    assert_type(memory.metadata_, dict[str, object])
    assert_type(memory.tags, list[MemoryTag])
    assert_type(memory.agent, Agent)
    assert_type(organization.tier, OrganizationTier)


async def runs(session: ScopedSession, agent_id: UUID) -> None:
    sessions = SessionRepository(session)
    run = await sessions.start(agent_id=agent_id)
    assert_type(run, Session)
    assert_type(await sessions.checkpoint(run.id, {"turn": 1}), Checkpoint)
    assert_type(await sessions.latest_checkpoint(run.id), Checkpoint | None)


async def partitions(migrator: Migrator) -> None:
    assert_type(await repartition(migrator, 32), RepartitionStatus)
    assert_type(await repartition_status(migrator), RepartitionStatus)
    assert_type(await abandon_repartition(migrator), bool)


async def test_a_service(make_session: MakeSession, make_memory: MakeMemory) -> None:
    run = await make_session(external_id="run-1")
    assert_type(run, Session)
    assert_type(await make_memory(), Memory)
    assert_type(await make_memory("Prefers tea.", tags=["drinks"], embedding=[1.0, 0.0]), Memory)
    fields: DraftFields = {"category": MemoryCategory.FACTUAL, "confidence": 0.9, "session_id": run.id}
    assert_type(await make_memory("Prefers tea.", **fields), Memory)
