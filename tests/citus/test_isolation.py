"""On Citus as anywhere: whatever way a statement takes, an organization sees its own rows."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from two import Two
from ways import SCOPED_WAYS, WAYS

from ibex_db import AccessDeniedError, Agent, Database, DatabaseError, Memory, MemoryRepository, MemoryTag
from ibex_db_core.provisioning import SERVICE_LOGIN, Cluster

# Joins without the organization, which Citus refuses; a session of ours adds it.
UNROUTED = {"a_join"}


@pytest.fixture
async def plain(coordinator: Cluster, distributed: tuple[str, Two]) -> AsyncIterator[AsyncEngine]:
    """An engine that a service made by itself."""
    url = coordinator.url(distributed[0], user=SERVICE_LOGIN)
    engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("way", sorted(WAYS.keys() - UNROUTED))
async def test_without_walls_the_way_would_see_both_organizations(db: Database, two: Two, way: str) -> None:
    async with db.platform(reason="isolation tests: the control") as session:
        seen = await WAYS[way](session, two)
        await session.rollback()

    assert seen >= ({two.b.org_id} if way == "forged_where" else {two.a.org_id, two.b.org_id})


@pytest.mark.parametrize("way", [*WAYS, *SCOPED_WAYS])
async def test_every_way_through_a_tenant_session_sees_the_tenants_rows_only(db: Database, two: Two, way: str) -> None:
    async with db.tenant(two.a.org_id) as session:
        seen = await (WAYS | SCOPED_WAYS)[way](session, two)
        await session.rollback()

    assert seen == (set() if way == "forged_where" else {two.a.org_id})


@pytest.mark.parametrize("way", sorted((WAYS | SCOPED_WAYS).keys() - UNROUTED))
async def test_every_way_through_a_plain_session_with_a_repository_sees_the_tenants_rows_only(
    plain: AsyncEngine, two: Two, way: str
) -> None:
    async with AsyncSession(plain, expire_on_commit=False) as session:
        await MemoryRepository(session, two.a.org_id).count()

        seen = await (WAYS | SCOPED_WAYS)[way](session, two)

        await session.rollback()
    assert seen == (set() if way == "forged_where" else {two.a.org_id})


async def test_without_a_tenant_nothing_is_seen(plain: AsyncEngine, db: Database) -> None:
    async with db.platform(reason="isolation tests: the control") as session:
        assert (await session.scalar(select(func.count()).select_from(Memory)) or 0) > 0

    async with plain.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM ibex_core.memories")) == 0


@pytest.mark.parametrize("insert", ["VALUES", "SELECT"])
async def test_a_row_for_the_other_organization_is_refused(db: Database, two: Two, insert: str) -> None:
    given = "CAST(:org AS uuid), CAST(:memory AS uuid), 'x'"
    source = f"VALUES ({given})" if insert == "VALUES" else f"SELECT {given}"
    statement = text(f"INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag) {source}")

    async with db.tenant(two.a.org_id) as session:
        # Of INSERT ... SELECT Citus makes a COPY, which no table with policies takes.
        refused = AccessDeniedError if insert == "VALUES" else DatabaseError
        with pytest.raises(refused, match="row-level security"):
            await session.execute(statement, {"org": two.b.org_id, "memory": two.b.memory_id})
        await session.rollback()

    async with db.tenant(two.b.org_id) as session:
        assert await session.scalar(select(func.count()).select_from(MemoryTag).where(MemoryTag.tag == "x")) == 0


async def test_words_are_found_inside_one_organization_only(db: Database, two: Two) -> None:
    async with db.tenant(two.a.org_id) as session:
        hits = await MemoryRepository(session).search(text="tea")

    assert {hit.memory.org_id for hit in hits} == {two.a.org_id}
    assert {hit.memory.id for hit in hits} == {two.a.memory_id, two.a.other_memory_id}


async def test_a_row_cannot_move_to_the_other_organization(db: Database, two: Two) -> None:
    async with db.tenant(two.a.org_id) as session:
        agent = await session.get(Agent, two.a.agent_id)
        assert agent is not None
        statement = text("UPDATE ibex_core.agents SET org_id = :other WHERE org_id = :org")
        with pytest.raises(Exception, match=r"modifying the partition value|immutable"):
            await session.execute(statement, {"other": two.b.org_id, "org": two.a.org_id})
        await session.rollback()
