"""Asking a corpus's questions, and judging the answers: right scope, right order, right memories."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, bindparam, text

from ibex_db_core.database import Database
from ibex_db_core.tenant import ScopedSession
from ibex_db_core.types import Vector
from ibex_db_memory.demo.claim import Claim
from ibex_db_memory.demo.questions import Question
from ibex_db_memory.demo.storing import Progress, Stored
from ibex_db_memory.models import EMBEDDING_DIMENSIONS
from ibex_db_memory.repositories import MemoryRepository
from ibex_db_memory.search import Hits

if TYPE_CHECKING:
    from ibex_db_memory.demo.lines import Vectors

__all__ = ["RECALL_AT", "Answer", "Found", "Searched", "ask"]

# Evidence recall is measured among this many hits, an answer expected among the first few of them.
RECALL_AT = 10
_FIRST = 5

# Where float32 of two libraries may differ, in cosine similarity.
_ROUNDING = 1e-5

# What the vector index may pass over; a full scan may pass over nothing.
_BY_INDEX = 0.95


@dataclass(frozen=True, slots=True)
class Found:
    """One hit, as it is shown."""

    score: float
    agent: str
    content: str
    expected: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One question, and what a search found.

    Attributes:
        agent: None: all of the organization's were asked.
        recall: share of the expected memories among the hits, in [0, 1]; None where nobody says what to expect.
        first: one of them is among the first five.
        foreign: hits out of the question's scope.
        missed: share of the nearest memories, by a full comparison here, that the search passed over.
        exact: answered by a full scan rather than by the vector index.
    """

    question: str
    organization: str
    agent: str | None
    hits: Sequence[Found]
    milliseconds: float
    recall: float | None
    first: bool
    foreign: int
    missed: float
    exact: bool


