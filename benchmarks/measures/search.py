"""Search by vector: recall@10 and time by the number of a tenant's memories, everybody in turn.

Each peer runs twice: as its documentation sets it up, and with the vector
index set for every session as ours has it (ef_search 100, iterative scan),
which none of them documents.
"""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import numpy as np

from benchmarks import handwritten, ours
from benchmarks.bench import Bench
from benchmarks.dataset import mean_recall
from benchmarks.peers.process import PeerProcess, running
from benchmarks.results import OURS, RAW, Finding
from benchmarks.server import TUNED, dsn
from benchmarks.timing import Contestant, Shot, clocked, interleave

NAME = "search"
TUNED_SUFFIX = ", tuned"


async def measure(bench: Bench) -> list[Finding]:
    """Search as many tenants of each size as there are queries."""
    async with AsyncExitStack() as exits:
        peers: dict[str, PeerProcess] = {}
        for peer in bench.peers:
            peers[peer.name] = peer
            address = dsn(bench.cluster.url(peer.database).set(username=TUNED))
            tuned = running(peer.recipe, address, bench.folder / "data", bench.size.name)
            peers[peer.name + TUNED_SUFFIX] = await exits.enter_async_context(tuned)
        return [finding for rows in bench.size.tenants for finding in await _at(bench, rows, peers)]


async def _at(bench: Bench, rows: int, peers: Mapping[str, PeerProcess]) -> list[Finding]:
    queries = bench.data.queries(rows)

    async def raw(number: int) -> Sequence[int]:
        return await handwritten.search(bench.raw, queries[number])

    async def mine(number: int) -> Sequence[int]:
        return await ours.search(bench.database, queries[number])

    contestants: dict[str, Contestant[Sequence[int]]] = {RAW: clocked(raw), OURS: clocked(mine)}
    if rows <= bench.size.peers_up_to:
        contestants |= {name: _of(peer, rows) for name, peer in peers.items()}
    step = bench.steps(len(queries))
    times = await interleave(contestants, len(queries), warm=len(queries) // 5, step=step)
    found: list[Finding] = []
    for name, run in times.items():
        values = {
            "recall": mean_recall(queries, run.answers),
            "rows": float(np.mean([len(answer) for answer in run.answers])),
            **run.milliseconds(),
            **run.over(times[RAW]),
        }
        found.append(Finding(NAME, name, {"tenant": rows}, values))
    return found


def _of(peer: PeerProcess, rows: int) -> Contestant[Sequence[int]]:
    async def shoot(number: int) -> Shot[Sequence[int]]:
        return await peer.search(rows, number)

    return shoot
