"""One peer's process: reads commands from standard input, a line of JSON each, and answers in the same way.

    python -m benchmarks.peers.worker ADAPTER DATA SIZE DSN [PACKAGE ...]

Times are taken here, around the peer's own calls, so that the pipe is no part of them.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from benchmarks.dataset import DataSet, K, Query, clustered
from benchmarks.peers.rows import Peer, Row
from benchmarks.sizes import SIZES
from benchmarks.words import content


class Worker:
    """Does what it is told with one peer."""

    def __init__(self, peer: Peer, data: DataSet, packages: Sequence[str]) -> None:
        self._peer = peer
        self._data = data
        self._packages = packages
        self._queries: dict[int, Sequence[Query]] = {}

    async def answer(self, command: Mapping[str, Any]) -> dict[str, object]:
        """Do one thing."""
        match command["do"]:
            case "versions":
                return {name: version(name) for name in self._packages}
            case "search":
                query = self._query(command["rows"], command["number"])
                start = time.perf_counter()
                found = await self._peer.search(_name(query.tenant.number), query.vector, K)
                return {"seconds": time.perf_counter() - start, "found": list(found)}
            case "load":
                vectors = self._data.vectors
                rows = [
                    Row(row, _name(tenant), content(row), vectors[row])
                    for tenant, first, last in command["slices"]
                    for row in range(first, last)
                ]
                return await self._add(rows)
            case "add":
                first, count = command["first"], command["count"]
                fresh = clustered(count, first)
                return await self._add(
                    [Row(first + at, "writes", content(first + at), fresh[at]) for at in range(count)]
                )
            case other:
                raise ValueError(other)

    async def _add(self, rows: Sequence[Row]) -> dict[str, object]:
        start = time.perf_counter()
        await self._peer.add_many(rows)
        return {"seconds": time.perf_counter() - start, "rows": len(rows)}

    def _query(self, rows: int, number: int) -> Query:
        if rows not in self._queries:
            self._queries[rows] = self._data.queries(rows)
        return self._queries[rows][number]


def _name(tenant: int) -> str:
    """Name a tenant by more than digits: LlamaIndex compares a filter of digits as a float, past its index."""
    return f"tenant-{tenant}"


async def serve(answers: TextIO, adapter: str, folder: str, size: str, dsn: str, *packages: str) -> None:
    """Open the peer and answer until the input ends."""
    peer: Peer = import_module(f"benchmarks.peers.{adapter}").Adapter()
    await peer.open(dsn)
    worker = Worker(peer, DataSet(Path(folder), SIZES[size]), packages)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await worker.answer(json.loads(line))), file=answers, flush=True)
    finally:
        await peer.close()


def main() -> None:
    """Keep standard output for answers: what the peer prints goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        asyncio.run(serve(answers, *sys.argv[1:]))


if __name__ == "__main__":
    main()
