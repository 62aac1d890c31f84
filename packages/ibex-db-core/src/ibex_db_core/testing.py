"""pytest fixtures for services: a migrated database of its own for each test, in a tenth of a second.

Installed with ``ibex-db-core[testing]`` and found by pytest on its own.  The
server is embedded and thrown away, or the one that IBEX_TEST_DATABASE_URL
names (a login that may create databases and roles).  The installed wheels'
migrations run once into a template database, which each test copies.

Tests run in pytest-asyncio's event loop, in its auto and strict modes, or in that of
anyio's plugin.  The upper wheels add ``tenant`` and factories of rows.
"""

import asyncio
import functools
import inspect
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from ibex_db_core.database import Database
    from ibex_db_core.engine import EngineSettings
    from ibex_db_core.provisioning import Cluster
    from ibex_db_core.telemetry import Telemetry

URL_VARIABLE = "IBEX_TEST_DATABASE_URL"

P = ParamSpec("P")
T = TypeVar("T")


# -- one fixture, two plugins that own an event loop


def in_asyncio(name: str, opened: Callable[P, AbstractAsyncContextManager[T]]) -> object:
    """Make the fixture that pytest-asyncio opens; None where it is not installed, as beside anyio it need not be."""
    try:
        import pytest_asyncio
    except ModuleNotFoundError as exc:
        if exc.name != "pytest_asyncio":
            raise
        return None
    return pytest_asyncio.fixture(name=name)(_generator(opened))


def in_anyio(name: str, opened: Callable[P, AbstractAsyncContextManager[T]]) -> object:
    """Make the fixture that anyio's plugin opens: a plain one, which pytest-asyncio's strict mode leaves alone."""
    return pytest.fixture(name=name)(_generator(opened))


def _generator(opened: Callable[P, AbstractAsyncContextManager[T]]) -> Callable[P, AsyncGenerator[T]]:
    @functools.wraps(opened)
    async def generate(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T]:
        async with opened(*args, **kwargs) as value:
            yield value

    return generate


def of_the_tests_loop(request: pytest.FixtureRequest, asyncio_name: str, anyio_name: str) -> Any:
    """Return the fixture's value from the loop that the test runs in: connections work in no other."""
    if "anyio_backend" in request.fixturenames:
        backend = request.getfixturevalue("anyio_backend")
        if (backend if isinstance(backend, str) else backend[0]) != "asyncio":
            pytest.fail(
                f"ibex-db runs on asyncio, and this test on {backend}: let a fixture anyio_backend return 'asyncio'",
                pytrace=False,
            )
        if inspect.iscoroutinefunction(request.function) and _takes_every_test(request.config):
            pytest.fail(
                "this test is marked for anyio, but pytest-asyncio's auto mode runs it, in another loop than anyio's "
                'fixtures: take the mark away, or set asyncio_mode = "strict"',
                pytrace=False,
            )
        return request.getfixturevalue(anyio_name)
    if not request.config.pluginmanager.has_plugin("asyncio"):
        pytest.fail(
            "this fixture needs an event loop: install ibex-db-core[testing] for pytest-asyncio's, "
            "or mark the test with pytest.mark.anyio",
            pytrace=False,
        )
    return request.getfixturevalue(asyncio_name)


def _takes_every_test(config: pytest.Config) -> bool:
    """Tell whether pytest-asyncio's auto mode is on: it runs tests that are marked for anyio, too."""
    if not config.pluginmanager.has_plugin("asyncio"):
        return False
    return bool((config.getoption("asyncio_mode", None) or config.getini("asyncio_mode")) == "auto")


def _complete(work: Coroutine[Any, Any, None]) -> None:
    """Run something in a loop of its own, whatever becomes of the test's."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


# -- the server, and a database for each test


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
    _complete(_migrate(ibex_cluster, name))
    yield name
    _complete(ibex_cluster.drop_database(name))


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

    def connect(
        self,
        settings: "EngineSettings | None" = None,
        *,
        signing_key: str | None = None,
        telemetry: "Telemetry | None" = None,
    ) -> "Database":
        """Make a Database on it, as a service would: closed by the caller."""
        return self.cluster.database(self.name, settings=settings, signing_key=signing_key, telemetry=telemetry)


@pytest.fixture
def ibex_test_database(ibex_cluster: "Cluster", ibex_template: str) -> Iterator[TestDatabase]:
    """Give a fresh copy of the migrated template, dropped after the test."""
    name = f"ibex_test_{uuid4().hex[:12]}"
    _complete(ibex_cluster.create_database(name, template=ibex_template))
    yield TestDatabase(name, ibex_cluster)
    _complete(ibex_cluster.drop_database(name))


@pytest.fixture
def ibex_db(request: pytest.FixtureRequest) -> "Database":
    """Give an open Database on a fresh migrated database; its login is a member of ibex_app and of nothing else."""
    opened: Database = of_the_tests_loop(request, "_ibex_db_in_asyncio", "_ibex_db_in_anyio")
    return opened


@asynccontextmanager
async def _open(ibex_test_database: TestDatabase) -> "AsyncGenerator[Database]":
    async with ibex_test_database.connect() as database:
        yield database


_ibex_db_in_asyncio = in_asyncio("_ibex_db_in_asyncio", _open)
_ibex_db_in_anyio = in_anyio("_ibex_db_in_anyio", _open)
