"""Forgetting on time: each expired memory is swept once, and no worker waits for another."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import select, text

from ibex_db_core.database import Database
from ibex_db_core.errors import InvalidInputError
from ibex_db_memory import Memory, MemoryRepository


async def remembered(memories: MemoryRepository, agent_id: UUID, count: int, *, ago: timedelta) -> list[UUID]:
    moment = datetime.now(UTC) - ago
    done = await memories.remember_many(
        {
            "agent_id": agent_id,
            "content": f"Train at noon {moment} {n}.",
            "category": "episodic",
            "expires_at": moment + timedelta(microseconds=n),
        }
        for n in range(count)
    )
    return [outcome.id for outcome in done.outcomes]


async def test_what_is_due_is_forgotten_and_nothing_else(memories: MemoryRepository, agent_id: UUID) -> None:
    due = await remembered(memories, agent_id, 3, ago=timedelta(minutes=1))
    later = await remembered(memories, agent_id, 2, ago=timedelta(minutes=-1))
    kept = await memories.remember(agent_id=agent_id, content="For good.", category="factual")

    assert (await memories.expire_due(), await memories.expire_due()) == (3, 0)
    assert {row.id for row in await memories.find()} == {*later, kept.memory.id}
    gone = await memories.get_many(due, include_deleted=True)
    assert len(gone) == 3


async def test_the_longest_expired_go_first_in_batches(memories: MemoryRepository, agent_id: UUID) -> None:
    due = await remembered(memories, agent_id, 5, ago=timedelta(minutes=1))

    swept: list[int] = []
    while count := await memories.expire_due(batch_size=2):
        left = {row.id for row in await memories.find()}
        assert left == set(due[sum(swept) + count :])
        swept.append(count)
    assert swept == [2, 2, 1]


async def test_an_expired_memory_is_hidden_before_the_sweep(memories: MemoryRepository, agent_id: UUID) -> None:
    await remembered(memories, agent_id, 1, ago=timedelta(minutes=1))

    assert list(await memories.search(text="train")) == []
    assert list(await memories.hot(agent_id)) == []
    assert len(await memories.search(text="train", include_expired=True)) == 1


async def test_sweeping_is_no_version(memories: MemoryRepository, agent_id: UUID) -> None:
    (due,) = await remembered(memories, agent_id, 1, ago=timedelta(minutes=1))
    await memories.expire_due()

    assert len(await memories.history(due)) == 1


@pytest.mark.parametrize("size", [0, 10_001, True])
async def test_a_batch_has_bounds(memories: MemoryRepository, size: int) -> None:
    with pytest.raises(InvalidInputError):
        await memories.expire_due(batch_size=size)


async def test_workers_at_once_sweep_each_memory_once(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        await remembered(MemoryRepository(session), agent_id, 200, ago=timedelta(minutes=1))
    gate = asyncio.Barrier(4)

    async def work() -> int:
        """Take a batch, and hold it until the other three have theirs: none of them may wait for it."""
        async with ibex_db.tenant(org_id) as session:
            await session.execute(text("SET LOCAL lock_timeout = '2s'"))
            count = await MemoryRepository(session).expire_due(batch_size=40)
            await asyncio.wait_for(gate.wait(), 30)
        while True:
            async with ibex_db.tenant(org_id) as session:
                more = await MemoryRepository(session).expire_due(batch_size=7)
            if not more:
                return count
            count += more

    swept = await asyncio.gather(*(work() for _ in range(4)))

    assert sum(swept) == 200
    assert min(swept) >= 40
    async with ibex_db.tenant(org_id) as session:
        assert await MemoryRepository(session).count() == 0


async def test_a_tenants_sweep_leaves_others_alone_and_a_platform_sweep_takes_all(
    ibex_db: Database, org_id: UUID, agent_id: UUID, rival_id: UUID, rival_agent_id: UUID
) -> None:
    for org, agent, count in ((org_id, agent_id, 3), (rival_id, rival_agent_id, 4)):
        async with ibex_db.tenant(org) as session:
            await remembered(MemoryRepository(session), agent, count, ago=timedelta(minutes=1))

    async with ibex_db.tenant(org_id) as session:
        assert await MemoryRepository(session).expire_due(batch_size=1) == 1
    async with ibex_db.platform(reason="the nightly sweep") as session:
        assert await MemoryRepository(session).expire_due() == 6
        left = (await session.execute(select(Memory.id).where(Memory.deleted_at.is_(None)))).all()
    assert left == []
