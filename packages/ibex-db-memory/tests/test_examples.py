"""The examples in the docstrings."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from doctest import DocTest
from uuid import uuid4

import pytest
import pytest_asyncio
from docstrings import examples, run, without_example

import ibex_db_core
import ibex_db_memory
import ibex_db_tenancy
from ibex_db_core.provisioning import Cluster
from ibex_db_memory import MemoryRepository, SessionRepository
from ibex_db_tenancy import Agent, AgentRepository, Organization, OrganizationRepository

# The importers' read another package's database; test_importers.py has those.
EXAMPLES = [example for example in examples("ibex_db_memory") if ".importing." not in example.name]


@pytest.fixture(scope="module")
def shared(ibex_cluster: Cluster, ibex_template: str) -> Iterator[str]:
    """One database for all of them: a copy for each would take most of the time."""
    name = f"ibex_examples_{uuid4().hex[:12]}"
    asyncio.run(ibex_cluster.create_database(name, template=ibex_template))
    yield name
    asyncio.run(ibex_cluster.drop_database(name))


@pytest_asyncio.fixture
async def names(ibex_cluster: Cluster, shared: str) -> AsyncIterator[dict[str, object]]:
    """An organization with an agent, a session in it, and what the wheels export."""
    async with ibex_cluster.database(shared) as db:
        async with db.platform(reason="an example begins") as platform:
            org = await OrganizationRepository(platform).add(Organization(name="Acme", slug=f"acme-{uuid4().hex[:8]}"))
        async with db.tenant(org.id) as session:
            agent = await AgentRepository(session).add(Agent(name="Support", slug="support"))
            await session.commit()
            yield {
                **vars(ibex_db_core),
                **vars(ibex_db_tenancy),
                **vars(ibex_db_memory),
                "timedelta": timedelta,
                "db": db,
                "org": org,
                "agent": agent,
                "session": session,
                "memories": MemoryRepository(session),
                "sessions": SessionRepository(session),
            }
            await session.rollback()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
async def test_the_example_runs(example: DocTest, names: dict[str, object]) -> None:
    await run(example, names)


def test_every_verb_has_an_example() -> None:
    mixins = [*MemoryRepository.__mro__, *SessionRepository.__mro__]

    assert without_example(*(cls for cls in mixins if cls.__module__.startswith("ibex_db_"))) == []
