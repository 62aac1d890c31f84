"""Rows that the tests of the memory wheel start from."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from ibex_db_core.database import Database
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import Memory, MemoryCategory
from ibex_db_tenancy import Agent, Organization

MakeMemory = Callable[..., Memory]


@dataclass(frozen=True)
class Home:
    """An organization with one agent."""

    org_id: UUID
    agent_id: UUID


async def settle(database: Database) -> Home:
    name = f"org-{uuid4().hex[:8]}"
    async with database.platform(reason="test data") as session:
        org = Organization(name=name, slug=name)
        session.add(org)
        await session.flush()
        agent = Agent(org_id=org.id, name="Support", slug="support")
        session.add(agent)
    return Home(org.id, agent.id)


@pytest_asyncio.fixture
async def home(ibex_db: Database) -> Home:
    return await settle(ibex_db)


@pytest_asyncio.fixture
async def other_home(ibex_db: Database) -> Home:
    return await settle(ibex_db)


@pytest_asyncio.fixture
async def session(ibex_db: Database, home: Home) -> AsyncIterator[ScopedSession]:
    async with ibex_db.tenant(home.org_id) as opened:
        yield opened
        await opened.rollback()  # a test that ends in a refused flush has nothing to commit


@pytest.fixture
def make_memory(home: Home) -> MakeMemory:
    def make(content: str = "Prefers tea over coffee.", **fields: object) -> Memory:
        return Memory(
            **{"agent_id": home.agent_id, "content": content, "category": MemoryCategory.PREFERENCE, **fields}
        )

    return make
