"""The demo's corpus: what `ibex-db demo` loads, and the questions that it asks."""

import io
import json
import unicodedata
from collections import defaultdict
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

FIELDS = {
    "organization",
    "agent",
    "content",
    "category",
    "source",
    "confidence",
    "usefulness",
    "retrievals",
    "tags",
    "metadata",
    "age_days",
}
CATEGORIES = {"factual", "preference", "behavioral", "episodic", "procedural"}
SOURCES = {"extracted", "user_provided", "imported", "inferred"}
DEMO_DATA = files("ibex_db_memory") / "demo_data"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO_DATA / name).read_text(encoding="utf-8").splitlines()]


def vectors(name: str) -> npt.NDArray[np.float32]:
    loaded: npt.NDArray[np.float32] = np.load(io.BytesIO((DEMO_DATA / name).read_bytes()), allow_pickle=False)
    return loaded


MEMORIES = rows("memories.jsonl")
QUESTIONS = rows("questions.jsonl")
ASKED: list[str] = [question["question"] for question in QUESTIONS]


@pytest.mark.parametrize(
    ("name", "expected_rows"),
    [("memory_vectors.npy", len(MEMORIES)), ("question_vectors.npy", len(QUESTIONS))],
)
def test_every_line_has_one_unit_vector_of_384_numbers(name: str, expected_rows: int) -> None:
    """The vectors fit their lines, and cosine is a plain dot product."""
    loaded = vectors(name)

    assert loaded.dtype == np.float32
    assert loaded.shape == (expected_rows, 384)
    np.testing.assert_allclose(np.linalg.norm(loaded, axis=1), 1.0, atol=1e-5)


def test_two_organizations_have_at_least_two_agents_each() -> None:
    """A demo of isolation needs somebody to be isolated from."""
    agents: dict[str, set[str]] = defaultdict(set)
    for memory in MEMORIES:
        agents[memory["organization"]].add(memory["agent"])

    assert set(agents) == {"northwind-clinic", "harbor-robotics"}
    assert all(len(slugs) >= 2 for slugs in agents.values())
    assert sum(len(slugs) for slugs in agents.values()) >= 4


def test_every_agent_remembers_in_all_five_categories() -> None:
    """So does, therefore, every organization."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for memory in MEMORIES:
        found[memory["organization"], memory["agent"]].add(memory["category"])

    assert all(categories == CATEGORIES for categories in found.values()), found


def test_every_memory_keeps_to_the_schema_of_the_table() -> None:
    """A line that the table would refuse fails here, with its number."""
    for number, memory in enumerate(MEMORIES):
        assert FIELDS <= set(memory) <= FIELDS | {"session"}, number
        assert 1 <= len(memory["content"]) <= 8192, number
        assert memory["content"] == memory["content"].strip(), number
        assert memory["source"] in SOURCES, number
        assert 0 <= memory["confidence"] <= 1, number
        assert memory["confidence"] == round(memory["confidence"], 3), number
        assert 0 <= memory["usefulness"] <= 1, number
        assert isinstance(memory["retrievals"], int), number
        assert memory["retrievals"] >= 0, number
        assert isinstance(memory["metadata"], dict), number
        assert memory["age_days"] >= 0, number
        assert memory.get("session", "given") != "", number


def test_tags_are_few_distinct_and_in_lower_case() -> None:
    """One to four tags per memory, each already normalised."""
    for number, memory in enumerate(MEMORIES):
        tags = memory["tags"]

        assert 1 <= len(tags) <= 4, number
        assert len(set(tags)) == len(tags), number
        assert all(tag == tag.strip().lower() and 1 <= len(tag) <= 64 for tag in tags), number


def test_no_two_memories_say_the_same() -> None:
    """Contents differ by more than case and white space, which the content hash ignores."""
    normalised = {" ".join(unicodedata.normalize("NFC", memory["content"]).split()).casefold() for memory in MEMORIES}

    assert len(normalised) == len(MEMORIES)


@pytest.mark.parametrize("topic", ["Dana Whitfield", "on-call rota", "park", "fire drill"])
def test_both_organizations_speak_of_the_shared_topics(topic: str) -> None:
    """A search that leaked would find the other organization's memory, so a clean result means something."""
    speakers = {memory["organization"] for memory in MEMORIES if topic.casefold() in memory["content"].casefold()}

    assert speakers == {"northwind-clinic", "harbor-robotics"}


def test_each_organization_asks_ten_questions() -> None:
    """Twenty questions, half from either side."""
    asked = [question["organization"] for question in QUESTIONS]

    assert len(asked) == 20
    assert asked.count("northwind-clinic") == asked.count("harbor-robotics") == 10


@pytest.mark.parametrize("question", QUESTIONS, ids=ASKED)
def test_expected_memories_belong_to_the_one_who_asks(question: dict[str, Any]) -> None:
    """An answer from another organization, or another agent where one is named, would be a leak."""
    assert 1 <= len(question["expected"]) <= 3
    assert len(set(question["expected"])) == len(question["expected"])
    for number in question["expected"]:
        assert 0 <= number < len(MEMORIES)
        assert MEMORIES[number]["organization"] == question["organization"]
        assert question["agent"] in {None, MEMORIES[number]["agent"]}


@pytest.mark.parametrize("asked", range(len(QUESTIONS)), ids=ASKED)
def test_an_expected_memory_is_among_the_five_nearest(asked: int) -> None:
    """Exact cosine search in the scope of the question finds an answer."""
    question = QUESTIONS[asked]
    in_scope = [
        number
        for number, memory in enumerate(MEMORIES)
        if memory["organization"] == question["organization"] and question["agent"] in {None, memory["agent"]}
    ]

    similarity = vectors("memory_vectors.npy")[in_scope] @ vectors("question_vectors.npy")[asked]
    order: list[int] = np.argsort(-similarity).tolist()
    nearest = [in_scope[position] for position in order[:5]]

    assert set(nearest) & set(question["expected"]), [MEMORIES[number]["content"] for number in nearest]


def test_a_search_without_scope_would_reach_across_organizations() -> None:
    """The proof of isolation is not vacuous: most questions have a foreign memory among their five nearest."""
    similarity = vectors("question_vectors.npy") @ vectors("memory_vectors.npy").T
    nearest: list[list[int]] = np.argsort(-similarity, axis=1)[:, :5].tolist()
    tempted = [
        any(MEMORIES[number]["organization"] != question["organization"] for number in found)
        for question, found in zip(QUESTIONS, nearest, strict=True)
    ]

    assert sum(tempted) >= 10
