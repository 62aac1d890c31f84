"""What hnsw's ef_construction buys: building, writing into what is built, and recall in tenants that it answers.

The recall is that of the plain statement at ``ef_search`` 100: no scan makes up for a graph that lost a topic.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks import handwritten, homes, ours
from benchmarks.bench import Bench
from benchmarks.dataset import Tenant, mean_recall
from benchmarks.results import OURS, RAW, Finding
from benchmarks.server import build_vector_index, drop_vector_index, superuser
from benchmarks.timing import clocked, interleave
from ibex_db_memory.search.plan import EXACT_UP_TO

NAME = "construction"

_VALUES = (64, 128, 200)
_WRITES = 4


async def measure(bench: Bench) -> list[Finding]:
    """Build the index of the data set anew with each value, write many into its fullest partition, and search."""
    tenant, beside = await homes.fresh_tenant(bench, bench.database, bench.database_name, beside=bench.data.rows)
    large = [rows for rows in bench.size.tenants if rows > EXACT_UP_TO]
    step = bench.steps(len(_VALUES) * (len(large) + 1 + _WRITES))
    found: list[Finding] = []
    for value in random.Random(NAME).sample(_VALUES, len(_VALUES)):
        async with superuser(bench.cluster, bench.database_name) as connection:
            with bench.placement.crowded():
                await drop_vector_index(connection)
                start = time.perf_counter()
                await build_vector_index(connection, workers=bench.size.build_workers, ef_construction=value)
                built = time.perf_counter() - start
        step()
        for rows in large:
            found.append(await _searched(bench, rows, value))
            step()
        rates = [await _written(bench, tenant, step) for _ in range(_WRITES)]
        values = {
            "build_seconds": built,
            "written_per_s": statistics.median(rates),
            "slowest_per_s": min(rates),
            "fastest_per_s": max(rates),
        }
        found.append(Finding(NAME, OURS, {"ef_construction": value, "beside rows": beside}, values))
    return sorted(found, key=lambda one: int(one.case["ef_construction"]))


async def _written(bench: Bench, tenant: Tenant, step: Callable[[], None]) -> float:
    """Write a batch; return its rows a second."""
    fresh = zip(*bench.fresh_memories(bench.size.batch), strict=True)
    drafts = [ours.draft(tenant, said, vector) for said, vector in fresh]
    start = time.perf_counter()
    await ours.remember_many(bench.database, tenant, drafts)
    step()
    return bench.size.batch / (time.perf_counter() - start)


async def _searched(bench: Bench, rows: int, value: int) -> Finding:
    queries = bench.data.queries(rows)

    async def search(number: int) -> Sequence[int]:
        return await handwritten.search(bench.raw, queries[number])

    run = (await interleave({RAW: clocked(search)}, len(queries)))[RAW]
    return Finding(
        NAME,
        RAW,
        {"ef_construction": value, "tenant": rows},
        {"recall": mean_recall(queries, run.answers), **run.milliseconds()},
    )
