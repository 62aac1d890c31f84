"""A memory's status moves by legal steps, and its pointers with it, also where attributes are assigned."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import event, inspect

from ibex_db_core.errors import IllegalTransitionError, InvalidInputError
from ibex_db_memory.models.enums import MemoryStatus
from ibex_db_memory.models.memory import Memory

POINTERS: Final[Mapping[MemoryStatus, str]] = {
    MemoryStatus.SUPERSEDED: "superseded_by",
    MemoryStatus.MERGED: "merged_into",
}
"""Where a memory of each of these statuses points."""

WAYS_OUT: Final[Mapping[str, str]] = {
    "superseded_by": "is supersede()'s to set, with the status and the relationship",
    "merged_into": "is merge()'s to set, with the status and the relationship",
    "deleted_at": "is forget()'s to set, and restore()'s to take away",
    "agent_id": "stays what it is: remember() it for the other agent, and forget() it here",
    "retrieval_count": "is record_retrieval()'s to count",
    "last_retrieved_at": "is record_retrieval()'s to note",
    "last_injected_at": "is record_injection()'s to note",
    "positive_feedback": "is give_feedback()'s to count",
    "negative_feedback": "is give_feedback()'s to count",
}
"""What no update() sets by itself, and which verb does."""

NEEDS_VECTOR: Final = (
    "must come with content, or the old vector would go on speaking for the old words: "
    "give the new content's vector, or None to have none"
)
"""Why a content is never changed alone."""


@event.listens_for(Memory, "before_update")
def _refuse_illegal_step(_mapper: object, _connection: object, target: Memory) -> None:  # pyright: ignore[reportUnusedFunction]
    """Refuse an assigned status that the one before does not lead to; of the loaded one, the trigger of today's."""
    before = inspect(target).attrs.status.history.deleted
    if not before or before[0] is None or before[0] is target.status:
        return
    found, to = MemoryStatus(before[0]), target.status
    if not found.may_become(to):
        ways = ", ".join(sorted(status.value for status in MemoryStatus if found.may_become(status)))
        raise IllegalTransitionError(f"memory {target.id}", found.value, to.value, f"it may become {ways}")
    if to in POINTERS and getattr(target, POINTERS[to]) is None:
        raise IllegalTransitionError(
            f"memory {target.id}", found.value, to.value, "supersede() and merge() do that, with the pointer"
        )
    if found in POINTERS and getattr(target, POINTERS[found]) is not None:
        raise IllegalTransitionError(
            f"memory {target.id}", found.value, to.value, "restore() does that, and takes the pointer away"
        )


@event.listens_for(Memory, "before_insert")
@event.listens_for(Memory, "before_update")
def _refuse_half_a_step(_mapper: object, _connection: object, target: Memory) -> None:  # pyright: ignore[reportUnusedFunction]
    """Refuse a pointer without its status: no verb leaves one, and current() would follow it all the same.

    A status without its pointer passes: that is what the erasure of a successor leaves.
    """
    state = inspect(target)
    status = MemoryStatus(target.__dict__.get("status") or MemoryStatus.ACTIVE)  # left out: the default
    for pointing, pointer in POINTERS.items():
        history = state.attrs[pointer].history
        if not history.has_changes():
            continue
        pointed = getattr(target, pointer)
        if pointed is not None and status is not pointing:
            raise InvalidInputError(pointer, pointed, WAYS_OUT[pointer])
        if pointed is None and state.persistent and status is pointing:
            raise InvalidInputError(pointer, None, "is restore()'s to take away, with the status and the relationship")


@event.listens_for(Memory, "before_update")
def _refuse_a_move_of_house(_mapper: object, _connection: object, target: Memory) -> None:  # pyright: ignore[reportUnusedFunction]
    """Refuse another agent: sessions, duplicates and fingerprints of erased memories are the agent's."""
    before = inspect(target).attrs.agent_id.history.deleted
    if before and before[0] is not None:
        raise InvalidInputError("agent_id", target.agent_id, WAYS_OUT["agent_id"])


@event.listens_for(Memory, "before_update")
def _refuse_words_without_vector(_mapper: object, _connection: object, target: Memory) -> None:  # pyright: ignore[reportUnusedFunction]
    """Refuse a content that was assigned alone; an equal vector that was assigned counts as given."""
    state = inspect(target)
    if not state.attrs.content.history.has_changes() or "embedding" in state.committed_state:
        return
    if state.dict.get("embedding", target) is not None:  # not loaded, or there
        raise InvalidInputError("embedding", "nothing", NEEDS_VECTOR)
