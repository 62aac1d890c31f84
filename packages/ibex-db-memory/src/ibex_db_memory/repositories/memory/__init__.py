"""MemoryRepository: one mixin for each idea, composed here."""

from ibex_db_memory.repositories.memory.finding import Finding
from ibex_db_memory.repositories.memory.history import History
from ibex_db_memory.repositories.memory.usage import Usage
from ibex_db_memory.repositories.memory.writing import Kept, Outcome, RememberedMany, Writing

__all__ = ["Kept", "MemoryRepository", "Outcome", "RememberedMany"]


class MemoryRepository(Writing, Finding, Usage, History):
    """The memories of one organization.

    Args:
        session: from db.tenant(), or any AsyncSession.
        org_id: may be left out in a tenant session.
    """
