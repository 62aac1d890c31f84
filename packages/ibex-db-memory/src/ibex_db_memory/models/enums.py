"""The closed sets of the memory wheel; stored as their values, in varchar(32) with a CHECK."""

from enum import StrEnum


class MemoryCategory(StrEnum):
    """What kind of thing a memory says; hot() lets each kind fade at its own rate."""

    FACTUAL = "factual"
    PREFERENCE = "preference"
    BEHAVIORAL = "behavioral"
    EPISODIC = "episodic"
    PROCEDURAL = "procedural"


class MemorySource(StrEnum):
    """How a memory came to be."""

    EXTRACTED = "extracted"
    USER_PROVIDED = "user_provided"
    IMPORTED = "imported"
    INFERRED = "inferred"


class MemoryStatus(StrEnum):
    """Where a memory stands; searches return ACTIVE ones unless asked otherwise."""

    ACTIVE = "active"
    SUPERSEDED = "superseded"
    MERGED = "merged"
    ARCHIVED = "archived"
    PENDING_REVIEW = "pending_review"

    def may_become(self, status: "MemoryStatus") -> bool:
        """Tell whether the step is legal; the database refuses any other."""
        return status in MEMORY_STEPS[self]


# The same table stands in memory_0005, where a trigger enforces it; a test tries all pairs against the database.
MEMORY_STEPS: dict[MemoryStatus, frozenset[MemoryStatus]] = {
    MemoryStatus.PENDING_REVIEW: frozenset({MemoryStatus.ACTIVE, MemoryStatus.ARCHIVED}),
    MemoryStatus.ACTIVE: frozenset({MemoryStatus.ARCHIVED, MemoryStatus.SUPERSEDED, MemoryStatus.MERGED}),
    MemoryStatus.ARCHIVED: frozenset({MemoryStatus.ACTIVE}),
    MemoryStatus.SUPERSEDED: frozenset({MemoryStatus.ACTIVE}),
    MemoryStatus.MERGED: frozenset({MemoryStatus.ACTIVE}),
}
"""Which statuses may follow a status of a memory."""


class VersionOperation(StrEnum):
    """What made a version of a memory.

    The database derives CREATED, UPDATED, STATUS_CHANGED, SUPERSEDED and MERGED
    by itself; the others are told to it by app.change_operation.
    """

    CREATED = "created"
    UPDATED = "updated"
    STATUS_CHANGED = "status_changed"
    SUPERSEDED = "superseded"
    MERGED = "merged"
    ARCHIVED = "archived"
    APPROVED = "approved"
    RESTORED = "restored"
    REVERTED = "reverted"
    IMPORTED = "imported"


class RelationshipType(StrEnum):
    """How the source memory stands to the target: "source SUPERSEDES target"."""

    SUPERSEDES = "supersedes"
    CONTRADICTS = "contradicts"
    SPECIALIZES = "specializes"
    GENERALIZES = "generalizes"
    MERGED_FROM = "merged_from"
    DERIVED_FROM = "derived_from"
    RELATED_TO = "related_to"


class SessionStatus(StrEnum):
    """Where a session stands; ``SESSION_STEPS`` holds what may follow what."""

    INITIALIZING = "initializing"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    COMPLETED = "completed"
    FAILED = "failed"
    ABANDONED = "abandoned"

    def may_become(self, status: "SessionStatus") -> bool:
        """Tell whether the step is legal; the database refuses any other."""
        return status in SESSION_STEPS[self]


_ENDS = frozenset({SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.ABANDONED})

# The same table stands in memory_0001, where a trigger enforces it; a test
# tries all pairs against the database.  FAILED and ABANDONED can be
# resumed, since picking up after a crash is what checkpoints are for, and the
# unique external_id would otherwise be lost with the process.
SESSION_STEPS: dict[SessionStatus, frozenset[SessionStatus]] = {
    SessionStatus.INITIALIZING: _ENDS | {SessionStatus.ACTIVE},
    SessionStatus.ACTIVE: _ENDS | {SessionStatus.SUSPENDED},
    SessionStatus.SUSPENDED: _ENDS | {SessionStatus.RESUMING},
    SessionStatus.RESUMING: _ENDS | {SessionStatus.ACTIVE, SessionStatus.SUSPENDED},
    SessionStatus.COMPLETED: frozenset(),
    SessionStatus.FAILED: frozenset({SessionStatus.RESUMING}),
    SessionStatus.ABANDONED: frozenset({SessionStatus.RESUMING}),
}
"""Which statuses may follow a status; COMPLETED is the only one that nothing follows."""


class SpaceStatus(StrEnum):
    """What stands of an organization's vectors of one model."""

    FILLING = "filling"
    ACTIVE = "active"
    RETIRED = "retired"
    CLEARING = "clearing"
