"""Backends and servers that die under load: no wrong row, no lost acknowledged write, no leaked connection."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from death import kill_postmaster
from ledger import TASKS, Ledger

from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import SERVICE_LOGIN

_SERVICES = f"FROM pg_stat_activity WHERE datname = 'outages' AND usename = '{SERVICE_LOGIN}'"

# What a service is told: the connection broke, or it broke during COMMIT.
_TOLD = {"ConnectionLostError", "CommitUnknownError"}


async def _asked(server: EmbeddedPostgres, query: str) -> list[asyncpg.Record]:
    admin = await asyncpg.connect(server.url())
    try:
        found: list[asyncpg.Record] = await admin.fetch(query)
    finally:
        await admin.close()
    return found


async def _terminate_all(server: EmbeddedPostgres) -> None:
    await _asked(server, f"SELECT pg_terminate_backend(pid) {_SERVICES}")


async def _kill_a_backend(server: EmbeddedPostgres) -> None:
    """Kill one in the middle of a statement: Postgres then ends all, and recovers from its log."""
    working = f"SELECT pid {_SERVICES} AND state = 'active' LIMIT 1"
    while not (found := await _asked(server, working)):  # noqa: ASYNC110 - the server's word, which wakes nobody
        await asyncio.sleep(0)
    os.kill(found[0]["pid"], signal.SIGKILL)


async def _kill_the_server(server: EmbeddedPostgres) -> None:
    folder = Path(str((await _asked(server, "SHOW data_directory"))[0][0]))
    await kill_postmaster(folder)
    await asyncio.to_thread(server.start)


async def _restart(server: EmbeddedPostgres) -> None:
    assert await asyncio.to_thread(server.stop_and_wait)
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize("fault", [_terminate_all, _kill_a_backend, _kill_the_server, _restart])
async def test_what_dies_under_load_loses_nothing_that_was_acknowledged(
    server: EmbeddedPostgres, ledger: Ledger, fault: Callable[[EmbeddedPostgres], Awaitable[None]]
) -> None:
    address = server.url()
    async with asyncio.timeout(120):
        async with ledger.load():
            noticed = asyncio.create_task(ledger.until(*_TOLD))
            await fault(server)
            await noticed
            await ledger.until("worked", times=10 * TASKS)
        await ledger.healed()
    await ledger.settle()

    assert server.url() == address, "it must come back where it was"


async def test_a_lost_acknowledged_write_would_be_found(server: EmbeddedPostgres, ledger: Ledger) -> None:
    async with ledger.load():
        await ledger.until("worked", times=TASKS)
    admin = await asyncpg.connect(server.url("outages"))
    await admin.execute(
        "DELETE FROM ibex_core.memories WHERE (org_id, id) = "
        "(SELECT org_id, id FROM ibex_core.memories WHERE org_id = $1 LIMIT 1)",
        max(ledger.accounts, key=lambda account: len(account.acknowledged)).org_id,
    )
    await admin.close()

    with pytest.raises(AssertionError, match="acknowledged writes were lost"):
        await ledger.settle()
