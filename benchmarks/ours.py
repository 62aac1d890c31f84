"""What a service does with ibex-db, as its documentation shows it."""

from collections.abc import Iterator, Sequence
from uuid import UUID

from benchmarks.dataset import Array, K, Query, Tenant, memory_id
from benchmarks.words import content
from ibex_db import Agent, Database, MemoryDraft, MemoryRepository, Organization
from ibex_db_memory.repositories.memory.writing import Kept


async def search(
    database: Database, query: Query, *, text: bool = False, vector: bool = True, exact: bool = False
) -> Sequence[int]:
    """Return the rows nearest to a query, in a transaction of its own; ``exact``: without counting the scope first."""
    async with database.tenant(query.tenant.org_id) as session:
        hits = await MemoryRepository(session).search(
            embedding=query.vector if vector else None, text=query.text if text else None, limit=K, exact=exact
        )
    return [hit.memory.id.int - 1 for hit in hits]


async def search_and_record(database: Database, query: Query) -> int:
    """Search, and count what was found in the same transaction; return how many."""
    async with database.tenant(query.tenant.org_id) as session:
        memories = MemoryRepository(session)
        hits = await memories.search(embedding=query.vector, limit=K)
        return await memories.record_retrieval(hit.memory.id for hit in hits)


async def remember(database: Database, tenant: Tenant, content: str, vector: Array, *, undo: bool = False) -> Kept:
    """Keep one memory, in a transaction of its own; ``undo``: which is rolled back."""
    async with database.tenant(tenant.org_id) as session:
        kept = await MemoryRepository(session).remember(
            agent_id=tenant.agent_id, content=content, embedding=vector, category="factual"
        )
        if undo:
            await session.rollback()
        return kept


async def remember_many(
    database: Database, tenant: Tenant, drafts: Iterator[MemoryDraft] | Sequence[MemoryDraft]
) -> int:
    """Keep many memories, in a transaction of their own; return how many are new."""
    async with database.tenant(tenant.org_id) as session:
        return (await MemoryRepository(session).remember_many(drafts)).created


async def record(database: Database, tenant: Tenant, idents: Sequence[UUID]) -> int:
    """Count a retrieval of some memories, in a transaction of its own; return how many there were."""
    async with database.tenant(tenant.org_id) as session:
        return await MemoryRepository(session).record_retrieval(idents)


def draft(tenant: Tenant, content: str, vector: Array) -> MemoryDraft:
    """Return one of many."""
    return MemoryDraft(agent_id=tenant.agent_id, content=content, embedding=vector, category="factual")


def draft_of(tenant: Tenant, row: int, vector: Array) -> MemoryDraft:
    """Return a row of the data set."""
    return MemoryDraft(
        agent_id=tenant.agent_id, content=content(row), embedding=vector, category="factual", id=memory_id(row)
    )


async def settle(database: Database, tenants: Sequence[Tenant]) -> None:
    """Make each tenant's organization and agent."""
    async with database.platform(reason="benchmark") as session:
        for tenant in tenants:
            name = f"tenant-{tenant.org_id.hex[:12]}"
            session.add(Organization(id=tenant.org_id, name=name, slug=name))
        await session.flush()
        for tenant in tenants:
            session.add(Agent(org_id=tenant.org_id, id=tenant.agent_id, name="Agent", slug="agent"))
