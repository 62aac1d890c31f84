"""Cost as the table grows: the same tenants in tables of several sizes, side by side on one server."""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Literal

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.dataset import Query, Tenant, mean_recall, memory_id
from benchmarks.results import OURS, Case, Finding
from benchmarks.server import read_through
from benchmarks.tables import Table, table
from benchmarks.timing import Times, clocked, interleave
from ibex_db import MemoryRepository

NAME = "growth"

SAME, ANOTHER = "the same tenant", "another tenant each time"

Work = Callable[[int], Awaitable[Sequence[int]]]


async def measure(bench: Bench) -> list[Finding]:
    """Search, remember, take the hot ones and count, in every table in turn."""
    found: list[Finding] = []
    async with AsyncExitStack() as exits:
        tables = [await exits.enter_async_context(table(bench, rows)) for rows in bench.size.growth]
        found += [_building(one) for one in tables]
        for tenant in tables[0].watched:
            asked = {one.rows: one.queries(tenant, bench.size.searches) for one in tables}
            found += await search(bench, NAME, tables, asked, "rows")
            found += await _compare(bench, tables, "hot", tenant, {one.rows: _hot(one, tenant) for one in tables})
            found += await _compare(bench, tables, "record", tenant, {one.rows: _record(one, tenant) for one in tables})
        for one in tables:  # nobody has looked at their other tenants since they were loaded
            await read_through(bench.cluster, one.name)
        walks = {one.rows: one.walk(bench.size.searches) for one in tables}
        found += await search(bench, NAME, tables, walks, "rows", whose=ANOTHER)
        found += await _compare(bench, tables, "remember", None, {one.rows: _remember(bench, one) for one in tables})
    return found


def tenfold(small: Finding, large: Finding) -> float:
    """Return how many times as long the larger table takes, for each ten times the rows."""
    tenfolds = math.log10(int(large.case["rows"]) / int(small.case["rows"]))
    return float((large.values["p50_ms"] / small.values["p50_ms"]) ** (1 / tenfolds))


def _building(one: Table) -> Finding:
    values = {
        "build_seconds": one.build_seconds,
        "build_rows_per_s": one.rows / one.build_seconds,
        "index_mb": one.index_bytes / 1e6,
        "index_bytes_per_row": one.index_bytes / one.rows,
        "table_bytes_per_row": one.table_bytes / one.rows,
        "versions_bytes_per_row": one.versions_bytes / one.rows,
        "written_per_s": one.written_per_s,
    }
    return Finding(NAME, OURS, {"what": "index", "rows": one.rows, "partitions": one.partitions}, values)


async def search(
    bench: Bench,
    measure: str,
    tables: Sequence[Table],
    asked: Mapping[int, Sequence[Query]],
    by: Literal["rows", "partitions"],
    *,
    whose: str = SAME,
) -> list[Finding]:
    """Search every table in turn; findings name the table by its rows or its partitions.

    Args:
        bench: the run.
        measure: whose findings these are.
        tables: to search.
        asked: the queries of each table, by its rows or its partitions.
        by: which of the two.
        whose: of the same tenant, which is in every cache after the rounds that are not timed; or each of another one,
            which nobody has searched yet where the table is large.  Those scopes are not counted first: in a small
            table they would be known, in a large one not.
    """

    def of(one: Table) -> Work:
        async def work(number: int) -> Sequence[int]:
            return await ours.search(one.database, asked[getattr(one, by)][number], exact=whose == ANOTHER)

        return work

    contestants = {str(getattr(one, by)): clocked(of(one)) for one in tables}
    rounds = bench.size.searches
    times = await interleave(contestants, rounds, warm=rounds if whose == SAME else 0, step=bench.steps(rounds))
    found: list[Finding] = []
    for one in tables:
        run, queries = times[str(getattr(one, by))], asked[getattr(one, by)]
        case: Case = {
            "what": "search",
            "rows": one.rows,
            "partitions": one.partitions,
            "tenant": queries[0].tenant.rows,
        }
        case = case if whose == SAME else {**case, "how": whose}
        found.append(Finding(measure, OURS, case, {"recall": mean_recall(queries, run.answers), **_values(run, times)}))
    return found


async def _compare(
    bench: Bench, tables: Sequence[Table], what: str, tenant: Tenant | None, works: Mapping[int, Work]
) -> list[Finding]:
    rounds = bench.size.searches if tenant is not None else bench.size.writes
    contestants = {str(rows): clocked(work) for rows, work in works.items()}
    times = await interleave(contestants, rounds, warm=rounds // 2, step=bench.steps(rounds))
    found: list[Finding] = []
    for one in tables:
        case: Case = {"what": what, "rows": one.rows, "partitions": one.partitions}
        if tenant is not None:
            case = {**case, "tenant": tenant.rows}
        found.append(Finding(NAME, OURS, case, _values(times[str(one.rows)], times)))
    return found


def _values(run: Times[Sequence[int]], times: Mapping[str, Times[Sequence[int]]]) -> dict[str, float]:
    return {**run.milliseconds(), **run.over(next(iter(times.values())))}


def _hot(one: Table, tenant: Tenant) -> Work:
    async def work(_number: int) -> Sequence[int]:
        async with one.database.tenant(tenant.org_id) as session:
            return [hot.memory.id.int - 1 for hot in await MemoryRepository(session).hot(tenant.agent_id)]

    return work


def _record(one: Table, tenant: Tenant) -> Work:
    async def work(number: int) -> Sequence[int]:
        rows = [tenant.first + (number * 10 + at) % tenant.rows for at in range(10)]
        await ours.record(one.database, tenant, [memory_id(row) for row in rows])
        return rows

    return work


def _remember(bench: Bench, one: Table) -> Work:
    fresh = iter(zip(*bench.fresh_memories(2 * bench.size.writes), strict=True))

    async def work(_number: int) -> Sequence[int]:
        kept = await ours.remember(one.database, one.spare, *next(fresh))
        return [kept.memory.id.int]

    return work
