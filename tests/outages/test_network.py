"""A network that cuts, resets, breaks off and stalls under load: nothing acknowledged is lost, and it heals."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from ledger import POOL, TASKS, Ledger
from proxy import Proxy, proxy

from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import Cluster

# Long enough that a busy machine's slow statement is none, short enough to wait for.
SETTINGS = replace(POOL, statement_timeout=5.0, network_timeout=0.5)

_TOLD = ("ConnectionLostError", "CommitUnknownError")


@pytest.fixture
async def network(server: EmbeddedPostgres) -> AsyncIterator[Proxy]:
    async with proxy(Cluster.of(server).admin) as opened:
        yield opened


@pytest.fixture
async def distant(server: EmbeddedPostgres, network: Proxy) -> AsyncIterator[Ledger]:
    """A ledger whose service is on the other side of that network."""
    cluster = Cluster.of(server)
    through = replace(cluster, admin=network.address(cluster.admin))
    async with through.database("outages", settings=SETTINGS) as db:
        yield await Ledger.open(db)


async def _cut(network: Proxy) -> None:
    network.cut()


async def _reset(network: Proxy) -> None:
    network.reset()


async def _break_off(network: Proxy) -> None:
    """Let a part of an answer through, and no more."""
    network.answers_passed = 100


async def _stall(network: Proxy) -> None:
    """Let nothing through for longer than an answer is waited for; nobody is told."""
    network.stall()
    await asyncio.sleep((SETTINGS.answer_timeout or 0.0) + 1.0)
    network.resume()


@pytest.mark.parametrize("fault", [_cut, _reset, _break_off, _stall])
async def test_what_breaks_on_the_way_loses_nothing_that_was_acknowledged(
    network: Proxy, distant: Ledger, fault: Callable[[Proxy], Awaitable[None]]
) -> None:
    async with asyncio.timeout(120):
        async with distant.load():
            noticed = asyncio.create_task(distant.until(*_TOLD))
            await fault(network)
            await noticed
            await distant.until("worked", times=5 * TASKS)
        await distant.healed()
    await distant.settle()

    assert network.connections <= POOL.pool_size + 1, "the service left connections behind"
