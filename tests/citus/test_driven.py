"""What goes to the driver directly, on a lent connection, and what a session of one's own sends first."""

from collections.abc import AsyncIterator
from typing import cast
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from two import ONE, VECTOR, Two

from ibex_db import (
    Agent,
    AgentRepository,
    Database,
    MemoryRepository,
    NotFoundError,
    Organization,
    OrganizationRepository,
    ScopedSession,
)
from ibex_db_core.provisioning import SERVICE_LOGIN, Cluster
from ibex_db_core.sharding import is_sharded
from ibex_db_core.tenant import SyncScopedSession


@pytest.fixture
async def single(coordinator: Cluster, distributed: tuple[str, Two]) -> AsyncIterator[Database]:
    """A Database of one connection, which every unit of work is given in turn."""
    async with coordinator.database(distributed[0], settings=ONE) as database:
        yield database


@pytest.fixture
async def plain(coordinator: Cluster, distributed: tuple[str, Two]) -> AsyncIterator[AsyncEngine]:
    """An engine that a service made by itself, and that nobody has looked at."""
    url = coordinator.url(distributed[0], user=SERVICE_LOGIN)
    engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    yield engine
    await engine.dispose()


def _is_lent(session: ScopedSession) -> bool:
    return cast("SyncScopedSession", session.sync_session).lease is not None


async def _own(db: Database) -> tuple[UUID, UUID]:
    async with db.platform(reason="a test begins") as session:
        slug = f"own-{uuid4().hex[:8]}"
        org = await OrganizationRepository(session).add(Organization(name="Own", slug=slug))
    async with db.tenant(org.id) as session:
        agent = await AgentRepository(session).add(Agent(name="Support", slug="support"))
    return org.id, agent.id


async def test_a_lent_connection_carries_each_tenant_to_the_worker_in_turn(single: Database, two: Two) -> None:
    async with single.platform(reason="isolation tests: the control") as session:
        both = {await _agent_of(session, one.memory_id) for one in (two.a, two.b)}
    assert both == {two.a.agent_id, two.b.agent_id}

    for own, other in ((two.a, two.b), (two.b, two.a), (two.a, two.b)):
        async with single.tenant(own.org_id) as session:
            memories = MemoryRepository(session)
            assert (await memories.get(own.memory_id)).org_id == own.org_id
            with pytest.raises(NotFoundError):
                await memories.get(other.memory_id)
            hits = await memories.search(embedding=VECTOR, limit=100)
            words = await memories.search(text="tea", limit=100)
            assert _is_lent(session)

        assert {hit.memory.org_id for hit in (*hits, *words)} == {own.org_id}
        assert own.memory_id in {hit.memory.id for hit in hits}


async def _agent_of(session: ScopedSession, ident: UUID) -> UUID:
    return (await MemoryRepository(session).get(ident)).agent_id


async def test_what_is_remembered_on_a_lent_connection_is_there_after_its_commit(single: Database) -> None:
    org_id, agent_id = await _own(single)
    async with single.tenant(org_id) as session:
        kept = await MemoryRepository(session).remember(
            agent_id=agent_id, content="Lives in Oslo.", category="factual", embedding=VECTOR
        )
        assert _is_lent(session)

    async with single.tenant(org_id) as session:
        memories = MemoryRepository(session)
        assert (await memories.get(kept.memory.id)).content == "Lives in Oslo."
        assert [version.operation for version in await memories.history(kept.memory.id)] == ["created"]


async def test_an_error_on_a_lent_connection_leaves_it_fit_for_the_next(single: Database, two: Two) -> None:
    with pytest.raises(NotFoundError):
        async with single.tenant(two.a.org_id) as session:
            await MemoryRepository(session).get(uuid4())

    async with single.tenant(two.b.org_id) as session:
        assert (await MemoryRepository(session).get(two.b.memory_id)).org_id == two.b.org_id


async def test_batches_with_vectors_are_kept_at_the_default_size(single: Database) -> None:
    org_id, agent_id = await _own(single)
    vectors = np.random.default_rng(3).standard_normal((600, 384)).astype(np.float32)

    async with single.tenant(org_id) as session:
        done = await MemoryRepository(session).remember_many(
            {"agent_id": agent_id, "content": f"Fact {n}.", "category": "factual", "embedding": vectors[n]}
            for n in range(600)
        )

    async with single.tenant(org_id) as session:
        assert (done.created, await MemoryRepository(session).count()) == (600, 600)


async def test_the_first_verb_on_an_engine_that_nobody_has_looked_at_knows_where_it_is(
    plain: AsyncEngine, db: Database
) -> None:
    org_id, agent_id = await _own(db)
    assert is_sharded(plain) is None

    async with AsyncSession(plain, expire_on_commit=False) as session:
        kept = await MemoryRepository(session, org_id).remember(
            agent_id=agent_id, content="Likes tea.", category="preference", tags=["drink"]
        )
        await session.commit()

    assert is_sharded(plain)
    async with db.tenant(org_id) as session:
        hits = await MemoryRepository(session).search(text="tea", tags_all=["drink"])

    assert [hit.memory.id for hit in hits] == [kept.memory.id]


async def test_a_session_of_ones_own_brings_memories_in_as_its_first_verb(
    plain: AsyncEngine, db: Database, two: Two
) -> None:
    org_id, _ = await _own(db)
    async with db.tenant(two.a.org_id) as session:
        lines = [line async for line in MemoryRepository(session).export()]

    async with AsyncSession(plain, expire_on_commit=False) as session:
        done = await MemoryRepository(session, org_id).import_(lines, create_agents=True)
        await session.commit()

    async with db.tenant(org_id) as session:
        assert (done.created, await MemoryRepository(session).count()) == (2, 2)


async def test_a_session_that_was_made_before_the_first_transaction_knows_where_it_is(
    coordinator: Cluster, distributed: tuple[str, Two], two: Two
) -> None:
    async with coordinator.database(distributed[0]) as fresh:
        async with fresh.session_factory(two.a.org_id) as session:
            await MemoryRepository(session).remember(
                agent_id=two.a.agent_id, content="Is first.", category="factual", tags=["first"]
            )
            await session.rollback()

        assert is_sharded(fresh.engine)
