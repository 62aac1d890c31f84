"""What a billion memories would take, by arithmetic from the largest table that was measured."""

import math

from benchmarks.markdown import table
from benchmarks.results import OURS, Results
from benchmarks.sizes import SIZES

BILLION = 1_000_000_000
# Memory for one build: what a partition's graph must fit in, or building slows down many times.
_BUILD_BYTES = 8 << 30
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
    fitting = _BUILD_BYTES / values["index_bytes_per_row"]
    needed = BILLION / fitting
    partitions = next((count for count in _PARTITION_CHOICES if count >= needed), _PARTITION_CHOICES[-1])
    workers = SIZES[str(results.environment["size"])].build_workers
    builders = f"{workers + 1} cores" if workers else "one core"
    hours = BILLION / values["build_rows_per_s"] / 3600
    lines += [
        [
            "building the vector index",
            f"{values['build_rows_per_s']:,.0f} a second",
            f"{hours:,.0f} hours of {builders}",
        ],
        [
            "partitions, so that a graph is built in 8 GB",
            f"{fitting / 1e6:.1f} million memories each",
            f"{needed:,.0f}, so {partitions}",
        ],
    ]
    lines += [_searches(results, rows, tenant) for tenant in _tenants(results)]
    return table(["", f"measured at {rows:,}", "at 1,000,000,000"], lines)


def _tenants(results: Results) -> list[int]:
    return list(dict.fromkeys(int(one.case["tenant"]) for one in results.of("growth", OURS, what="search")))


def _searches(results: Results, rows: int, tenant: int) -> list[str]:
    found = results.of("growth", OURS, what="search", tenant=tenant)
    smallest, largest = found[0], found[-1]
    tenfolds = math.log10(rows / int(smallest.case["rows"]))
    each = max((largest.values["p50_ms"] / smallest.values["p50_ms"]) ** (1 / tenfolds), 1.0)
    ahead = math.log10(BILLION / rows)
    return [
        f"search in a tenant of {tenant:,}",
        f"x {each:.2f} for each ten times",
        f"x {each:.2f}^{ahead:.1f} = {each**ahead:.1f}",
    ]
