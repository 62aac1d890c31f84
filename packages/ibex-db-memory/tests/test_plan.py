"""Index or full scan: where the line lies, and how long a size is believed."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine

from ibex_db_core.database import Database
from ibex_db_memory import MemoryRepository
from ibex_db_memory.search.plan import EXACT_UP_TO, ScopeSizes, decide, sizes_for

ORG = uuid4()


class Counter:
    """Counts a scope, and how often it was asked to."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked = 0

    async def __call__(self) -> int:
        self.asked += 1
        return self.size


@pytest.mark.parametrize(("size", "exact"), [(0, True), (EXACT_UP_TO, True), (EXACT_UP_TO + 1, False)])
def test_up_to_five_thousand_rows_are_scanned(size: int, *, exact: bool) -> None:
    plan = decide(size)

    assert EXACT_UP_TO == 5000
    assert (plan.exact, plan.scope_rows, plan.rescanned) == (exact, size, False)
    assert "5000" in plan.reason


async def test_a_size_is_believed_for_half_a_minute() -> None:
    now = 1000.0
    sizes, count = ScopeSizes(clock=lambda: now), Counter(7)

    assert [await sizes.get((ORG, None), count) for _ in range(3)] == [7, 7, 7]
    now += 29.9
    count.size = 8
    assert (await sizes.get((ORG, None), count), count.asked) == (7, 1)
    now += 0.2
    assert (await sizes.get((ORG, None), count), count.asked) == (8, 2)


async def test_each_scope_has_its_own_size() -> None:
    sizes, agents = ScopeSizes(), [uuid4(), uuid4()]
    scopes = [(ORG, None), (uuid4(), None), (ORG, (agents[0],)), (ORG, (agents[0], agents[1]))]
    counts = [Counter(size) for size in range(4)]
    for _ in range(2):
        found = [await sizes.get(scope, count) for scope, count in zip(scopes, counts, strict=True)]

        assert found == [0, 1, 2, 3]
    assert [count.asked for count in counts] == [1] * 4


async def test_the_least_used_is_forgotten_first() -> None:
    sizes, kept, lost = ScopeSizes(), Counter(1), Counter(2)
    first, second = (uuid4(), None), (uuid4(), None)
    await sizes.get(first, kept)
    await sizes.get(second, lost)
    for number in range(9_999):
        await sizes.get((UUID(int=number), None), Counter(0))
        await sizes.get(first, kept)

    await sizes.get(second, lost)
    assert (kept.asked, lost.asked) == (1, 2)


def test_each_engine_remembers_for_itself() -> None:
    one, other = create_engine("postgresql+asyncpg://"), create_engine("postgresql+asyncpg://")

    assert sizes_for(one) is sizes_for(one)
    assert sizes_for(one) is not sizes_for(other)


async def test_a_search_says_how_it_was_answered(memories: MemoryRepository, agent_id: UUID) -> None:
    by_size = await memories.search(embedding=[1.0] * 384, agent_id=agent_id)
    by_wish = await memories.search(embedding=[1.0] * 384, agent_id=agent_id, exact=True)

    assert (by_size.plan.exact, by_size.plan.scope_rows) == (True, 0)
    assert (by_wish.plan.exact, by_wish.plan.scope_rows, by_wish.plan.reason) == (True, None, "asked for")


async def test_a_stale_size_costs_time_but_no_rows(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    async def far_too_many() -> int:
        return EXACT_UP_TO + 1

    await sizes_for(ibex_db.engine.sync_engine).get((org_id, None), far_too_many)
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        await memories.remember(agent_id=agent_id, content="Tea.", category="factual", embedding=[1.0] * 384)
        hits = await memories.search(embedding=[1.0] * 384)

    assert [hit.memory.content for hit in hits] == ["Tea."]
    assert (hits.plan.exact, hits.plan.rescanned, hits.plan.scope_rows) == (True, True, EXACT_UP_TO + 1)
