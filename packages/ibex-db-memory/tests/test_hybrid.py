"""Searching by vector and words at once: two legs, one order, one statement."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from uuid import UUID

import numpy as np
import pytest

from ibex_db_core.errors import InvalidInputError
from ibex_db_memory import HitParts, MemoryRepository
from ibex_db_memory.search import fusion, plan

Sent = Callable[[], AbstractContextManager[list[str]]]
Vector = Callable[[int], list[float]]


def near(vector: Vector, seed: int, distance: float) -> list[float]:
    """Return the vector of a seed, led astray a little."""
    base, other = np.array(vector(seed)), np.array(vector(seed + 10_000))
    found: list[float] = (base + distance * other).tolist()
    return found


async def fill(memories: MemoryRepository, agent_id: UUID, vector: Vector, count: int = 80) -> list[UUID]:
    """Rows 0, 1, 2 ... grow less like vector(0); every third says tea, every tenth cinnamon."""
    done = await memories.remember_many(
        {
            "agent_id": agent_id,
            "content": f"Row {n}" + (" tea" if n % 3 == 0 else "") + (" cinnamon" if n % 10 == 0 else ""),
            "category": "factual" if n % 2 else "episodic",
            "embedding": near(vector, 0, 0.05 * n),
            "tags": ["even"] if n % 2 == 0 else [],
        }
        for n in range(count)
    )
    return [outcome.id for outcome in done.outcomes]


async def test_the_score_is_the_mean_of_both_normalised(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await fill(memories, agent_id, vector)
    hits = await memories.search(embedding=vector(0), text="tea cinnamon", limit=20, explain=True)

    assert len(hits) == 20
    assert hits[0].memory.content == "Row 0 tea cinnamon"
    assert hits[0].score == pytest.approx(1.0)
    for hit in hits:
        assert hit.parts is not None
        assert hit.parts.vector_part is not None
        assert hit.parts.lexical_part is not None
        assert 0 <= hit.parts.vector_part <= 1
        assert 0 <= hit.parts.lexical_part <= 1
        mean = fusion.VECTOR_WEIGHT * hit.parts.vector_part + (1 - fusion.VECTOR_WEIGHT) * hit.parts.lexical_part
        assert hit.score == pytest.approx(mean)
    assert [(-hit.score, hit.memory.id) for hit in hits] == sorted((-hit.score, hit.memory.id) for hit in hits)


async def test_each_leg_says_what_it_says_alone(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> None:
    await fill(memories, agent_id, vector)
    both = await memories.search(embedding=vector(0), text="tea cinnamon", limit=80, explain=True)
    by_vector = {hit.memory.id: hit.similarity for hit in await memories.search(embedding=vector(0), limit=80)}
    by_words = {hit.memory.id: hit.lexical for hit in await memories.search(text="tea cinnamon", limit=80)}

    assert len(both) == 80
    assert {hit.memory.id: hit.similarity for hit in both} == pytest.approx(by_vector)
    assert {hit.memory.id: hit.lexical for hit in both if hit.lexical} == pytest.approx(by_words)
    ranks = sorted(hit.parts.lexical_rank for hit in both if hit.parts and hit.parts.lexical_rank)
    assert ranks == list(range(1, len(by_words) + 1))


async def test_a_hit_by_words_alone_has_its_similarity(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await fill(memories, agent_id, vector, 120)
    far = await memories.remember(
        agent_id=agent_id, content="Saffron.", category="factual", embedding=[-part for part in vector(0)]
    )
    hits = await memories.search(embedding=vector(0), text="saffron", limit=200)

    found = next(hit for hit in hits if hit.memory.id == far.memory.id)
    assert found.similarity == pytest.approx(-1.0)
    assert found.lexical is not None
    assert found.lexical > 0
    assert found.score == pytest.approx(0.5)


async def test_a_memory_without_a_vector_is_found_by_its_words(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await fill(memories, agent_id, vector, 5)
    await memories.remember(agent_id=agent_id, content="Saffron.", category="factual")
    hits = await memories.search(embedding=vector(0), text="saffron", explain=True)

    found = next(hit for hit in hits if hit.memory.content == "Saffron.")
    assert found.similarity is None
    assert found.parts == HitParts(vector_rank=None, vector_part=0.0, lexical_rank=1, lexical_part=1.0)


async def test_stop_words_alone_leave_the_vectors_order(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await fill(memories, agent_id, vector)
    hits = await memories.search(embedding=vector(0), text="who are the others?", limit=20)
    nearest = await memories.search(embedding=vector(0), limit=20)

    assert [hit.memory.id for hit in hits] == [hit.memory.id for hit in nearest]
    assert all(hit.lexical == 0 for hit in hits)


async def test_one_memory_scores_whole(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> None:
    await fill(memories, agent_id, vector, 1)
    (hit,) = await memories.search(embedding=vector(0), text="tea")

    assert hit.score == 1.0


async def test_nothing_remembered_is_nothing_found(memories: MemoryRepository, vector: Vector) -> None:
    assert len(await memories.search(embedding=vector(0), text="tea")) == 0


async def test_one_statement_asks_both(memories: MemoryRepository, agent_id: UUID, vector: Vector, sent: Sent) -> None:
    await fill(memories, agent_id, vector, 10)
    await memories.search(embedding=vector(0), text="tea")
    with sent() as statements:
        await memories.search(embedding=vector(0), text="tea")

    assert len(statements) == 1


async def test_filters_hold_for_both_legs(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, vector: Vector
) -> None:
    await fill(memories, agent_id, vector)
    await fill(memories, other_agent_id, vector, 10)
    hits = await memories.search(
        embedding=vector(0), text="tea", agent_id=agent_id, categories=["episodic"], tags_any=["even"], limit=100
    )

    assert {hit.memory.content.split()[1] for hit in hits} == {str(n) for n in range(0, 80, 2)}
    assert {hit.memory.agent_id for hit in hits} == {agent_id}


@pytest.mark.parametrize("limit", [1, 7, 60, 300])
async def test_there_are_as_many_hits_as_match_either(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, limit: int
) -> None:
    await fill(memories, agent_id, vector, 200)
    await memories.remember_many(
        {"agent_id": agent_id, "content": f"Tea without a vector {n}", "category": "factual"} for n in range(50)
    )
    hits = await memories.search(embedding=vector(0), text="tea", limit=limit)

    assert len(hits) == min(limit, 250)
    assert len({hit.memory.id for hit in hits}) == len(hits)


async def test_min_similarity_holds_whichever_leg_found_it(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await fill(memories, agent_id, vector)
    await memories.remember(agent_id=agent_id, content="Tea, no vector.", category="factual")
    hits = await memories.search(embedding=vector(0), text="tea", min_similarity=0.8, limit=100)
    alone = await memories.search(embedding=vector(0), min_similarity=0.8, limit=100)

    assert {hit.memory.id for hit in hits} == {hit.memory.id for hit in alone}
    assert 0 < len(hits) < 80


async def test_vectors_of_two_models_are_refused_unless_one_is_named(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    for model in ("one", "two"):
        await memories.remember(
            agent_id=agent_id, content=f"Tea {model}", category="factual", embedding=vector(0), embedding_model=model
        )
    with pytest.raises(InvalidInputError, match="embedding_model"):
        await memories.search(embedding=vector(0), text="tea")

    hits = await memories.search(embedding=vector(0), text="tea", embedding_model="two")

    assert [hit.memory.content for hit in hits] == ["Tea two"]


async def test_a_large_scope_is_asked_by_index_and_scanned_where_that_finds_too_few(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "EXACT_UP_TO", 50)
    await fill(memories, agent_id, vector, 120)
    by_index = await memories.search(embedding=vector(0), text="tea", limit=10)
    exact = await memories.search(embedding=vector(0), text="tea", limit=10, exact=True)
    few = await memories.search(embedding=vector(0), text="tea", limit=200)

    assert (by_index.plan.exact, by_index.plan.scope_rows) == (False, 120)
    assert exact.plan.exact
    assert {hit.memory.id for hit in by_index[:5]} == {hit.memory.id for hit in exact[:5]}
    assert few.plan.rescanned
    assert len(few) == 120


async def test_explain_tells_a_vectors_places_too(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> None:
    await fill(memories, agent_id, vector, 3)
    hits = await memories.search(embedding=vector(0), explain=True)

    assert [hit.parts and hit.parts.vector_rank for hit in hits] == [1, 2, 3]
    assert all(hit.lexical is None for hit in hits)
