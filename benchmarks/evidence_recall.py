"""Evidence recall of vector, lexical and hybrid search on conversations that you have.

    uv run python benchmarks/evidence_recall.py FOLDER [--conversations 26,41]

FOLDER holds four files, one line or row for each turn and each question:

- ``turns.jsonl``: conversation, dia_id, text; one turn becomes one memory, a conversation one agent;
- ``turn_embeddings.npy``: float32, shape (turns, 384);
- ``questions.jsonl``: conversation, question, evidence (dia_ids, also several to a string);
- ``question_embeddings.npy``: float32, shape (questions, 384).

Evidence recall@k: per question, the share of its evidence among the first k
memories of its own conversation, averaged over the questions that have any.
Everything is loaded into one tenant of an embedded, throwaway Postgres, and
each question is asked in every mode in turn, so that the times compare.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
import numpy.typing as npt

from ibex_db import Agent, Database, MemoryRepository, Organization
from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import Cluster

FILES = ("turns.jsonl", "turn_embeddings.npy", "questions.jsonl", "question_embeddings.npy")
MODES = ("vector", "lexical", "hybrid")
CUTOFFS = (1, 5, 10)
DATABASE = "evidence_recall"

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """One question: whose, its words, its vector, and the turns that answer it."""

    conversation: str
    words: str
    vector: Array
    evidence: frozenset[str]


@dataclass(frozen=True)
class Answer:
    """What one mode gave for one question: recall at each cutoff, and the seconds it took."""

    recall: Sequence[float]
    seconds: float


def refusal(folder: Path) -> str | None:
    """Say what of the four files is not there; None: nothing."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    return f"there is no {', no '.join(missing)} in it" if missing else None


def read(path: Path) -> list[dict[str, Any]]:
    """Read JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_questions(folder: Path, turns: Sequence[Mapping[str, Any]]) -> list[Question]:
    """Return the questions that have evidence; an id that is no turn is dropped."""
    known = {(turn["conversation"], turn["dia_id"]) for turn in turns}
    vectors: Array = np.load(folder / "question_embeddings.npy")
    found: list[Question] = []
    for line, vector in zip(read(folder / "questions.jsonl"), vectors, strict=True):
        conversation = line["conversation"]
        ids = {name for entry in line["evidence"] for name in re.split(r"[\s,;]+", entry)}
        evidence = frozenset(name for name in ids if (conversation, name) in known)
        if evidence:
            found.append(Question(conversation, line["question"], vector, evidence))
    return found


async def load(database: Database, folder: Path, turns: Sequence[Mapping[str, Any]]) -> tuple[UUID, dict[str, UUID]]:
    """Make one organization, an agent for each conversation, a memory for each turn."""
    async with database.platform(reason="benchmark") as session:
        org = Organization(name="Recall", slug="recall")
        session.add(org)
        await session.flush()
        agents = {
            name: Agent(org_id=org.id, name=name, slug=f"conversation-{number}")
            for number, name in enumerate(sorted({turn["conversation"] for turn in turns}))
        }
        session.add_all(agents.values())
        await session.flush()
        ids = {name: agent.id for name, agent in agents.items()}
    vectors: Array = np.load(folder / "turn_embeddings.npy")
    async with database.tenant(org.id) as session:
        await MemoryRepository(session).remember_many(
            {
                "agent_id": ids[turn["conversation"]],
                "content": turn["text"],
                "category": "episodic",
                "embedding": vector,
                "metadata": {"turn": turn["dia_id"]},
            }
            for turn, vector in zip(turns, vectors, strict=True)
        )
    return org.id, ids


async def vacuum(cluster: Cluster) -> None:
    """Do what autovacuum would have done by and by."""
    connection = await asyncpg.connect(cluster.url(DATABASE).render_as_string(hide_password=False))
    try:
        await connection.execute("VACUUM (ANALYZE) ibex_core.memories")
    finally:
        await connection.close()


async def ask(database: Database, org_id: UUID, agent_id: UUID, question: Question, mode: str) -> Answer:
    """Ask one question in one mode, in a transaction of its own."""
    query: dict[str, Any] = {}
    if mode != "lexical":
        query["embedding"] = question.vector
    if mode != "vector":
        query["text"] = question.words
    start = time.perf_counter()
    async with database.tenant(org_id, read_only=True) as session:
        hits = await MemoryRepository(session).search(agent_id=agent_id, limit=max(CUTOFFS), **query)
    seconds = time.perf_counter() - start
    found = [str(hit.memory.metadata_["turn"]) for hit in hits]
    recall = [len(question.evidence.intersection(found[:k])) / len(question.evidence) for k in CUTOFFS]
    return Answer(recall, seconds)


def table(answers: Mapping[str, Sequence[Answer]]) -> str:
    """Say it in a table, one mode a line; times as they are and over the vector's."""
    lines = ["mode     " + "".join(f"recall@{k:<4}" for k in CUTOFFS) + "p50 ms  / vector"]
    base = statistics.median(answer.seconds for answer in answers["vector"])
    for mode, given in answers.items():
        recall = [statistics.fmean(answer.recall[place] for answer in given) for place in range(len(CUTOFFS))]
        p50 = statistics.median(answer.seconds for answer in given)
        figures = "".join(f"{share:<11.3f}" for share in recall)
        lines.append(f"{mode:9}{figures}{p50 * 1000:6.2f}  {p50 / base:8.2f}")
    return "\n".join(lines)


