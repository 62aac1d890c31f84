"""Rows that the tests of the memory wheel start from, and ways to look underneath."""

from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from uuid import UUID, uuid4

import asyncpg
import hypothesis
import numpy as np
import pytest
import pytest_asyncio
from homes import Home, MakeMemory
from sqlalchemy import event

from ibex_db_core.database import Database
from ibex_db_core.engine import EngineSettings
from ibex_db_core.tenant import ScopedSession
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import Memory, MemoryCategory, MemoryRepository, SessionRepository
from ibex_db_tenancy import Agent, Organization

# Nothing is timed: a busy machine is no finding.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

Sent = Callable[[], AbstractContextManager[list[str]]]


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


# -- for the repositories


@pytest.fixture
def org_id(home: Home) -> UUID:
    return home.org_id


@pytest.fixture
def agent_id(home: Home) -> UUID:
    return home.agent_id


@pytest_asyncio.fixture
async def other_agent_id(ibex_db: Database, home: Home) -> UUID:
    """A second agent of the same organization."""
    async with ibex_db.tenant(home.org_id) as session:
        agent = Agent(name="Sales", slug="sales")
        session.add(agent)
    return agent.id


@pytest.fixture
def rival_id(other_home: Home) -> UUID:
    return other_home.org_id


@pytest.fixture
def rival_agent_id(other_home: Home) -> UUID:
    return other_home.agent_id


@pytest.fixture
def memories(session: ScopedSession) -> MemoryRepository:
    return MemoryRepository(session)


@pytest.fixture
def sessions(session: ScopedSession) -> SessionRepository:
    return SessionRepository(session)


@pytest_asyncio.fixture
async def small_pool(ibex_test_database: TestDatabase) -> AsyncIterator[Database]:
    """Another service on the same data, with four connections for everybody."""
    async with ibex_test_database.connect(EngineSettings(pool_size=4, max_overflow=0, pool_timeout=30)) as database:
        yield database


@pytest_asyncio.fixture
async def owner(ibex_test_database: TestDatabase) -> "AsyncIterator[asyncpg.Connection]":
    """The superuser, whom neither policies nor grants bind."""
    url = ibex_test_database.cluster.url(ibex_test_database.name)
    connection = await asyncpg.connect(url.render_as_string(hide_password=False))
    yield connection
    await connection.close()


@pytest.fixture
def sent(ibex_db: Database) -> Sent:
    """``with sent() as statements:`` collects what is sent to the server; BEGIN and COMMIT are not counted."""

    @contextmanager
    def record() -> Generator[list[str]]:
        statements: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
            statements.append(statement)

        engine = ibex_db.engine.sync_engine
        event.listen(engine, "before_cursor_execute", note)
        try:
            yield statements
        finally:
            event.remove(engine, "before_cursor_execute", note)

    return record


@pytest.fixture
def vector() -> Callable[[int], list[float]]:
    """Make one random vector for each number, always the same."""

    def make(seed: int) -> list[float]:
        found: list[float] = np.random.default_rng(seed).standard_normal(384).astype(np.float32).tolist()
        return found

    return make
