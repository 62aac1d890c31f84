"""Report: all that one demo did and found, in one object; needs the ``cli`` extra."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

from rich.console import RenderableType

from ibex_db_core.console import FOUND, Result
from ibex_db_memory.demo.claim import Claim
from ibex_db_memory.demo.scenes import Hot, Version
from ibex_db_memory.demo.searching import RECALL_AT, Answer, Searched

__all__ = ["Chapter", "OrganizationFacts", "Report", "SearchFacts"]

# How many answers a machine is given, of a corpus's hundreds.
_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class Chapter:
    """One thing that the demo did.

    Attributes:
        title: what it shows.
        outcome: what came out, in a few words.
        seconds: how long it took.
        claims: what was checked.
    """

    title: str
    outcome: str
    seconds: float
    claims: Sequence[Claim] = ()

    @property
    def holds(self) -> bool:
        """Whether every claim does."""
        return all(claim.holds for claim in self.claims)


@dataclass(frozen=True, slots=True)
class OrganizationFacts:
    """One organization, as the demo left it."""

    name: str
    slug: str
    id: UUID
    agents: Sequence[str]
    memories: int


@dataclass(frozen=True, slots=True)
class SearchFacts:
    """The questions of one corpus.

    Attributes:
        evidence_recall_at_10: over the ``counted`` questions that name evidence; None where none does.
        milliseconds: the median of one search.
        samples: some of the answers.
    """

    corpus: str
    questions: int
    counted: int
    evidence_recall_at_10: float | None
    milliseconds: float
    samples: Sequence[Answer]

    @classmethod
    def of(cls, corpus: str, found: Searched) -> "SearchFacts":
        """Sum the answers up."""
        assert RECALL_AT == 10  # noqa: S101, PLR2004 - the field's name says so
        return cls(
            corpus=corpus,
            questions=len(found.answers),
            counted=found.counted,
            evidence_recall_at_10=found.recall,
            milliseconds=found.milliseconds,
            samples=found.samples(_SAMPLES),
        )

    def few(self, count: int) -> Sequence[Answer]:
        """Return fewer of the samples, from all over the corpus."""
        return Searched(self.samples, 0).samples(count)


@dataclass(frozen=True)
class Report(Result):
    """What `ibex-db demo` did, found and proved."""

    server: str
    organizations: Sequence[OrganizationFacts]
    chapters: Sequence[Chapter]
    searches: Sequence[SearchFacts]
    hot_of: str
    hot: Sequence[Hot]
    history: Sequence[Version]
    proof_of: tuple[str, str]
    proof: Sequence[Claim]
    platform_sessions: Sequence[str]
    seconds: float

    @property
    def claims(self) -> Sequence[Claim]:
        """Every claim, in the order of the chapters."""
        return [claim for chapter in self.chapters for claim in chapter.claims]

    @property
    def holds(self) -> bool:
        """Whether every claim does."""
        return all(claim.holds for claim in self.claims)

    @property
    def exit_code(self) -> int:
        """0, or FOUND where a claim does not hold."""
        return 0 if self.holds else FOUND

    def facts(self) -> dict[str, Any]:
        """Return every field, the verdict first; the proof's claims are those of its chapter."""
        fields = asdict(self)
        del fields["proof"]
        held = sum(claim.holds for claim in self.claims)
        return {"holds": self.holds, "claims_held": held, "claims_made": len(self.claims), **fields}

    def crossed_for(self, reasons: Sequence[str]) -> "Report":
        """Return the report with the reasons that platform sessions were opened for."""
        return replace(self, platform_sessions=list(reasons))

    def __rich__(self) -> RenderableType:
        """Return what a person reads."""
        from ibex_db_memory.demo.rendering import rendered

        return rendered(self)
