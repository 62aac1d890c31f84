"""Bad input is refused with field, value and rule, before any SQL."""

import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from ibex_db_core.errors import InvalidInputError
from ibex_db_memory import HotWeights, MemoryRepository, SessionRepository

Sent = Callable[[], AbstractContextManager[list[str]]]
Vector = Callable[[int], list[float]]

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - what must be refused
NOW = datetime.now(UTC)

BAD_VECTORS: list[tuple[str, object]] = [
    ("embedding", [1.0] * 383),
    ("embedding", [1.0] * 385),
    ("embedding", []),
    ("embedding", [float("nan"), *[1.0] * 383]),
    ("embedding", [float("inf"), *[1.0] * 383]),
    ("embedding", [1e39, *[1.0] * 383]),
    ("embedding", [0.0] * 384),
    ("embedding", [1e-25] * 384),
    ("embedding", [1e25] * 384),
    ("embedding", np.ones((1, 384))),
    ("embedding", "[1, 2, 3]"),
    ("embedding", ["1"] * 384),
    ("embedding", 1.0),
]
BAD_MEMORIES: list[tuple[str, object]] = [
    *BAD_VECTORS,
    ("agent_id", None),
    ("agent_id", "ada"),
    ("agent_id", 7),
    ("content", ""),
    ("content", " \n\t\u00a0"),
    ("content", "x" * 8193),
    ("content", "a\x00b"),
    ("content", "\ud800"),
    ("content", None),
    ("content", b"bytes"),
    ("category", "gossip"),
    ("category", None),
    ("source", "rumour"),
    ("status", "asleep"),
    ("session_id", "run"),
    ("embedding_model", ""),
    ("embedding_model", "x" * 256),
    ("confidence", -0.001),
    ("confidence", 1.0001),
    ("confidence", float("nan")),
    ("confidence", "0.5"),
    ("confidence", True),
    ("tags", "drinks"),
    ("tags", None),
    ("tag", ["x" * 65]),
    ("tag", [" "]),
    ("tag", [7]),
    ("tag", ["a\x00b"]),
    ("metadata", []),
    ("metadata", "{}"),
    ("metadata", {"a": float("nan")}),
    ("metadata", {"a": {"b": "c\x00d"}}),
    ("metadata", {"a": ["\ud800"]}),
    ("metadata", {"a\x00": 1}),
    ("metadata", {1: "a"}),
    ("metadata", {"a": NOW}),
    ("valid_from", NAIVE),
    ("valid_from", "2026-01-01"),
    ("valid_until", NAIVE),
    ("valid_until", NOW - timedelta(days=1)),
    ("expires_at", NAIVE),
    ("expires_at", 0),
    ("id", "mine"),
    ("near_duplicate_threshold", 1.1),
    ("near_duplicate_threshold", float("nan")),
    ("near_duplicate_threshold", "0.9"),
]
BAD_SEARCHES: list[tuple[str, object]] = [
    *BAD_VECTORS,
    ("embedding", None),
    ("agent_id", "ada"),
    ("agent_id", []),
    ("agent_id", [7]),
    ("limit", 0),
    ("limit", -1),
    ("limit", 1001),
    ("limit", 2.0),
    ("limit", True),
    ("limit", None),
    ("session_id", "run"),
    ("categories", "gossip"),
    ("categories", ["factual", "gossip"]),
    ("categories", []),
    ("categories", 7),
    ("sources", ["rumour"]),
    ("statuses", ["asleep"]),
    ("statuses", []),
    ("tags_any", "drinks"),
    ("tags_any", []),
    ("tags_all", 7),
    ("metadata", ["a"]),
    ("metadata", {"a": float("inf")}),
    ("min_confidence", 1.1),
    ("min_confidence", "high"),
    ("min_similarity", -1.1),
    ("min_similarity", float("nan")),
    ("created_after", NAIVE),
    ("created_before", "yesterday"),
    ("embedding_model", ""),
]


def ids(cases: list[tuple[str, object]]) -> list[str]:
    return [f"{field} {value!r:.30}" for field, value in cases]


async def refused(sent: Sent, call: Callable[[], Awaitable[object]]) -> InvalidInputError:
    with sent() as statements, pytest.raises(InvalidInputError) as caught:
        await call()

    # Nothing is sent but, for a vector of another length, the question which model the organization is on.
    assert all(re.match("SELECT ibex_core.embedding_spaces", statement) for statement in statements)
    assert statements == [] or caught.value.field == "embedding"
    assert caught.value.rule
    assert caught.value.field in str(caught.value)
    assert isinstance(caught.value, ValueError)
    return caught.value


@pytest.fixture
def draft(agent_id: UUID, vector: Vector) -> dict[str, Any]:
    return {"agent_id": agent_id, "content": "Tea.", "category": "factual", "embedding": vector(1)}


