"""What is hot: the documented score, part by part, against the formula in Python."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import asyncpg
import numpy as np
import pytest
import pytest_asyncio

from ibex_db_core.database import Database
from ibex_db_memory import HALF_LIFE_DAYS, HotMemory, HotWeights, Memory, MemoryCategory, MemoryRepository, ScoreParts

CATEGORIES = list(MemoryCategory)


@pytest_asyncio.fixture
async def aged(ibex_db: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection) -> UUID:
    """An agent with sixty memories of all ages, standings and uses."""
    rng = np.random.default_rng(2)
    async with ibex_db.tenant(org_id) as session:
        done = await MemoryRepository(session).remember_many(
            {
                "agent_id": agent_id,
                "content": f"Number {n}.",
                "category": CATEGORIES[n % 5],
                "confidence": int(rng.integers(11)) / 10,
                "usefulness_score": int(rng.integers(11)) / 10,
            }
            for n in range(60)
        )
    now = datetime.now(UTC)
    for outcome in done.outcomes:
        age = timedelta(days=float(rng.exponential(60)))
        used = now - age * float(rng.random()) if rng.random() < 0.5 else None
        await owner.execute(
            "UPDATE ibex_core.memories SET created_at = $2, last_retrieved_at = $3, retrieval_count = $4 WHERE id = $1",
            outcome.id,
            now - age,
            used,
            int(rng.integers(20)),
        )
    return agent_id


def parts_of(memory: Memory, now: datetime, weights: HotWeights) -> ScoreParts:
    days = {**HALF_LIFE_DAYS, **(weights.half_life_days or {})}[memory.category]
    used = max(filter(None, (memory.created_at, memory.last_retrieved_at)))
    age = max((now - used).total_seconds(), 0) / 86400
    return ScoreParts(
        relevance=1.0,
        recency=math.exp(-math.log(2) * age / days),
        usefulness=float(memory.usefulness_score),
        confidence=float(memory.confidence),
        frequency=min(1.0, memory.retrieval_count / 10),
    )


def score_of(parts: ScoreParts, weights: HotWeights) -> float:
    return (
        weights.relevance * parts.relevance
        + weights.recency * parts.recency
        + weights.usefulness * parts.usefulness
        + weights.confidence * parts.confidence
        + weights.frequency * parts.frequency
    )


WEIGHTS = [
    HotWeights(),
    HotWeights(relevance=0, recency=1, usefulness=0, confidence=0, frequency=0),
    HotWeights(relevance=0, recency=0, usefulness=0.3, confidence=0.3, frequency=1),
    HotWeights(half_life_days={MemoryCategory.FACTUAL: 0.5, MemoryCategory.EPISODIC: 4000}),
    HotWeights(recency=1e-200, half_life_days=dict.fromkeys(CATEGORIES, 1e-8)),
]


@pytest.mark.parametrize("weights", WEIGHTS)
async def test_the_score_is_the_documented_one(
    ibex_db: Database, org_id: UUID, aged: UUID, weights: HotWeights
) -> None:
    async with ibex_db.tenant(org_id) as session:
        found = await MemoryRepository(session).hot(aged, limit=60, weights=weights, explain=True)

    now = datetime.now(UTC)
    wanted = {hot.memory.id: parts_of(hot.memory, now, weights) for hot in found}
    assert len(found) == 60
    assert [hot.score for hot in found] == sorted((hot.score for hot in found), reverse=True)
    for hot in found:
        parts = wanted[hot.memory.id]
        assert hot.parts is not None
        assert vars_of(hot.parts) == pytest.approx(vars_of(parts), abs=1e-4)
        assert hot.score == pytest.approx(score_of(hot.parts, weights), abs=1e-9)


def vars_of(parts: ScoreParts) -> list[float]:
    return [parts.relevance, parts.recency, parts.usefulness, parts.confidence, parts.frequency]


async def test_the_default_weights_sum_to_one_and_so_the_score_lies_in_0_to_1(
    ibex_db: Database, org_id: UUID, aged: UUID
) -> None:
    async with ibex_db.tenant(org_id) as session:
        found = await MemoryRepository(session).hot(aged, limit=60)

    weights = HotWeights()
    assert weights.relevance + weights.recency + weights.usefulness + weights.confidence + weights.frequency == (
        pytest.approx(1)
    )
    assert all(0 <= hot.score <= 1 for hot in found)


async def test_the_hottest_come_first_and_the_limit_cuts_the_rest(ibex_db: Database, org_id: UUID, aged: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        everything = await memories.hot(aged, limit=60)
        few = await memories.hot(aged, limit=7)

    assert [hot.memory.id for hot in few] == [hot.memory.id for hot in everything[:7]]


async def test_parts_are_told_only_when_asked_for(memories: MemoryRepository, agent_id: UUID) -> None:
    await memories.remember(agent_id=agent_id, content="Tea.", category="factual")
    (plain,) = await memories.hot(agent_id)
    (told,) = await memories.hot(agent_id, explain=True)

    assert plain.parts is None
    assert told.parts is not None
    assert told.parts.recency == pytest.approx(1, abs=1e-4)
    assert told.score == pytest.approx(0.40 + 0.25 + 0.20 * 0.5 + 0.10 * 0.8, abs=1e-4)


async def test_what_is_used_is_hotter(memories: MemoryRepository, agent_id: UUID) -> None:
    idle, used = [
        (await memories.remember(agent_id=agent_id, content=content, category="factual")).memory.id
        for content in ("Idle.", "Used.")
    ]
    await memories.record_retrieval([used])

    assert [hot.memory.id for hot in await memories.hot(agent_id)] == [used, idle]


async def test_categories_and_agents_narrow_it(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID
) -> None:
    for agent in (agent_id, other_agent_id):
        for category in ("factual", "episodic"):
            await memories.remember(agent_id=agent, content=category, category=category)

    def contents(found: Sequence[HotMemory]) -> list[str]:
        return sorted(hot.memory.content for hot in found)

    assert contents(await memories.hot(agent_id)) == ["episodic", "factual"]
    assert contents(await memories.hot([agent_id, other_agent_id])) == ["episodic", "episodic", "factual", "factual"]
    assert contents(await memories.hot(agent_id, categories=["episodic"])) == ["episodic"]


@pytest.mark.parametrize(
    "change",
    [
        {"expires_at": datetime.now(UTC) - timedelta(hours=1)},
        {"deleted_at": datetime.now(UTC)},
        {"status": "archived"},
    ],
    ids=["expired", "deleted", "archived"],
)
async def test_what_is_gone_is_not_hot(memories: MemoryRepository, agent_id: UUID, change: dict[str, object]) -> None:
    kept = await memories.remember(agent_id=agent_id, content="Tea.", category="factual", confidence=Decimal(1))
    if "deleted_at" in change:
        await memories.forget(kept.memory.id)
    else:
        await memories.update(kept.memory.id, **change)

    assert await memories.hot(agent_id) == []
