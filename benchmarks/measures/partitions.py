"""What the number of partitions buys: the same table in one, in sixteen, in more."""

from contextlib import AsyncExitStack

from benchmarks.bench import Bench
from benchmarks.measures.growth import search
from benchmarks.results import OURS, Case, Finding
from benchmarks.tables import table

NAME = "partitions"


async def measure(bench: Bench) -> list[Finding]:
    """Build and search the middle one of the tables of the growth measure."""
    rows = bench.size.growth[len(bench.size.growth) // 2]
    found: list[Finding] = []
    async with AsyncExitStack() as exits:
        tables = [
            await exits.enter_async_context(table(bench, rows, partitions=count)) for count in bench.size.partitions
        ]
        for one in tables:
            values = {"build_seconds": one.build_seconds, "index_mb": one.index_bytes / 1e6}
            case: Case = {"what": "index", "rows": one.rows, "partitions": one.partitions}
            found.append(Finding(NAME, OURS, case, values))
        for tenant in tables[0].watched:
            asked = {one.partitions: one.queries(tenant, bench.size.searches) for one in tables}
            found += await search(bench, NAME, tables, asked, "partitions")
    return found
