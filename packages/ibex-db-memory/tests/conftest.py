"""Two organizations with their agents, sessions of the first, and ways to look underneath."""

from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from uuid import UUID

import asyncpg
import numpy as np
import pytest
import pytest_asyncio
from sqlalchemy import event

from ibex_db_core.database import Database
from ibex_db_core.engine import EngineSettings
from ibex_db_core.tenant import ScopedSession
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import MemoryRepository, SessionRepository
from ibex_db_tenancy import Agent, Organization

Sent = Callable[[], AbstractContextManager[list[str]]]


async def _organization(db: Database, slug: str) -> UUID:
    async with db.platform(reason="test set-up") as session:
        organization = Organization(name=slug.title(), slug=slug)
        session.add(organization)
    return organization.id


async def _agent(db: Database, org_id: UUID, slug: str) -> UUID:
    async with db.tenant(org_id) as session:
        agent = Agent(name=slug.title(), slug=slug)
        session.add(agent)
    return agent.id


@pytest_asyncio.fixture
async def org_id(ibex_db: Database) -> UUID:
    return await _organization(ibex_db, "acme")


@pytest_asyncio.fixture
async def rival_id(ibex_db: Database) -> UUID:
    return await _organization(ibex_db, "globex")


@pytest_asyncio.fixture
async def agent_id(ibex_db: Database, org_id: UUID) -> UUID:
    return await _agent(ibex_db, org_id, "ada")


@pytest_asyncio.fixture
async def other_agent_id(ibex_db: Database, org_id: UUID) -> UUID:
    return await _agent(ibex_db, org_id, "bob")


@pytest_asyncio.fixture
async def rival_agent_id(ibex_db: Database, rival_id: UUID) -> UUID:
    return await _agent(ibex_db, rival_id, "eve")


@pytest_asyncio.fixture
async def session(ibex_db: Database, org_id: UUID) -> AsyncIterator[ScopedSession]:
    async with ibex_db.tenant(org_id) as session:
        yield session


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
