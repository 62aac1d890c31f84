"""What the fixtures of conftest.py give, by name, for the tests that annotate it."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from ibex_db_memory import Memory

MakeMemory = Callable[..., Memory]


@dataclass(frozen=True)
class Home:
    """An organization with one agent."""

    org_id: UUID
    agent_id: UUID
