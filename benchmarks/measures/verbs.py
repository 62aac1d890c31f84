"""The repository verbs: ours, guarded by tenant, over rivals that know no tenants; see benchmarks.notes."""

from collections.abc import Awaitable, Callable, Mapping

from benchmarks import notes, ours
from benchmarks.bench import Bench
from benchmarks.dataset import Array, K, Query, memory_id
from benchmarks.results import OURS, Finding
from benchmarks.server import superuser
from benchmarks.timing import clocked, interleave
from ibex_db import Memory, MemoryRepository

NAME = "verbs"
PLAIN = "SQLAlchemy with pgvector"
ALCHEMY = "advanced-alchemy"

_LISTED = 20

Verb = Callable[[int], Awaitable[int]]


async def measure(bench: Bench) -> list[Finding]:
    """Run each verb in tenants of about a hundred memories, each in a transaction of its own."""
    rows = min(bench.size.tenants, key=lambda rows: abs(rows - 100))
    queries = bench.data.queries(rows)
    async with superuser(bench.cluster, bench.database_name) as connection:
        await notes.make(connection, [tenant for tenant in bench.data.tenants if tenant.rows <= rows])
    found: list[Finding] = []
    async with notes.engine(bench.cluster.url(bench.database_name)) as engine:
        plain, alchemy = notes.Plain(engine), notes.Alchemy(engine)
        asked = [(query.tenant, memory_id(min(query.truth)), query) for query in queries]
        fresh = iter(zip(*bench.fresh_memories(6 * len(queries)), strict=True))
        contests: Mapping[str, Mapping[str, Verb]] = {
            "get": {
                OURS: lambda at: _get(bench, asked[at][2]),
                PLAIN: lambda at: plain.get(*asked[at][:2]),
                ALCHEMY: lambda at: alchemy.get(*asked[at][:2]),
            },
            "list": {
                OURS: lambda at: _list(bench, asked[at][2]),
                PLAIN: lambda at: plain.list(asked[at][0], _LISTED),
                ALCHEMY: lambda at: alchemy.list(asked[at][0], _LISTED),
            },
            "add": {
                OURS: lambda at: _add(bench, asked[at][2], *next(fresh)),
                PLAIN: lambda at: plain.add(notes.new_note(asked[at][0], *next(fresh))),
                ALCHEMY: lambda at: alchemy.add(notes.new_note(asked[at][0], *next(fresh))),
            },
            "search": {
                OURS: lambda at: _search(bench, asked[at][2]),
                PLAIN: lambda at: plain.search(asked[at][0], asked[at][2].vector, K),
            },
        }
        for verb, contestants in contests.items():
            shots = {name: clocked(work) for name, work in contestants.items()}
            times = await interleave(shots, len(queries), step=bench.steps(len(queries)))
            found += [
                Finding(
                    NAME,
                    name,
                    {"verb": verb},
                    {**run.milliseconds(), **run.over(times[PLAIN]), "rows": sum(run.answers) / len(queries)},
                )
                for name, run in times.items()
            ]
    return found


async def _get(bench: Bench, query: Query) -> int:
    async with bench.database.tenant(query.tenant.org_id) as session:
        return len([await MemoryRepository(session).get(memory_id(min(query.truth)))])


async def _list(bench: Bench, query: Query) -> int:
    async with bench.database.tenant(query.tenant.org_id) as session:
        return len(await MemoryRepository(session).find(limit=_LISTED))


async def _add(bench: Bench, query: Query, content: str, vector: Array) -> int:
    async with bench.database.tenant(query.tenant.org_id) as session:
        memory = Memory(agent_id=query.tenant.agent_id, content=content, category="factual", embedding=vector.tolist())
        await MemoryRepository(session).add(memory)
    return 1


async def _search(bench: Bench, query: Query) -> int:
    return len(await ours.search(bench.database, query))
