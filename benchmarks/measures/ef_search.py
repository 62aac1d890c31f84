"""What hnsw.ef_search buys in a tenant that the index answers: recall and time of the same statement."""

from collections.abc import Awaitable, Callable, Sequence

import pgvector

from benchmarks import handwritten
from benchmarks.bench import Bench
from benchmarks.dataset import K, mean_recall
from benchmarks.results import RAW, Finding
from benchmarks.timing import clocked, interleave

NAME = "ef_search"

_VALUES = (10, 40, 100, 200, 400)


async def measure(bench: Bench) -> list[Finding]:
    """Search the largest tenant with each setting, in turn."""
    rows = max(bench.size.tenants)
    queries = bench.data.queries(rows)

    def by(value: int) -> Callable[[int], Awaitable[Sequence[int]]]:
        async def search(number: int) -> Sequence[int]:
            query = queries[number]
            async with bench.raw.tenant(query.tenant.org_id) as connection:
                await connection.execute(f"SET LOCAL hnsw.ef_search = {value}")
                vector = pgvector.Vector(query.vector)
                found = await connection.fetch(handwritten.SEARCH[False], query.tenant.org_id, vector, K)
            return [row["id"].int - 1 for row in found]

        return search

    contestants = {str(value): clocked(by(value)) for value in _VALUES}
    times = await interleave(contestants, len(queries), step=bench.steps(len(queries)))
    found: list[Finding] = []
    for value in _VALUES:
        run = times[str(value)]
        values = {"recall": mean_recall(queries, run.answers), **run.milliseconds(), **run.over(times["100"])}
        found.append(Finding(NAME, RAW, {"tenant": rows, "ef_search": value}, values))
    return found
