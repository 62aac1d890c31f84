"""Search by vector and words together, over its vector leg alone; and its words alone."""

from collections.abc import Sequence

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.results import OURS, Finding
from benchmarks.timing import clocked, interleave

NAME = "hybrid"
VECTOR = f"{OURS}, vector leg"
WORDS = f"{OURS}, words"


async def measure(bench: Bench) -> list[Finding]:
    """Search tenants of each size in each way."""
    return [finding for rows in bench.size.tenants for finding in await _at(bench, rows)]


async def _at(bench: Bench, rows: int) -> list[Finding]:
    queries = bench.data.queries(rows)

    async def vector(number: int) -> Sequence[int]:
        return await ours.search(bench.database, queries[number])

    async def words(number: int) -> Sequence[int]:
        return await ours.search(bench.database, queries[number], text=True, vector=False)

    async def both(number: int) -> Sequence[int]:
        return await ours.search(bench.database, queries[number], text=True)

    step = bench.steps(len(queries))
    contestants = {VECTOR: clocked(vector), WORDS: clocked(words), OURS: clocked(both)}
    times = await interleave(contestants, len(queries), step=step)
    return [
        Finding(NAME, name, {"tenant": rows}, {**run.milliseconds(), **run.over(times[VECTOR])})
        for name, run in times.items()
    ]
