"""A server that has no more to give: connections, time, disk."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from ledger import POOL, Ledger, migrate
from sqlalchemy import text

from ibex_db import (
    ConnectionLostError,
    Database,
    DatabaseError,
    IbexError,
    MemoryRepository,
    StatementTimeoutError,
    TransientError,
)
from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import SERVICE_LOGIN, Cluster

_MIB = 2**20


async def test_a_server_without_a_free_connection_says_so_and_serves_again_when_it_has_one(
    server: EmbeddedPostgres, ledger: Ledger
) -> None:
    admin = await asyncpg.connect(server.url())
    await ledger.db.engine.dispose()
    await admin.execute(f"ALTER ROLE {SERVICE_LOGIN} CONNECTION LIMIT 1")
    try:
        async with ledger.db.tenant(ledger.accounts[0].org_id) as held:
            await held.execute(text("SELECT 1"))
            with pytest.raises(TransientError, match="too many connections"):
                await ledger.write(ledger.accounts[1])
            await MemoryRepository(held).count()
        await ledger.write(ledger.accounts[1])
    finally:
        await admin.execute(f"ALTER ROLE {SERVICE_LOGIN} CONNECTION LIMIT -1")
        await admin.close()

    await ledger.healed()
    await ledger.settle()


async def test_a_statement_that_takes_too_long_is_ended_and_its_transaction_with_it(
    server: EmbeddedPostgres, ledger: Ledger
) -> None:
    account = ledger.accounts[0]
    await ledger.write(account)
    settings = replace(POOL, statement_timeout=0.2)
    async with Cluster.of(server).database("outages", settings=settings) as db:
        with pytest.raises(StatementTimeoutError, match="statement_timeout"):
            async with db.tenant(account.org_id) as session:
                await session.execute(text("UPDATE ibex_core.memories SET embedding_model = 'half done'"))
                await session.execute(text("SELECT pg_sleep(60)"))

        async with db.tenant(account.org_id) as session:
            half = text("SELECT count(*) FROM ibex_core.memories WHERE embedding_model = 'half done'")
            assert await session.scalar(half) == 0
    await ledger.settle()


async def test_a_transaction_that_sits_idle_too_long_is_told_as_lost(server: EmbeddedPostgres, ledger: Ledger) -> None:
    settings = replace(POOL, idle_timeout=0.1)
    async with Cluster.of(server).database("outages", settings=settings) as db:
        with pytest.raises(ConnectionLostError):
            async with db.tenant(ledger.accounts[0].org_id) as session:
                await session.execute(text("SELECT 1"))
                await asyncio.sleep(1.0)
                await session.execute(text("SELECT 1"))

        async with db.tenant(ledger.accounts[0].org_id) as session:
            assert await session.scalar(text("SELECT 1")) == 1


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 320 MiB in memory."""
    place = tmp_path_factory.mktemp("disk")
    mounted = os.geteuid() == 0 and subprocess.run(  # noqa: S603 - our own words
        ["mount", "-t", "tmpfs", "-o", "size=320m,mode=755", "tmpfs", str(place)],  # noqa: S607 - the system's
        check=False,
        capture_output=True,
    )
    if not mounted or mounted.returncode:
        pytest.skip("no small disk can be mounted here: it takes root, and a kernel that lets it")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # noqa: S603, S607 - the system's


@pytest.fixture
async def on_small_disk(small_disk: Path) -> AsyncIterator[tuple[EmbeddedPostgres, Database]]:
    """A server whose data lie there."""
    server = EmbeddedPostgres(small_disk / "home", settings={"max_wal_size": "64MB", "min_wal_size": "32MB"})
    await asyncio.to_thread(server.start)
    cluster = Cluster.of(server)
    await migrate(cluster)
    async with cluster.database("outages", settings=POOL) as db:
        yield server, db
    assert await asyncio.to_thread(server.stop_and_wait)


async def test_a_full_disk_loses_nothing_that_was_acknowledged(
    small_disk: Path, on_small_disk: tuple[EmbeddedPostgres, Database]
) -> None:
    server, db = on_small_disk
    ledger = await Ledger.open(db)
    account = ledger.accounts[0]
    await ledger.write(account)
    # All but a little is taken by somebody else, who gives it back when the service has met the wall.
    filler = small_disk / "filler"
    disk = os.statvfs(small_disk)
    filler.write_bytes(b"\0" * (disk.f_bavail * disk.f_frsize - 2 * _MIB))

    with pytest.raises(IbexError) as caught:
        for number in range(10_000):
            async with db.tenant(account.org_id) as session:
                await session.execute(
                    text("UPDATE ibex_core.memories SET metadata = jsonb_build_object('filler', :filler)"),
                    {"filler": os.urandom(100_000).hex() + str(number)},
                )
    assert isinstance(caught.value, (DatabaseError, TransientError))
    filler.unlink()
    await asyncio.to_thread(server.start)  # a server that could not write its log has ended itself

    async with asyncio.timeout(60):
        while True:
            try:
                await ledger.write(account)
                break
            except TransientError:
                await asyncio.sleep(0.1)
        await ledger.healed()
    await ledger.settle()
