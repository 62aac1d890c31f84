"""Search by vector and words together, over its vector leg alone; its words alone; and the pages that each touches."""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks import ours, statements
from benchmarks.bench import Bench
from benchmarks.dataset import Query
from benchmarks.results import OURS, Finding
from benchmarks.server import Raw
from benchmarks.timing import Contestant, clocked, interleave

NAME = "hybrid"
VECTOR = f"{OURS}, vector leg"
WORDS = f"{OURS}, words"

# Statements whose pages are counted: each search touches about as many as the next.
_EXPLAINED = 20

_SENT: Mapping[str, Callable[[Query], statements.Sent]] = {
    VECTOR: statements.nearest,
    WORDS: statements.worded,
    OURS: statements.fused,
}
_NAMES = {"Shared Hit Blocks": "pages_in_buffers", "Shared Read Blocks": "pages_read"}


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

    contestants = {VECTOR: clocked(vector), WORDS: clocked(words), OURS: clocked(both)}
    step = bench.steps(len(queries))
    times = await interleave(contestants, len(queries), step=step)
    touched = await _pages(bench, queries[:_EXPLAINED])
    return [
        Finding(NAME, name, {"tenant": rows}, {**run.milliseconds(), **run.over(times[VECTOR]), **touched[name]})
        for name, run in times.items()
    ]


async def _pages(bench: Bench, queries: Sequence[Query]) -> Mapping[str, Mapping[str, float]]:
    """Count the pages of each way, in turn as they were timed: in shared_buffers, and outside of them."""
    contestants = {name: _explaining(bench.raw, queries, sent) for name, sent in _SENT.items()}
    runs = await interleave(contestants, len(queries))
    return {
        name: {_NAMES[key]: float(np.median([answer[key] for answer in run.answers])) for key in _NAMES}
        for name, run in runs.items()
    }


def _explaining(
    raw: Raw, queries: Sequence[Query], sent: Callable[[Query], statements.Sent]
) -> Contestant[Mapping[str, int]]:
    made = [sent(query) for query in queries]

    async def explain(number: int) -> Mapping[str, int]:
        sql, arguments = made[number]
        async with raw.tenant(queries[number].tenant.org_id) as connection:
            told = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *arguments)
        plan: dict[str, int] = json.loads(told)[0]["Plan"]
        return {key: plan[key] for key in _NAMES}

    return clocked(explain)
