"""Loading the data set: once for a run, into ours and into each peer, rows/s noted by the way."""

import time
from collections.abc import Sequence

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.peers.process import PeerProcess
from benchmarks.results import OURS, Finding
from benchmarks.server import build_vector_index, drop_vector_index, superuser

NAME = "load"

# Rows that a peer is given at once; more makes none of them faster.
_AT_ONCE = 500


async def measure(bench: Bench) -> list[Finding]:
    """Load everything that is searched."""
    found = [await _load_ours(bench)]
    for peer in bench.peers:
        found.append(await _load_peer(bench, peer))
        async with superuser(bench.cluster, peer.database) as connection:
            await connection.execute("VACUUM (ANALYZE)")
    return found


async def _load_ours(bench: Bench) -> Finding:
    data, step = bench.data, bench.steps(bench.data.rows * 2)
    vectors = data.vectors
    await ours.settle(bench.database, data.tenants)
    async with superuser(bench.cluster, bench.database_name) as connection:
        await drop_vector_index(connection)
        start = time.perf_counter()
        for tenant, rows in data.slices(data.tenants):
            await ours.remember_many(bench.database, tenant, (ours.draft_of(tenant, row, vectors[row]) for row in rows))
            for _ in rows:
                step()
        written = time.perf_counter()
        await build_vector_index(connection, workers=bench.size.build_workers)
        for _ in range(data.rows):
            step()
    values = {
        "rows_per_s": data.rows / (time.perf_counter() - start),
        "without_index_rows_per_s": data.rows / (written - start),
    }
    return Finding(NAME, OURS, {"rows": data.rows, "how": "remember_many, then the vector index"}, values)


async def _load_peer(bench: Bench, peer: PeerProcess) -> Finding:
    tenants = bench.data.for_peers
    total = bench.data.peer_rows
    step = bench.steps(total)
    seconds = 0.0
    waiting: list[tuple[int, int, int]] = []
    for tenant, rows in bench.data.slices(tenants):
        waiting.extend(
            (tenant.number, first, min(first + _AT_ONCE, rows.stop)) for first in range(rows.start, rows.stop, _AT_ONCE)
        )
    for batch in _batches(waiting):
        answer = await peer.ask(do="load", slices=batch)
        seconds += answer["seconds"]
        for _ in range(answer["rows"]):
            step()
    return Finding(NAME, peer.name, {"rows": total, "how": "into a live vector index"}, {"rows_per_s": total / seconds})


def _batches(slices: Sequence[tuple[int, int, int]]) -> Sequence[Sequence[tuple[int, int, int]]]:
    """Put small slices together, up to what a peer is given at once."""
    batches: list[list[tuple[int, int, int]]] = [[]]
    size = 0
    for piece in slices:
        rows = piece[2] - piece[1]
        if size + rows > _AT_ONCE and batches[-1]:
            batches.append([])
            size = 0
        batches[-1].append(piece)
        size += rows
    return batches
