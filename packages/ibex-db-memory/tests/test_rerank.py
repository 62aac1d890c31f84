"""A search put in the order of the hot score."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from ibex_db_core.errors import InvalidInputError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import HotWeights, Memory, MemoryCategory, MemoryRepository
from ibex_db_memory.search import rerank

Sent = Callable[[], AbstractContextManager[list[str]]]
Vector = Callable[[int], list[float]]

Days = Mapping[MemoryCategory, float]


def only(part: str, days: Days | None = None) -> HotWeights:
    parts = ("relevance", "recency", "usefulness", "confidence", "frequency")
    return HotWeights(half_life_days=days, **{name: float(name == part) for name in parts})


async def fill(session: ScopedSession, agent_id: UUID, vector: Vector) -> None:
    """Three that say tea; each is the best in one way."""
    common = {"agent_id": agent_id, "embedding": vector(5)}
    session.add_all(
        [
            Memory(**common, content="Tea, tea, tea.", category="factual", usefulness_score=0.1, confidence=0.2),
            Memory(**common, content="Tea of use now.", category="factual", usefulness_score=0.9, confidence=0.3),
            Memory(
                **common,
                content="Tea for sure, often.",
                category="episodic",
                usefulness_score=0.2,
                confidence=1,
                retrieval_count=9,
                created_at=datetime.now(UTC) - timedelta(days=14),
            ),
        ]
    )
    await session.flush()


@pytest.mark.parametrize(
    ("part", "first"),
    [
        ("relevance", "Tea, tea, tea."),
        ("usefulness", "Tea of use now."),
        ("confidence", "Tea for sure, often."),
        ("frequency", "Tea for sure, often."),
    ],
)
async def test_each_part_alone_decides(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID, vector: Vector, *, part: str, first: str
) -> None:
    await fill(session, agent_id, vector)

    hits = await memories.search(text="tea", rank=only(part))
    assert hits[0].memory.content == first
    assert len(hits) == 3


@pytest.mark.parametrize("legs", ["text", "embedding", "both"])
async def test_the_score_is_the_documented_sum(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID, vector: Vector, legs: str
) -> None:
    await fill(session, agent_id, vector)
    query: dict[str, object] = {"text": "tea often"} if legs != "embedding" else {}
    query |= {"embedding": vector(5)} if legs != "text" else {}
    plain = {hit.memory.content: hit for hit in await memories.search(**query)}  # type: ignore[arg-type]
    most = max(hit.score for hit in plain.values())

    hits = await memories.search(**query, rank=HotWeights(), explain=True)  # type: ignore[arg-type]

    assert len(hits) == 3
    assert [-hit.score for hit in hits] == sorted(-hit.score for hit in hits)
    for hit in hits:
        assert hit.parts is not None
        parts = hit.parts.hot
        assert parts is not None
        score = plain[hit.memory.content].score
        assert parts.relevance == pytest.approx(score / most if legs == "text" else score)
        episodic = hit.memory.category is MemoryCategory.EPISODIC
        assert parts.recency == pytest.approx(0.5 if episodic else 1.0, abs=0.01)
        assert parts.frequency == pytest.approx(hit.memory.retrieval_count / 10)
        assert parts.usefulness == pytest.approx(float(hit.memory.usefulness_score))
        assert parts.confidence == pytest.approx(float(hit.memory.confidence))
        assert hit.score == pytest.approx(
            0.40 * parts.relevance
            + 0.25 * parts.recency
            + 0.20 * parts.usefulness
            + 0.10 * parts.confidence
            + 0.05 * parts.frequency
        )
        assert (hit.similarity, hit.lexical) == (
            plain[hit.memory.content].similarity,
            plain[hit.memory.content].lexical,
        )


async def test_it_is_the_score_of_hot(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await fill(session, agent_id, vector)
    weights = HotWeights(relevance=0.0, recency=0.5, half_life_days={MemoryCategory.EPISODIC: 2.0})

    hot = {found.memory.id: found.score for found in await memories.hot(agent_id, weights=weights)}
    hits = await memories.search(embedding=vector(5), rank=weights)
    assert {hit.memory.id: hit.score for hit in hits} == pytest.approx(hot, abs=1e-6)


async def test_half_lives_are_adjustable(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await fill(session, agent_id, vector)
    weights = only("recency", {MemoryCategory.EPISODIC: 7})

    hits = await memories.search(text="tea", rank=weights)
    assert hits[-1].score == pytest.approx(math.exp(-math.log(2) * 2), abs=1e-3)


async def test_more_than_the_limit_take_part_and_no_more_come_back(
    memories: MemoryRepository, agent_id: UUID, sent: Sent
) -> None:
    """The fortieth by its words comes first where confidence decides; one statement all the same."""
    done = await memories.remember_many(
        {
            "agent_id": agent_id,
            "content": "tea " * 3 + f"row {n}" if n != 39 else f"row {n} tea with a lot of other words about it",
            "category": "factual",
            "confidence": 1.0 if n == 39 else 0.5,
        }
        for n in range(40)
    )
    weights = only("confidence")
    await memories.search(text="tea")  # counts the scope

    assert done.outcomes[39].id not in [hit.memory.id for hit in await memories.search(text="tea", limit=3)]
    with sent() as statements:
        hits = await memories.search(text="tea", limit=3, rank=weights)
    assert len(statements) == 1
    assert hits[0].memory.id == done.outcomes[39].id
    assert len(hits) == 3
    assert hits[0].parts is None


async def test_ages_of_the_past_are_those_of_then(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await fill(session, agent_id, vector)
    later = datetime.now(UTC) + timedelta(days=180)

    hits = await memories.search(text="use", as_of=later, rank=only("recency"))
    assert hits[0].score == pytest.approx(0.5, abs=0.01)


async def test_an_opposite_vector_is_of_no_relevance_and_nothing_of_no_hits(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    assert len(await memories.search(text="tea", rank=HotWeights())) == 0
    opposite = [-number for number in vector(1)]
    await memories.remember(agent_id=agent_id, content="Tea.", category="factual", embedding=opposite)

    hits = await memories.search(embedding=vector(1), rank=HotWeights(), explain=True)
    assert hits[0].similarity == pytest.approx(-1.0)
    assert hits[0].parts is not None
    assert hits[0].parts.hot is not None
    assert hits[0].parts.hot.relevance == 0.0


@pytest.mark.parametrize(("limit", "asked"), [(1, 50), (10, 50), (11, 55), (200, 1000), (1000, 1000)])
def test_how_many_take_part(limit: int, asked: int) -> None:
    assert rerank.candidates_for(limit) == asked


async def test_other_things_than_weights_are_refused(memories: MemoryRepository) -> None:
    with pytest.raises(InvalidInputError, match="rank must be HotWeights"):
        await memories.search(text="tea", rank={"recency": 1.0})  # type: ignore[arg-type]