async def ask_all(
    cluster: Cluster,
    folder: Path,
    conversations: frozenset[str] | None = None,
    *,
    step: Callable[[int], Callable[[], None]] = lambda _total: lambda: None,
) -> tuple[Sequence[Question], Mapping[str, Sequence[Answer]]]:
    """Load every turn, and ask every question in every mode.

    Args:
        cluster: the server, which gets a database for it and loses it again.
        folder: of the four files.
        conversations: whose questions are asked; None: everybody's.
        step: told how many questions there are; what it returns is called after each.

    Returns:
        The questions that were asked, and each mode's answers in their order.
    """
    turns = read(folder / "turns.jsonl")
    questions = read_questions(folder, turns)
    asked = [question for question in questions if conversations is None or question.conversation in conversations]
    done = step(len(asked))
    await cluster.drop_database(DATABASE)
    await cluster.create_database(DATABASE)
    answers: dict[str, list[Answer]] = {mode: [] for mode in MODES}
    async with cluster.database(DATABASE) as database:
        await database.upgrade()
        org_id, agents = await load(database, folder, turns)
        await vacuum(cluster)
        for mode in MODES:  # compiles the statements and counts the scopes
            for question in {question.conversation: question for question in asked}.values():
                await ask(database, org_id, agents[question.conversation], question, mode)
        draw = random.Random(DATABASE)
        for question in asked:
            for mode in draw.sample(MODES, len(MODES)):
                answers[mode].append(await ask(database, org_id, agents[question.conversation], question, mode))
            done()
    await cluster.drop_database(DATABASE)
    return asked, answers


async def run(folder: Path, conversations: frozenset[str] | None) -> None:
    """Load, ask, print."""
    with EmbeddedPostgres.throwaway() as server:
        cluster = Cluster.of(server)
        await cluster.create_logins()
        asked, answers = await ask_all(cluster, folder, conversations)
    print(f"{len(asked)} questions of {len({question.conversation for question in asked})} conversations")
    print(table(answers))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Evidence recall of vector, lexical and hybrid search.")
    parser.add_argument("folder", type=Path, help="turns.jsonl, questions.jsonl and their embeddings")
    parser.add_argument("--conversations", help="ask these only, separated by commas; all are loaded")
    given = parser.parse_args()
    if (why := refusal(given.folder)) is not None:
        parser.error(f"{given.folder}: {why}")
    names: str | None = given.conversations
    asyncio.run(run(given.folder, frozenset(names.split(",")) if names else None))


if __name__ == "__main__":
    main()
