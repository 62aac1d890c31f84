"""The examples in the docstrings."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from doctest import DocTest
from uuid import uuid4

import pytest
import pytest_asyncio
from docstrings import examples, run, without_example
from furnished import furnish
from sqlalchemy import select

from ibex_db_core.database import Database
from ibex_db_core.provisioning import Cluster
from ibex_db_core.tenant import ScopedSession
from ibex_db_tenancy import (
    AgentRepository,
    DirectiveRepository,
    Organization,
    OrganizationRepository,
    TokenRepository,
    UserRepository,
)

# The verbs of core are shown on this wheel's tables.
EXAMPLES = [
    *examples("ibex_db_tenancy"),
    *examples("ibex_db_core.repository"),
    *examples("ibex_db_core.steps"),
    *(test for test in examples("ibex_db_core.database") if test.name.endswith("Database.authenticate")),
]


@pytest.fixture(scope="module")
def shared(ibex_cluster: Cluster, ibex_template: str) -> Iterator[str]:
    """One database for all of them: a copy for each would take most of the time."""
    name = f"ibex_examples_{uuid4().hex[:12]}"
    asyncio.run(ibex_cluster.create_database(name, template=ibex_template))
    yield name
    asyncio.run(ibex_cluster.drop_database(name))


@pytest_asyncio.fixture
async def ibex_db(ibex_cluster: Cluster, shared: str) -> AsyncIterator[Database]:
    async with ibex_cluster.database(shared) as database:
        yield database
        async with database.platform(reason="an example ends") as session:
            for org_id in (await session.scalars(select(Organization.id))).all():
                await OrganizationRepository(session).erase(org_id)


@pytest_asyncio.fixture
async def names(ibex_db: Database, org: Organization, session: ScopedSession) -> AsyncIterator[dict[str, object]]:
    """An organization with a user, an agent and a directive; a session in it; and what the wheels export."""
    yield {**await furnish(session), "db": ibex_db, "org": org}
    await session.rollback()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
async def test_the_example_runs_as_it_stands(example: DocTest, names: dict[str, object]) -> None:
    await run(example, names)


def test_every_verb_has_an_example() -> None:
    repositories = (
        OrganizationRepository,
        UserRepository,
        AgentRepository,
        TokenRepository,
        DirectiveRepository,
    )

    assert without_example(*repositories, *(cls for one in repositories for cls in one.__mro__[1:-2])) == []
