"""Two organizations, and a session of the first."""

from collections.abc import AsyncIterator

import hypothesis
import pytest_asyncio

from ibex_db_core.database import Database
from ibex_db_core.tenant import ScopedSession
from ibex_db_tenancy import Organization

# Nothing is timed: a busy machine is no finding.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


async def _organization(db: Database, slug: str) -> Organization:
    async with db.platform(reason="test set-up") as session:
        organization = Organization(name=slug.title(), slug=slug)
        session.add(organization)
    return organization


@pytest_asyncio.fixture
async def org(ibex_db: Database) -> Organization:
    return await _organization(ibex_db, "acme")


@pytest_asyncio.fixture
async def rival(ibex_db: Database) -> Organization:
    return await _organization(ibex_db, "globex")


@pytest_asyncio.fixture
async def session(ibex_db: Database, org: Organization) -> AsyncIterator[ScopedSession]:
    async with ibex_db.tenant(org.id) as session:
        yield session
