"""pytest fixtures for services: a migrated database of its own for each test, in a tenth of a second.

Installed with ``ibex-db-core[testing]`` and found by pytest on its own.  The
server is embedded and thrown away, or the one that IBEX_TEST_DATABASE_URL
names (a login that may create databases and roles).  The installed wheels'
migrations run once into a template database, which each test copies.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from ibex_db_core.database import Database
    from ibex_db_core.engine import EngineSettings
    from ibex_db_core.provisioning import Cluster

URL_VARIABLE = "IBEX_TEST_DATABASE_URL"


@pytest.fixture(scope="session")
def ibex_cluster() -> "Iterator[Cluster]":
    """Give the server that all tests of this run share: the addresses of its superuser."""
    from ibex_db_core.embedded import EmbeddedPostgres
    from ibex_db_core.provisioning import Cluster

    url = os.environ.get(URL_VARIABLE)
    if url:
        yield Cluster.at(url)
        return
    with EmbeddedPostgres.throwaway() as server:
        yield Cluster.of(server)


@pytest.fixture(scope="session")
def ibex_template(ibex_cluster: "Cluster") -> Iterator[str]:
    """Give the name of a database with every installed wheel's migrations; tests copy it."""
    name = f"ibex_template_{uuid4().hex[:12]}"
    asyncio.run(_migrate(ibex_cluster, name))
    yield name
    asyncio.run(ibex_cluster.drop_database(name))


async def _migrate(cluster: "Cluster", name: str) -> None:
    await cluster.create_logins()
    await cluster.create_database(name)
    async with cluster.database(name) as database:
        await database.upgrade()


@dataclass(frozen=True)
class TestDatabase:
    """One test's own database: its name, and how to connect to it."""

    __test__ = False
    name: str
    cluster: "Cluster"

    def connect(self, settings: "EngineSettings | None" = None, *, signing_key: str | None = None) -> "Database":
        """Make a Database on it, as a service would: closed by the caller."""
        return self.cluster.database(self.name, settings=settings, signing_key=signing_key)


@pytest_asyncio.fixture
async def ibex_test_database(ibex_cluster: "Cluster", ibex_template: str) -> AsyncIterator[TestDatabase]:
    """Give a fresh copy of the migrated template, dropped after the test."""
    name = f"ibex_test_{uuid4().hex[:12]}"
    await ibex_cluster.create_database(name, template=ibex_template)
    yield TestDatabase(name, ibex_cluster)
    await ibex_cluster.drop_database(name)


@pytest_asyncio.fixture
async def ibex_db(ibex_test_database: TestDatabase) -> "AsyncIterator[Database]":
    """Give an open Database on a fresh migrated database; its login is a member of ibex_app and of nothing else."""
    async with ibex_test_database.connect() as database:
        yield database
