"""pytest fixtures for services: factories of sessions and memories, beside those of the wheels below.

Found by pytest on its own.  What a factory makes is committed, so the service under test sees it.
"""

from itertools import count
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack
from uuid import UUID

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from decimal import Decimal

    from ibex_db_core.database import Database
    from ibex_db_core.types import JsonObject, VectorLike
    from ibex_db_memory.models import Memory, MemoryCategory, MemorySource, MemoryStatus, Session
    from ibex_db_tenancy.testing import MakeAgent, TestTenant


class DraftFields(TypedDict, total=False):
    """What make_memory takes beside content and agent_id: every other field of a MemoryDraft."""

    category: "MemoryCategory | str"
    embedding: "VectorLike | None"
    embedding_model: str | None
    source: "MemorySource | str"
    status: "MemoryStatus | str"
    session_id: UUID | None
    confidence: "Decimal | float | None"
    usefulness_score: "Decimal | float | None"
    tags: "Iterable[str]"
    metadata: "JsonObject"
    valid_from: "datetime | None"
    valid_until: "datetime | None"
    expires_at: "datetime | None"
    id: UUID | None


class MakeSession(Protocol):
    """``await make_session(agent_id=agent.id)`` starts an agent's session."""

    async def __call__(
        self, *, org_id: UUID | None = None, agent_id: UUID | None = None, external_id: str | None = None
    ) -> "Session":
        """Start one; without agent_id, an agent is made for it."""
        ...


class MakeMemory(Protocol):
    """``await make_memory("Prefers tea.", tags=["drinks"])`` remembers a statement."""

    async def __call__(
        self,
        content: str | None = None,
        *,
        org_id: UUID | None = None,
        agent_id: UUID | None = None,
        **draft: Unpack[DraftFields],
    ) -> "Memory":
        """Remember one; without agent_id, of one agent that all such memories of the organization share.

        Args:
            content: without it, a statement of its own.
            org_id: whose; the tenant's where it is not said.
            agent_id: of which agent.
            draft: further fields of a MemoryDraft: category, embedding, tags, metadata and so on.
        """
        ...


@pytest.fixture
def make_session(ibex_db: "Database", tenant: "TestTenant", make_agent: "MakeAgent") -> MakeSession:
    """Give a factory of sessions."""
    from ibex_db_memory.models import Session
    from ibex_db_memory.repositories import SessionRepository

    async def make(
        *, org_id: UUID | None = None, agent_id: UUID | None = None, external_id: str | None = None
    ) -> Session:
        whose = org_id or tenant.id
        agent = agent_id or (await make_agent(org_id=whose)).id
        async with ibex_db.tenant(whose) as session:
            return await SessionRepository(session).start(agent_id=agent, external_id=external_id)

    return make


@pytest.fixture
def make_memory(ibex_db: "Database", tenant: "TestTenant", make_agent: "MakeAgent") -> MakeMemory:
    """Give a factory of memories."""
    from ibex_db_memory.models import Memory
    from ibex_db_memory.repositories import MemoryRepository

    numbers = count(1)
    agents: dict[UUID, UUID] = {}

    async def make(
        content: str | None = None,
        *,
        org_id: UUID | None = None,
        agent_id: UUID | None = None,
        **draft: Unpack[DraftFields],
    ) -> Memory:
        whose = org_id or tenant.id
        if agent_id is None and whose not in agents:
            agents[whose] = (await make_agent(org_id=whose)).id
        given = {
            "agent_id": agent_id or agents[whose],
            "content": content or f"Statement {next(numbers)}.",
            "category": "factual",
            **draft,
        }
        async with ibex_db.tenant(whose) as session:
            memories = MemoryRepository(session)
            kept = await memories.remember_many([given])
            return await memories.get(kept.outcomes[0].id)

    return make
