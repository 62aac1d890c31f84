"""What ibex-db adds to a search: the same plan over the same rows, and nobody else in between."""

from collections.abc import Sequence

from benchmarks import handwritten, ours
from benchmarks.bench import Bench
from benchmarks.results import OURS, RAW, Finding
from benchmarks.timing import clocked, interleave

NAME = "overhead"
LEAN = f"{RAW}, id and content only"


async def measure(bench: Bench) -> list[Finding]:
    """Search each size of tenant, three ways."""
    return [finding for rows in bench.size.tenants for finding in await _at(bench, rows)]


async def _at(bench: Bench, rows: int) -> list[Finding]:
    queries = bench.data.queries(rows)

    async def raw(number: int) -> Sequence[int]:
        return await handwritten.search(bench.raw, queries[number])

    async def lean(number: int) -> Sequence[int]:
        return await handwritten.search(bench.raw, queries[number], lean=True)

    async def mine(number: int) -> Sequence[int]:
        return await ours.search(bench.database, queries[number])

    contestants = {RAW: clocked(raw), OURS: clocked(mine), LEAN: clocked(lean)}
    step = bench.steps(len(queries))
    times = await interleave(contestants, len(queries), warm=len(queries) // 5, step=step)
    return [
        Finding(NAME, name, {"tenant": rows}, {**run.milliseconds(), **run.over(times[RAW])})
        for name, run in times.items()
    ]
