"""Counting the ten hits of a search: what it costs beside the search, and whether every update is HOT."""

from benchmarks import handwritten, ours
from benchmarks.bench import Bench
from benchmarks.dataset import memory_id
from benchmarks.results import OURS, RAW, Finding
from benchmarks.server import Raw, migrated, superuser
from benchmarks.timing import clocked, interleave
from ibex_db import Database

NAME = "bookkeeping"
SEARCHED = f"{OURS}, the search alone"
TOGETHER = f"{OURS}, search and bookkeeping in one transaction"

_UPDATES = """SELECT coalesce(sum(n_tup_upd), 0), coalesce(sum(n_tup_hot_upd), 0) FROM pg_stat_all_tables
    WHERE schemaname = 'ibex_core' AND relname LIKE 'memories_p%'"""


async def measure(bench: Bench) -> list[Finding]:
    """Search, then count, for tenants of each size: in one transaction, and as one of its own."""
    before = await _updates(bench)
    # Connections of its own: a backend reports all that it has done when it ends.
    async with (
        await migrated(bench.cluster, bench.database_name) as database,
        Raw.connected(bench.cluster, bench.database_name) as raw,
    ):
        found = [finding for rows in bench.size.tenants for finding in await _at(bench, database, raw, rows)]
    after = await _updates(bench)
    updates, hot = after[0] - before[0], after[1] - before[1]
    return [*found, Finding(NAME, OURS, {"updates": "all"}, {"updates": float(updates), "hot_share": hot / updates})]


async def _at(bench: Bench, database: Database, raw: Raw, rows: int) -> list[Finding]:
    queries = bench.data.queries(rows)
    idents = [[memory_id(row) for row in sorted(query.truth)] for query in queries]

    async def search(number: int) -> int:
        return len(await ours.search(database, queries[number]))

    async def count(number: int) -> int:
        return await ours.record(database, queries[number].tenant, idents[number])

    async def by_hand(number: int) -> int:
        return await handwritten.record(raw, queries[number].tenant.org_id, idents[number])

    async def together(number: int) -> int:
        return await ours.search_and_record(database, queries[number])

    contestants = {
        SEARCHED: clocked(search),
        TOGETHER: clocked(together),
        OURS: clocked(count),
        RAW: clocked(by_hand),
    }
    times = await interleave(contestants, len(queries), step=bench.steps(len(queries)))
    return [
        Finding(
            NAME,
            name,
            {"tenant": rows},
            {
                **run.milliseconds(),
                **run.over(times[RAW]),
                "of_search": run.p50 / times[SEARCHED].p50,
                "added_to_search": times[TOGETHER].p50 / times[SEARCHED].p50 - 1,
                "counted": float(sum(run.answers)),
            },
        )
        for name, run in times.items()
    ]


async def _updates(bench: Bench) -> tuple[int, int]:
    """Return how many rows were updated so far, and how many of them without touching an index."""
    async with superuser(bench.cluster, bench.database_name) as connection:
        updated, hot = await connection.fetchrow(_UPDATES) or (0, 0)
    return int(updated), int(hot)
