"""What the fixtures of conftest.py give, by name, for the tests that annotate it."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import asyncpg

from ibex_db_core.database import Database
from ibex_db_memory import Memory
from ibex_db_tenancy import Agent, Organization

MakeMemory = Callable[..., Memory]


@dataclass(frozen=True)
class Home:
    """An organization with one agent."""

    org_id: UUID
    agent_id: UUID


async def neighbour_of(database: Database, home: Home, owner: "asyncpg.Connection") -> Home:
    """Make an organization whose rows lie in the same partition."""
    held = "SELECT satisfies_hash_partition('ibex_core.memories'::regclass, 16, $1, $2::uuid)"
    (remainder,) = [number for number in range(16) if await owner.fetchval(held, number, home.org_id)]
    ident = uuid4()
    while not await owner.fetchval(held, remainder, ident):
        ident = uuid4()
    async with database.platform(reason="test data") as session:
        session.add(Organization(id=ident, name="Next door", slug="next-door"))
        await session.flush()
        agent = Agent(org_id=ident, name="Support", slug="support")
        session.add(agent)
    return Home(ident, agent.id)
