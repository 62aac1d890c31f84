"""What row-level security costs: our own statements, as a service's login and as one that no policy binds.

Both logins have the same rights and get the same SQL with the same filter on
the organization; both send it through asyncpg, so that nothing else differs.
Each has several backends and uses them in turn: with one each, searches under
policies were once found 8 % faster than without, which several did not repeat.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack

from benchmarks import handwritten
from benchmarks.bench import Bench
from benchmarks.dataset import K, Query, Tenant, memory_id
from benchmarks.results import Finding
from benchmarks.server import BYPASS, Raw
from benchmarks.statements import Sent, nearest, rendered
from benchmarks.timing import clocked, interleave
from ibex_db_core.provisioning import SERVICE_LOGIN
from ibex_db_memory.search.ranking import HotWeights, statement as hot_statement

NAME = "rls"
ON, OFF = "policies on", "policies off"

_GET = f"SELECT {handwritten.COLUMNS} FROM ibex_core.memories WHERE org_id = $1 AND id = $2"
_FIND = f"""SELECT {handwritten.COLUMNS} FROM ibex_core.memories WHERE org_id = $1 AND created_at >= '-infinity'
    ORDER BY created_at DESC, id DESC LIMIT $2"""

_BACKENDS = 4
_WARM = 8 * _BACKENDS  # a backend settles on a plan after five times

# From a query, the SQL of one hot path and its arguments.
Path = Callable[[Query], Sent]
NONE: frozenset[str] = frozenset()


def _hot(query: Query) -> Sent:
    given: Mapping[str, object] = {"org_id": query.tenant.org_id, "limit": K, **HotWeights().parameters}
    return rendered(hot_statement(NONE), given)


def _get(query: Query) -> Sent:
    return _GET, (query.tenant.org_id, memory_id(min(query.truth)))


def _find(query: Query) -> Sent:
    return _FIND, (query.tenant.org_id, K)


def _count(query: Query) -> Sent:
    return f"{handwritten.RETRIEVED} RETURNING id", (
        query.tenant.org_id,
        [memory_id(row) for row in sorted(query.truth)],
    )


PATHS: Mapping[str, Path] = {
    "search": nearest,
    "hot": _hot,
    "get": _get,
    "find": _find,
    "record_retrieval": _count,
}


async def measure(bench: Bench) -> list[Finding]:
    """Run each hot query in tenants of each size, and an insert."""
    async with AsyncExitStack() as exits:
        logins: dict[str, list[Raw]] = {OFF: [], ON: []}
        for _ in range(_BACKENDS):
            for login, user in ((OFF, BYPASS), (ON, SERVICE_LOGIN)):
                opened = Raw.connected(bench.cluster, bench.database_name, pool_size=1, user=user)
                logins[login].append(await exits.enter_async_context(opened))
        found: list[Finding] = []
        for name, path in PATHS.items():
            for rows in bench.size.tenants:
                found += await _compare(bench, logins, name, rows, path)
        return found + await _insert(bench, logins)


async def _compare(
    bench: Bench, logins: Mapping[str, Sequence[Raw]], name: str, rows: int, path: Path
) -> list[Finding]:
    queries = bench.data.queries(rows)
    made = [path(query) for query in queries]

    def by(backends: Sequence[Raw]) -> Callable[[int], Awaitable[int]]:
        async def run(number: int) -> int:
            sql, arguments = made[number]
            async with backends[number % _BACKENDS].tenant(queries[number].tenant.org_id) as connection:
                return len(await connection.fetch(sql, *arguments))

        return run

    contestants = {login: clocked(by(backends)) for login, backends in logins.items()}
    times = await interleave(contestants, len(queries), warm=_WARM, step=bench.steps(len(queries)))
    return [
        Finding(
            NAME,
            login,
            {"query": name, "tenant": rows},
            {**run.milliseconds(), **run.over(times[OFF]), "rows": float(sum(run.answers))},
        )
        for login, run in times.items()
    ]


async def _insert(bench: Bench, logins: Mapping[str, Sequence[Raw]]) -> list[Finding]:
    tenant: Tenant = await bench.fresh_tenant()

    def by(backends: Sequence[Raw]) -> Callable[[int], Awaitable[int]]:
        fresh = iter(zip(*bench.fresh_memories(_WARM + bench.size.writes), strict=True))

        async def run(number: int) -> int:
            await handwritten.insert(backends[number % _BACKENDS], tenant, handwritten.row_of(tenant, *next(fresh)))
            return 1

        return run

    contestants = {login: clocked(by(backends)) for login, backends in logins.items()}
    times = await interleave(contestants, bench.size.writes, warm=_WARM, step=bench.steps(bench.size.writes))
    return [
        Finding(NAME, login, {"query": "insert"}, {**run.milliseconds(), **run.over(times[OFF])})
        for login, run in times.items()
    ]
