"""How often a client waits for the server: counted on the wire, by the proxy that core's tests use."""

import statistics
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy import URL

from benchmarks import handwritten, ours
from benchmarks.bench import Bench
from benchmarks.dataset import memory_id
from benchmarks.peers.process import PeerProcess, running
from benchmarks.results import OURS, RAW, Finding
from benchmarks.server import Raw, dsn
from ibex_db import Database, MemoryRepository
from ibex_db_core.engine import EngineSettings
from ibex_db_core.provisioning import SERVICE_LOGIN

# The proxy lives with the tests of the wheel that promises three round trips.
sys.path.append(str(Path(__file__).parents[2] / "packages" / "ibex-db-core" / "tests"))
from wire import Wire, listen

NAME = "round_trips"

# By then connections are open, statements prepared and scopes counted.
_WARM, _COUNTED = 8, 5


async def measure(bench: Bench) -> list[Finding]:
    """Count each verb in a transaction of its own, over a tenant of about a hundred memories."""
    rows = min(bench.size.tenants, key=lambda rows: abs(rows - 100))
    step = bench.steps(2 + len(bench.peers))
    address = bench.cluster.url(bench.database_name, user=SERVICE_LOGIN)
    async with listen(address) as wire:
        found = await _ours(bench, wire, wire.address(address), rows)
        step()
        queries = bench.data.queries(rows)
        async with Raw.at(dsn(wire.address(address)), pool_size=1) as raw:
            found.append(await _count(wire, RAW, "search", lambda at: handwritten.search(raw, queries[at])))
        step()
    for peer in bench.peers:
        found.append(await _peer(bench, peer, rows))
        step()
    return found


async def _ours(bench: Bench, wire: Wire, address: URL, rows: int) -> list[Finding]:
    queries = bench.data.queries(rows)
    tenant = await bench.fresh_tenant()
    contents, vectors = bench.fresh_memories(_WARM + _COUNTED)
    writes = iter(zip(contents, vectors, strict=True))

    async with Database(address, settings=EngineSettings(pool_size=1, max_overflow=0)) as database:

        async def search(at: int) -> None:
            await ours.search(database, queries[at])

        async def remember(_at: int) -> None:
            await ours.remember(database, tenant, *next(writes))

        async def bookkeeping(at: int) -> None:
            idents = [memory_id(row) for row in queries[at].truth]
            async with database.tenant(queries[at].tenant.org_id) as session:
                await MemoryRepository(session).record_retrieval(idents)

        return [await _count(wire, OURS, verb.__name__, verb) for verb in (search, remember, bookkeeping)]


async def _peer(bench: Bench, peer: PeerProcess, rows: int) -> Finding:
    address = bench.cluster.url(peer.database)
    async with listen(address) as wire:
        way = dsn(wire.address(address))
        async with running(peer.recipe, way, bench.folder / "data", bench.size.name) as wired:
            return await _count(wire, peer.name, "search", lambda at: wired.search(rows, at))


async def _count(wire: Wire, name: str, verb: str, work: Callable[[int], Awaitable[object]]) -> Finding:
    for _ in range(_WARM):
        await work(0)
    counts: list[int] = []
    for _ in range(_COUNTED):
        wire.clear()
        await work(0)
        counts.append(wire.round_trips)
    return Finding(NAME, name, {"verb": verb}, {"round_trips": statistics.median(counts)})