async def test_remember_refuses_it(memories: MemoryRepository, sent: Sent, draft: dict[str, Any]) -> None:
    for field, value in BAD_MEMORIES:
        name = "tags" if field == "tag" else field
        error = await refused(sent, lambda fields={**draft, name: value}: memories.remember(**fields))  # type: ignore[misc]

        assert (error.field, error.index) == (field, None), (field, value)
    assert await memories.count() == 0


async def test_a_threshold_without_a_vector_is_refused(
    memories: MemoryRepository, sent: Sent, draft: dict[str, Any]
) -> None:
    draft |= {"embedding": None, "near_duplicate_threshold": 0.9}
    error = await refused(sent, lambda: memories.remember(**draft))

    assert error.field == "embedding"


async def test_search_refuses_it(memories: MemoryRepository, sent: Sent, vector: Vector) -> None:
    for field, value in BAD_SEARCHES:
        fields: dict[str, Any] = {"embedding": vector(1), field: value}
        error = await refused(sent, lambda fields=fields: memories.search(**fields))  # type: ignore[misc]

        assert error.field == field, (field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("threshold", 2), ("limit", 0), ("agent_id", "ada"), ("embedding_model", "")],
)
async def test_find_similar_refuses_it(
    memories: MemoryRepository, sent: Sent, vector: Vector, field: str, value: object
) -> None:
    error = await refused(sent, lambda: memories.find_similar(vector(1), **{field: value}))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert error.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("relevance", -0.1),
        ("recency", 1.1),
        ("usefulness", float("nan")),
        ("confidence", "much"),
        ("frequency", None),
        ("half_life_days", {"factual": 0}),
        ("half_life_days", {"factual": -1}),
        ("half_life_days", {"factual": float("inf")}),
        ("half_life_days", {"factual": 1e-320}),
        ("half_life_days", {"factual": "long"}),
        ("half_life_days", {"gossip": 1}),
        ("half_life_days", 30),
    ],
)
def test_bad_weights_are_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        HotWeights(**{field: value})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert caught.value.field == field


async def test_the_other_verbs_refuse_it(
    memories: MemoryRepository, sessions: SessionRepository, sent: Sent, agent_id: UUID
) -> None:
    bad: Any = "ada"
    calls: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        ("agent_id", lambda: memories.hot(bad)),
        ("limit", lambda: memories.hot(agent_id, limit=0)),
        ("categories", lambda: memories.hot(agent_id, categories=["gossip"])),
        ("idents", lambda: memories.record_retrieval([agent_id, bad])),
        ("id", lambda: memories.history(bad)),
        ("confidence", lambda: memories.update(agent_id, confidence=2)),
        ("content", lambda: memories.update(agent_id, content=" ")),
        ("content_hash", lambda: memories.update(agent_id, content_hash="0" * 64)),
        ("metadata_", lambda: memories.update(agent_id, metadata_={"a": "\ud800"})),
        ("agent_id", lambda: sessions.start(agent_id=bad)),
        ("external_id", lambda: sessions.start(agent_id=agent_id, external_id="")),
        ("session_id", lambda: sessions.checkpoint(bad, {})),
        ("session_id", lambda: sessions.latest_checkpoint(bad)),
        ("state", lambda: sessions.checkpoint(agent_id, [1])),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        ("state", lambda: sessions.checkpoint(agent_id, {"a": {1, 2}})),
        ("state", lambda: sessions.checkpoint(agent_id, {"a": float("nan")})),
        ("state", lambda: sessions.checkpoint(agent_id, {"a": "\x00"})),
        ("state", lambda: sessions.checkpoint(agent_id, {"a": "\ud800"})),
    ]

    for field, call in calls:
        assert (await refused(sent, call)).field == field


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "C:\\u0000\\new", "\\", "\u2028", "\U0001f375"])
async def test_text_that_only_looks_like_a_nul_is_kept(memories: MemoryRepository, agent_id: UUID, text: str) -> None:
    kept = await memories.remember(agent_id=agent_id, content="Tea.", category="factual", metadata={text: [text]})

    assert kept.memory.metadata_ == {text: [text]}


async def test_values_at_the_edge_are_kept(memories: MemoryRepository, agent_id: UUID) -> None:
    kept = await memories.remember(
        agent_id=agent_id,
        content="x" * 8192,
        category="factual",
        confidence=0,
        tags=["y" * 64],
        embedding=[1e-15, *[0.0] * 383],
        embedding_model="z" * 255,
    )
    hits = await memories.search(embedding=[9e15] * 384, limit=1000, min_similarity=-1, min_confidence=0)

    assert kept.created
    assert [hit.similarity for hit in hits] == [pytest.approx(384**-0.5, rel=1e-4)]
