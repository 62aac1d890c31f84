"""A memory's status moves by legal steps, and its pointers with it, also where attributes are assigned."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import event, inspect

from ibex_db_core.errors import IllegalTransitionError
from ibex_db_memory.models.enums import MemoryStatus
from ibex_db_memory.models.memory import Memory

POINTERS: Final[Mapping[MemoryStatus, str]] = {
    MemoryStatus.SUPERSEDED: "superseded_by",
    MemoryStatus.MERGED: "merged_into",
}
"""Where a memory of each of these statuses points."""


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
