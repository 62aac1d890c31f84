"""MemoryRepository: one mixin for each idea, composed here."""

from collections.abc import Sequence
from types import MappingProxyType

from sqlalchemy import ColumnElement, literal_column

from ibex_db_core.pages import Order
from ibex_db_memory.models import Memory
from ibex_db_memory.repositories.memory.erasure import Erasure
from ibex_db_memory.repositories.memory.finding import Finding
from ibex_db_memory.repositories.memory.graph import Direction, Graph, Neighbor
from ibex_db_memory.repositories.memory.history import History
from ibex_db_memory.repositories.memory.importing import Importing, ImportOptions
from ibex_db_memory.repositories.memory.lifecycle import Lifecycle
from ibex_db_memory.repositories.memory.retention import Retention
from ibex_db_memory.repositories.memory.tags import TagCount, Tags
from ibex_db_memory.repositories.memory.telemetry import guard_recall
from ibex_db_memory.repositories.memory.usage import Usage
from ibex_db_memory.repositories.memory.writing import Kept, Outcome, RememberedMany

__all__ = [
    "Direction",
    "ImportOptions",
    "Kept",
    "MemoryRepository",
    "Neighbor",
    "Outcome",
    "RememberedMany",
    "TagCount",
]


# As the predicate of memories_newest_idx has it: a parameter would not be known to imply it.
_EVER = Memory.created_at >= literal_column("'-infinity'")


class MemoryRepository(Lifecycle, Erasure, Finding, Usage, History, Graph, Tags, Retention, Importing):
    """The memories of one organization.

    Args:
        session: from db.tenant(), or any AsyncSession.
        org_id: may be left out in a tenant session.
    """

    _checks = MappingProxyType({"search": guard_recall})

    def _indexed(self, order: Sequence[Order]) -> Sequence[ColumnElement[bool]]:
        return (_EVER,) if order[0].key == "created_at" else ()
