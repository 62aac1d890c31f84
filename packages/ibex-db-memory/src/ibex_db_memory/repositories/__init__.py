"""The repositories of the memory wheel."""

from ibex_db_memory.repositories.memory import (
    Direction,
    ImportOptions,
    Kept,
    MemoryRepository,
    Neighbor,
    Outcome,
    RememberedMany,
    TagCount,
)
from ibex_db_memory.repositories.session import Resumed, SessionRepository

__all__ = [
    "Direction",
    "ImportOptions",
    "Kept",
    "MemoryRepository",
    "Neighbor",
    "Outcome",
    "RememberedMany",
    "Resumed",
    "SessionRepository",
    "TagCount",
]