@dataclass(frozen=True, slots=True)
class Searched:
    """All questions of a corpus.

    Attributes:
        tempted: questions that a search over all organizations answers with another one's memory, among the first five.
    """

    answers: Sequence[Answer]
    tempted: int

    @property
    def recall(self) -> float | None:
        """Evidence recall@10, averaged over the questions that name evidence; None where none does."""
        found = [answer.recall for answer in self.answers if answer.recall is not None]
        return fmean(found) if found else None

    @property
    def counted(self) -> int:
        """How many questions name evidence."""
        return sum(answer.recall is not None for answer in self.answers)

    @property
    def first(self) -> int:
        """How many questions have an expected memory among the first five."""
        return sum(answer.first for answer in self.answers)

    @property
    def milliseconds(self) -> float:
        """The median of one search."""
        return median(answer.milliseconds for answer in self.answers)

    def samples(self, count: int) -> Sequence[Answer]:
        """Return some of the answers, from all over the corpus."""
        total = len(self.answers)
        return [self.answers[number * total // count] for number in range(count)] if total > count else self.answers

    def claims(self, stored: Stored) -> Sequence[Claim]:
        """Return what is true of every answer."""
        hits = sum(len(answer.hits) for answer in self.answers)
        foreign = sum(answer.foreign for answer in self.answers)
        evidence = f"{hits} hits, {foreign} from elsewhere"
        if len(stored.organizations) > 1:
            evidence += (
                f"; with no wall, {self.tempted} of the {len(self.answers)} would see another organization's memory "
                f"among the first {_FIRST}"
            )
        found = 1 - fmean(answer.missed for answer in self.answers)
        exact = all(answer.exact for answer in self.answers)
        return [
            Claim(
                f"All {len(self.answers)} questions are answered from their own organization, and agent, alone.",
                holds=hits > 0 and foreign == 0,
                evidence=evidence,
            ),
            Claim(
                "Postgres finds the nearest memories that a full comparison outside of it finds.",
                holds=found >= (1 if exact else _BY_INDEX),
                evidence=f"{found:.2%} of the first {RECALL_AT}, over {len(self.answers)} questions, "
                f"{'by full scans' if exact else 'by the vector index where a scope is large'}",
            ),
        ]

    def expected_first(self) -> Claim:
        """Claim what a corpus must hold whose expectations were written by hand: ours."""
        return Claim(
            f"Every question finds an expected memory among its first {_FIRST} hits.",
            holds=self.first == self.counted > 0,
            evidence=f"{self.first} of {self.counted} questions; evidence recall@{RECALL_AT} {self.recall or 0:.3f}",
        )


async def ask(db: Database, stored: Stored, *, progress: Progress | None = None) -> Searched:
    """Search for every question of a corpus, in its organization's session, limited to its agent."""
    questions = list(enumerate(stored.corpus.questions))
    answers: dict[int, Answer] = {}
    judge = _Judge(stored)
    for organization, org_id in stored.organizations.items():
        async with db.tenant(org_id, read_only=True) as session:
            repository = MemoryRepository(session)
            for number, question in questions:
                if question.organization != organization:
                    continue
                started = time.perf_counter()
                agent_id = None if question.agent is None else stored.agents[organization, question.agent]
                hits = await repository.search(embedding=judge.asked[number], agent_id=agent_id, limit=RECALL_AT)
                milliseconds = (time.perf_counter() - started) * 1000
                answers[number] = judge.answer(number, question, hits, milliseconds)
                if progress is not None:
                    progress(len(answers), len(questions))
    tempted = 0
    if len(stored.organizations) > 1:
        async with db.platform(reason="search with no wall, for comparison") as session:
            tempted = sum([await _tempted(session, stored, judge.asked[number], q) for number, q in questions])
    return Searched([answers[number] for number, _ in questions], tempted)


_ACROSS = text(
    """
    SELECT org_id FROM ibex_core.memories
    WHERE org_id = ANY(:orgs) AND embedding IS NOT NULL AND status = 'active' AND deleted_at IS NULL
    ORDER BY (embedding <=> :vector) + 0 LIMIT :limit
    """
).bindparams(bindparam("orgs", type_=ARRAY(Uuid())), bindparam("vector", type_=Vector(EMBEDDING_DIMENSIONS)))


async def _tempted(session: ScopedSession, stored: Stored, vector: "Vectors", question: Question) -> bool:
    parameters = {"orgs": list(stored.organizations.values()), "vector": vector, "limit": _FIRST}
    nearest: Sequence[UUID] = (await session.scalars(_ACROSS, parameters)).all()
    return any(org_id != stored.organizations[question.organization] for org_id in nearest)


class _Judge:
    """Knows what should be found, by comparing every vector in memory."""

    def __init__(self, stored: Stored) -> None:
        import numpy as np

        corpus = stored.corpus
        if corpus.question_vectors is None:
            raise ValueError("a corpus without questions has nothing to ask")
        self.asked = corpus.question_vectors
        self._stored = stored
        self._agents: Mapping[UUID, str] = {ident: scope[1] for scope, ident in stored.agents.items()}
        self._unit = corpus.vectors / np.linalg.norm(corpus.vectors, axis=1, keepdims=True)
        # By organization and agent; the first record of each memory, for twins have one vector in the database.
        self._positions: dict[tuple[str, str | None], dict[UUID, int]] = {}
        for position, record in enumerate(corpus.records):
            for scope in (record.scope, (record.scope[0], None)):
                self._positions.setdefault(scope, {}).setdefault(stored.ids[position], position)

    def answer(self, number: int, question: Question, hits: Hits, milliseconds: float) -> Answer:
        expected = {self._stored.ids[position] for position in question.expected}
        # Twins are one memory, but each of them is evidence.
        share = [self._stored.ids[position] in {hit.memory.id for hit in hits} for position in question.expected]
        org_id = self._stored.organizations[question.organization]
        agent_id = None if question.agent is None else self._stored.agents[question.organization, question.agent]
        return Answer(
            question=question.text,
            organization=question.organization,
            agent=question.agent,
            hits=[
                Found(
                    score=hit.score,
                    agent=self._agents.get(hit.memory.agent_id, str(hit.memory.agent_id)),
                    content=hit.memory.content,
                    expected=hit.memory.id in expected,
                )
                for hit in hits
            ],
            milliseconds=milliseconds,
            recall=fmean(share) if share else None,
            first=any(hit.memory.id in expected for hit in hits[:_FIRST]),
            foreign=sum(hit.memory.org_id != org_id or agent_id not in {None, hit.memory.agent_id} for hit in hits),
            missed=self._missed(number, question, hits),
            exact=hits.plan.exact,
        )

    def _missed(self, number: int, question: Question, hits: Hits) -> float:
        import numpy as np

        scope = self._positions[question.organization, question.agent]
        query = self.asked[number] / np.linalg.norm(self.asked[number])
        similarity = self._unit[list(scope.values())] @ query
        found = {hit.memory.id for hit in hits}
        last = hits[-1].score if len(hits) == RECALL_AT else -2.0
        better = [ident for ident, score in zip(scope, similarity, strict=True) if score > last + _ROUNDING]
        return sum(ident not in found for ident in better) / min(RECALL_AT, len(scope))
