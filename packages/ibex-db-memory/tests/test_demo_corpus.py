"""A corpus: what lines become, and which memories a question expects."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ibex_db_core.errors import InvalidInputError
from ibex_db_memory.demo.corpus import Corpus, builtin, own, slug_of
from ibex_db_memory.demo.lines import FileInputError

TURNS: list[dict[str, object]] = [
    {"conversation": 26, "dia_id": "D1:1", "speaker": "Ann", "text": "Ann: Hello!"},
    {"conversation": 26, "dia_id": "D1:2", "speaker": "Bob", "text": "Bob: I moved to Lisbon."},
    {"conversation": "30", "dia_id": "D1:1", "speaker": "Cy", "text": "Cy: I run a bakery."},
]


def corpus(folder: Path, memories: list[dict[str, object]], questions: list[dict[str, object]] | None = None) -> Corpus:
    for name, rows in (("turns", memories), ("asked", questions or [])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        np.save(folder / f"{name}.npy", np.ones((len(rows), 384), dtype=np.float32))
    asked = (folder / "asked.jsonl", folder / "asked.npy") if questions is not None else (None, None)
    return own(folder / "turns.jsonl", folder / "turns.npy", *asked)


def test_the_corpus_of_the_wheel_is_whole() -> None:
    """Two organizations, six agents, 205 memories, 20 questions."""
    found = builtin()

    assert (len(found.organizations), len(found.scopes), len(found.records)) == (2, 6, 205)
    assert len(found.questions) == 20
    assert all(question.expected for question in found.questions)
    assert found.handmade


def test_a_line_of_a_conversation_becomes_an_episodic_memory_of_its_agent(tmp_path: Path) -> None:
    """All that has no column goes into the metadata; the file gives the organization its name."""
    found = corpus(tmp_path, TURNS).records

    assert [record.scope for record in found] == [("turns", "26"), ("turns", "26"), ("turns", "30")]
    assert found[1].draft["category"] == "episodic"
    assert found[1].draft["metadata"] == {"conversation": 26, "dia_id": "D1:2", "speaker": "Bob"}
    assert found[1].draft["valid_from"] is None


def test_known_fields_are_taken_and_metadata_is_kept(tmp_path: Path) -> None:
    """A line as the wheel's own corpus has them."""
    line: dict[str, object] = {
        "organization": "acme",
        "agent": "desk",
        "content": "Opens at nine.",
        "category": "factual",
        "confidence": 0.9,
        "usefulness": 0.7,
        "tags": ["Hours"],
        "metadata": {"page": 4},
        "age_days": 10,
        "retrievals": 3,
    }

    (found,) = corpus(tmp_path, [line]).records

    assert found.scope == ("acme", "desk")
    assert (found.age_days, found.retrievals, found.key) == (10, 3, None)
    assert found.draft["usefulness_score"] == 0.7
    assert found.draft["metadata"] == {"page": 4}
    valid_from = found.draft["valid_from"]
    assert isinstance(valid_from, datetime)
    assert abs(datetime.now(UTC) - timedelta(days=10) - valid_from) < timedelta(minutes=1)


def test_a_moment_with_a_time_zone_is_since_when_it_holds(tmp_path: Path) -> None:
    """Without a zone nobody knows which moment is meant: it stays metadata alone."""
    told = corpus(
        tmp_path,
        [
            {"text": "a", "said_at": "2026-02-01T10:00:00+00:00"},
            {"text": "b", "said_at": "2026-02-01T10:00:00"},
            {"text": "c", "said_at": "1:56 pm on 8 May, 2023"},
        ],
    ).records

    assert [record.draft["valid_from"] for record in told] == [datetime(2026, 2, 1, 10, tzinfo=UTC), None, None]


def test_evidence_is_found_in_its_own_conversation_however_it_is_written(tmp_path: Path) -> None:
    """Ids of other conversations, and ids that are no turn, name nothing."""
    asked: list[dict[str, object]] = [
        {"conversation": 26, "question": "Where?", "evidence": ["D1:1; D1:2", "D9:9"]},
        {"conversation": "30", "question": "What?", "evidence": ["D1:1,D1:2"]},
        {"conversation": "30", "question": "Who knows?", "evidence": ["D7:1"]},
        {"question": "Anybody?", "expected": [2, 0]},
    ]

    found = corpus(tmp_path, TURNS, asked).questions

    assert [list(question.expected) for question in found] == [[0, 1], [2], [], [0, 2]]
    assert [question.agent for question in found] == ["26", "30", "30", None]


@pytest.mark.parametrize(
    ("question", "rule"),
    [
        ({}, "question must be a string"),
        ({"question": "?", "agent": "nobody"}, "agent must be one of turns that has memories"),
        ({"question": "?", "organization": "nobody"}, "organization must be one that has memories"),
        ({"question": "?", "expected": [3]}, r"expected must lie in \[0, 2\]"),
        ({"question": "?", "evidence": "D1:1"}, "evidence must be a list"),
    ],
)
def test_a_bad_question_is_named(tmp_path: Path, question: dict[str, object], rule: str) -> None:
    """As a bad memory is."""
    with pytest.raises(FileInputError, match=f"asked.jsonl, line 1: {rule}"):
        corpus(tmp_path, TURNS, [question])


def test_questions_and_their_vectors_come_together(tmp_path: Path) -> None:
    """One without the other cannot be asked."""
    corpus(tmp_path, TURNS)

    with pytest.raises(InvalidInputError, match="question_vectors is required"):
        own(tmp_path / "turns.jsonl", tmp_path / "turns.npy", tmp_path / "asked.jsonl")


@pytest.mark.parametrize("name", ["Support", "support!", "Ünï", "日本", "a b", "-a", "x" * 300])
def test_any_name_has_a_slug_of_its_own(name: str) -> None:
    """Lower-case letters, digits and hyphens, and never another name's."""
    found = slug_of(name)

    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 1 <= len(found) <= 90
    assert found not in {slug_of(name.lower().strip("!-")), slug_of(f"{name} ")} - {slug_of(name)}


def test_a_slug_is_its_own() -> None:
    assert slug_of("front-desk-2") == "front-desk-2"
    assert slug_of("Front Desk 2") != "front-desk-2"
