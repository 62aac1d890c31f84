"""Two organizations that look alike: whatever one asks for, the other has its twin."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import UUID, uuid4

import pytest
from bouncer import Route, pgbouncer
from two import ONE, Two, populate

from ibex_db import Database
from ibex_db_core.provisioning import Cluster
from ibex_db_core.testing import TestDatabase


@pytest.fixture(scope="session")
def populated(ibex_cluster: Cluster, ibex_template: str) -> Iterator[tuple[str, Two]]:
    """A template with both organizations in it, and their keys."""
    name = f"{ibex_template}_two"
    two = asyncio.run(_populate(ibex_cluster, ibex_template, name))
    yield name, two
    asyncio.run(ibex_cluster.drop_database(name))


async def _populate(cluster: Cluster, template: str, name: str) -> Two:
    await cluster.create_database(name, template=template)
    async with cluster.database(name) as db:
        return await populate(db)


@pytest.fixture(scope="session")
def two(populated: tuple[str, Two]) -> Two:
    """The keys of both organizations."""
    return populated[1]


@pytest.fixture(scope="session")
def shared(ibex_cluster: Cluster, populated: tuple[str, Two]) -> Iterator[TestDatabase]:
    """A copy that every test may read, and write where it rolls back."""
    name = f"ibex_test_{uuid4().hex[:12]}"
    asyncio.run(ibex_cluster.create_database(name, template=populated[0]))
    yield TestDatabase(name, ibex_cluster)
    asyncio.run(ibex_cluster.drop_database(name))


@pytest.fixture(scope="session")
def bounced(ibex_cluster: Cluster) -> Iterator[Cluster]:
    """The same server through PgBouncer in transaction mode; skips where that is not installed."""
    with pgbouncer(ibex_cluster) as cluster:
        yield cluster


@pytest.fixture(params=["direct", "pgbouncer"])
def route(request: pytest.FixtureRequest) -> Route:
    """Straight to the server, and through PgBouncer."""
    return Route(request.getfixturevalue("bounced") if request.param == "pgbouncer" else None)


@pytest.fixture
async def db(route: Route, shared: TestDatabase) -> AsyncIterator[Database]:
    """A service's Database of one connection, on each route."""
    async with route.connect(shared, ONE) as database:
        yield database


@pytest.fixture
async def own(ibex_cluster: Cluster, populated: tuple[str, Two]) -> AsyncIterator[TestDatabase]:
    """A copy of one test's own, to break."""
    name = f"ibex_test_{uuid4().hex[:12]}"
    await ibex_cluster.create_database(name, template=populated[0])
    yield TestDatabase(name, ibex_cluster)
    await ibex_cluster.drop_database(name)


@pytest.fixture
def a(two: Two) -> UUID:
    """The organization that asks."""
    return two.a.org_id


@pytest.fixture
def b(two: Two) -> UUID:
    """The organization that must stay unseen."""
    return two.b.org_id
