"""The repositories of the memory wheel."""

from ibex_db_memory.repositories.memory import Kept, MemoryRepository, Outcome, RememberedMany
from ibex_db_memory.repositories.session import SessionRepository

__all__ = ["Kept", "MemoryRepository", "Outcome", "RememberedMany", "SessionRepository"]
