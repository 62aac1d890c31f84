"""A database on a Citus cluster, migrated and distributed: where IBEX_CITUS_URL names a coordinator."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import URL, make_url
from two import Two, populate

from ibex_db import Database
from ibex_db_core.provisioning import Cluster

VARIABLE = "IBEX_CITUS_URL"
SHARDS = 4


def address() -> URL:
    """Return where the coordinator is, or skip."""
    url = os.environ.get(VARIABLE)
    if not url:
        pytest.skip(
            f"{VARIABLE} is not set: name a superuser in a database of a Citus coordinator that knows its workers"
        )
    return make_url(url)


async def _nodes(coordinator: URL) -> Sequence[URL]:
    connection = await asyncpg.connect(coordinator.render_as_string(hide_password=False))
    try:
        rows = await connection.fetch("SELECT node_name, node_port FROM citus_get_active_worker_nodes()")
    finally:
        await connection.close()
    return [coordinator, *(coordinator.set(host=row["node_name"], port=row["node_port"]) for row in rows)]


async def _run(url: URL, *statements: str) -> None:
    connection = await asyncpg.connect(url.render_as_string(hide_password=False))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def create(coordinator: URL, name: str) -> None:
    """Make a database of this name on every node, with Citus, and the workers known to the coordinator."""
    nodes = await _nodes(coordinator)
    for node in nodes:
        await _run(node, f'CREATE DATABASE "{name}"')
        own = node.set(database=name)
        await _run(own, "CREATE EXTENSION citus", "CREATE EXTENSION vector")
    await _run(
        coordinator.set(database=name),
        f"SELECT citus_set_coordinator_host('{coordinator.host}', {coordinator.port or 5432})",
        *(f"SELECT citus_add_node('{node.host}', {node.port or 5432})" for node in nodes[1:]),
    )


async def drop(coordinator: URL, name: str) -> None:
    """Drop it on every node."""
    for node in await _nodes(coordinator):
        await _run(node, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def coordinator() -> Cluster:
    """Give the coordinator, as its superuser."""
    return Cluster.at(address().render_as_string(hide_password=False))


@pytest.fixture
def empty(coordinator: Cluster) -> Iterator[str]:
    """Give the name of a database with the extensions and nothing else."""
    name = f"ibex_citus_{uuid4().hex[:8]}"
    asyncio.run(coordinator.create_logins())
    asyncio.run(create(address(), name))
    yield name
    asyncio.run(drop(address(), name))


@pytest.fixture(scope="session")
def distributed(coordinator: Cluster) -> Iterator[tuple[str, Two]]:
    """Give a distributed database with two organizations in it, and their keys."""
    name = f"ibex_citus_{uuid4().hex[:8]}"
    asyncio.run(create(address(), name))
    try:
        yield name, asyncio.run(_populate(coordinator, name))
    finally:
        asyncio.run(drop(address(), name))


async def _populate(cluster: Cluster, name: str) -> Two:
    await cluster.create_logins()
    async with cluster.database(name) as db:
        await db.upgrade()
        async with db.migrator() as migrator:
            await migrator.distribute(shards=SHARDS)
        return await populate(db)


@pytest.fixture
def two(distributed: tuple[str, Two]) -> Two:
    """The keys of both organizations."""
    return distributed[1]


@pytest.fixture
async def db(coordinator: Cluster, distributed: tuple[str, Two]) -> AsyncIterator[Database]:
    """A service's Database on it."""
    async with coordinator.database(distributed[0]) as database:
        yield database
