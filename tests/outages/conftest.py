"""A server of this folder's own, for nobody else may lose theirs."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from ledger import POOL, Ledger, migrate

from ibex_db import Database
from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import Cluster


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """Durable, or it would lose what it acknowledged; at a fixed address it comes back where it was."""
    embedded = EmbeddedPostgres(tmp_path_factory.mktemp("outages") / "home")
    with embedded:
        asyncio.run(migrate(Cluster.of(embedded)))
        yield embedded
    embedded.stop_and_wait()


@pytest.fixture
async def db(server: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A service's Database, of a small pool."""
    async with Cluster.of(server).database("outages", settings=POOL) as database:
        yield database


@pytest.fixture
async def ledger(db: Database) -> Ledger:
    """Organizations with nothing in them yet."""
    return await Ledger.open(db)
