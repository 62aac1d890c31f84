"""What became of what was brought in."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class ImportOutcome(StrEnum):
    """What became of one memory.

    CREATED: it is new.  KNOWN: a memory of its id is there, and stays as it is.
    DUPLICATE: an active memory of the agent says the same.  ERASED: it was erased
    here, and is refused.  SKIPPED: it breaks a rule, and the caller asked to go on.
    """

    CREATED = "created"
    KNOWN = "known"
    DUPLICATE = "duplicate"
    ERASED = "erased"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class ImportedItem:
    """What became of one memory, and why.

    Attributes:
        source_id: what it is called where it comes from.
        id: of the row that says it now; None where there is none.
        outcome: what became of it.
        reason: which rule it breaks, where it was skipped.
    """

    source_id: str
    id: UUID | None
    outcome: ImportOutcome
    reason: str | None = None


@dataclass(slots=True)
class Imported:
    """What became of all.

    Attributes:
        created, known, duplicates, erased, skipped: how many memories, by ImportOutcome.
        relationships: how many are new.
        dropped_links: pointers and relationships whose other end is not here.
        dropped_sessions: memories whose session is not here; they are kept without it.
    """

    created: int = 0
    known: int = 0
    duplicates: int = 0
    erased: int = 0
    skipped: int = 0
    relationships: int = 0
    dropped_links: int = 0
    dropped_sessions: int = 0

    @property
    def memories(self) -> int:
        """How many memories there were."""
        return self.created + self.known + self.duplicates + self.erased + self.skipped

    def count(self, outcome: ImportOutcome) -> None:
        """Count one memory."""
        name = {ImportOutcome.DUPLICATE: "duplicates"}.get(outcome, outcome.value)
        setattr(self, name, getattr(self, name) + 1)
