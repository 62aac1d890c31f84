"""What a billion memories would take, by arithmetic from the tables that were measured."""

import math
from collections.abc import Sequence

from benchmarks.markdown import table
from benchmarks.measures.growth import tenfold
from benchmarks.results import OURS, Finding, Results
from benchmarks.sizes import SIZES

BILLION = 1_000_000_000
# Memory for one build: what a partition's graph must fit in, or building slows down many times.
_BUILD_BYTES = 8 << 30
# A graph that is being built takes more than its index does on disk: of 384 numbers and m = 16, 8 MB of
# maintenance_work_mem were full after 3,726 rows.
_GRAPH_BYTES = (8 << 20) / 3726
_PARTITION_CHOICES = [2**power for power in range(11)]


def projection(results: Results) -> str:
    """Multiply what a memory takes, and extend the growth of search by its own law, tenfold by tenfold."""
    built = results.of("growth", OURS, what="index")
    if not built:
        return ""
    largest = max(built, key=lambda one: int(one.case["rows"]))
    rows, values = int(largest.case["rows"]), largest.values
    lines = [
        [name, f"{values[key]:,.0f} bytes", f"{values[key] * BILLION / 1e12:.1f} TB"]
        for name, key in (
            ("vector index", "index_bytes_per_row"),
            ("rows and other indexes", "table_bytes_per_row"),
            ("versions", "versions_bytes_per_row"),
        )
    ]
    fitting = _BUILD_BYTES / _GRAPH_BYTES
    needed = BILLION / fitting
    partitions = next((count for count in _PARTITION_CHOICES if count >= needed), _PARTITION_CHOICES[-1])
    workers = SIZES[str(results.environment["size"])].build_workers
    builders = f"{workers + 1} cores" if workers else "one core"
    hours = _hours(values["build_rows_per_s"])
    slower = _slower(built, BILLION / partitions)
    lines += [
        [
            "writing without the vector index",
            f"{values['written_per_s']:,.0f} a second",
            f"{_hours(values['written_per_s']):,.0f} hours of one client",
        ],
        [
            "building the vector index",
            f"{values['build_rows_per_s']:,.0f} a second, {rows / int(largest.case['partitions']):,.0f} to a graph",
            f"{hours:,.0f} hours of {builders}; {hours * slower:,.0f} if it slows down as it did from graph to graph",
        ],
        [
            "partitions, so that a graph is built in 8 GB",
            f"{fitting / 1e6:.1f} million memories each",
            f"{needed:,.0f}, so {partitions}",
        ],
    ]
    lines += [_searches(results, rows, tenant, how) for tenant, how in _tenants(results)]
    return table(["", f"measured at {rows:,}", "at 1,000,000,000"], lines)


def _hours(per_s: float) -> float:
    return BILLION / per_s / 3600


def _slower(built: Sequence[Finding], rows: float) -> float:
    """Return how many times as long a row takes in a graph of so many, by the power law of the last two measured."""
    graphs = sorted(
        (int(one.case["rows"]) / int(one.case["partitions"]), one.values["build_rows_per_s"]) for one in built
    )
    if len(graphs) < 2:
        return 1.0
    (small, fast), (large, slow) = graphs[-2:]
    power = math.log(fast / slow) / math.log(large / small)
    return max(float((rows / large) ** power), 1.0)


def _tenants(results: Results) -> list[tuple[int, str]]:
    found = results.of("growth", OURS, what="search")
    return list(dict.fromkeys((int(one.case["tenant"]), str(one.case.get("how", ""))) for one in found))


def _searches(results: Results, rows: int, tenant: int, how: str) -> list[str]:
    of = results.of("growth", OURS, what="search", tenant=tenant)
    found = [one for one in of if one.case.get("how", "") == how]
    each = max(tenfold(found[0], found[-1]), 1.0)
    ahead = math.log10(BILLION / rows)
    return [
        f"search in a tenant of {tenant:,}" + (f", {how}" if how else ""),
        f"x {each:.2f} for each ten times",
        f"x {each:.2f}^{ahead:.1f} = {each**ahead:.1f}",
    ]
