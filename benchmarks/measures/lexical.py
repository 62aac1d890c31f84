"""Search by words: ours, under row-level security, over the same statement by a login that no policy binds.

That login calls a copy of the function memories_bm25 with the rights of its caller, so that no policy is looked at
inside it either. ``naive`` is what one writes first, under the policies: ``@@`` is not leakproof, so an index of words
is not used, and every row of the tenant is read instead.
"""

from collections.abc import Awaitable, Callable, Sequence

from benchmarks import handwritten, ours
from benchmarks.bench import Bench
from benchmarks.dataset import K, Query
from benchmarks.results import OURS, Finding
from benchmarks.server import BYPASS, Raw, superuser
from benchmarks.statements import MEAN_LENGTH, Sent, worded
from benchmarks.timing import clocked, interleave
from ibex_db_memory.search.lexical import K1, B

NAME = "lexical"
FREE = "our statement, policies off"
BOUND = "our statement, policies on"
NAIVE = "hand-written BM25 over search_vector, policies on"

# In larger tenants the naive way takes seconds a search.
_NAIVE_UP_TO = 10_000

_FUNCTION, _COPY = "ibex_core.memories_bm25", "public.bench_bm25"
_DEFINITION = "SELECT pg_get_functiondef(to_regproc($1))"

# As it is told everywhere: each row that has a word is read, words and all.
_NAIVE = f"""
WITH terms AS (
    SELECT array_agg(DISTINCT quote_literal(lexeme)::tsquery) AS each,
        string_agg(DISTINCT quote_literal(lexeme), ' | ')::tsquery AS any_of
    FROM unnest(tsvector_to_array(to_tsvector('english', $2))) AS lexeme
), found AS MATERIALIZED (
    SELECT m.id, m.search_vector || ''::tsvector AS words, octet_length(m.content) / 10.0::float8 AS length
    FROM ibex_core.memories m
    WHERE m.org_id = $1 AND m.search_vector @@ (SELECT any_of FROM terms)
), used AS MATERIALIZED (
    SELECT term.number, ts_rank_cd('{{1, 1, 1, 1}}', found.words, term.query)::float8 AS tf, found.id, found.length
    FROM terms, unnest(terms.each) WITH ORDINALITY AS term (query, number)
    JOIN found ON found.words @@ term.query
), weighed AS (
    SELECT number, ln(1 + (greatest($3::bigint - count(*), 0) + 0.5::float8) / (count(*) + 0.5::float8)) AS idf
    FROM used GROUP BY number
), best AS (
    SELECT used.id,
        sum(idf * used.tf * ({K1} + 1) / (used.tf + {K1} * (1 - {B} + {B} * used.length / {MEAN_LENGTH}::float8)))
        AS score
    FROM used JOIN weighed USING (number) GROUP BY used.id ORDER BY score DESC, used.id LIMIT $4
)
SELECT {", ".join(f"m.{name.strip()}" for name in handwritten.COLUMNS.split(","))}, best.score
FROM best JOIN ibex_core.memories m ON m.org_id = $1 AND m.id = best.id
WHERE m.status = 'active' AND m.deleted_at IS NULL AND (m.expires_at IS NULL OR m.expires_at > now())
ORDER BY best.score DESC, m.id
"""


async def measure(bench: Bench) -> list[Finding]:
    """Search tenants of each size for four words that one of their memories says."""
    async with superuser(bench.cluster, bench.database_name) as connection:
        made = str(await connection.fetchval(_DEFINITION, _FUNCTION))
        await connection.execute(made.replace(_FUNCTION, _COPY).replace("SECURITY DEFINER", "SECURITY INVOKER"))
    async with (
        Raw.connected(bench.cluster, bench.database_name, pool_size=1, user=BYPASS) as free,
        # As fresh as the other; and the naive way has one of its own, or it would keep this one's caches warm.
        Raw.connected(bench.cluster, bench.database_name, pool_size=1) as bound,
        Raw.connected(bench.cluster, bench.database_name, pool_size=1) as naive,
    ):
        return [finding for rows in bench.size.tenants for finding in await _at(bench, free, bound, naive, rows)]


async def _at(bench: Bench, free: Raw, bound: Raw, naive: Raw, rows: int) -> list[Finding]:
    queries = bench.data.queries(rows)

    async def mine(number: int) -> Sequence[int]:
        return await ours.search(bench.database, queries[number], text=True, vector=False)

    contestants = {
        FREE: clocked(_by(free, queries, _copied)),
        BOUND: clocked(_by(bound, queries, worded)),
        OURS: clocked(mine),
    }
    if rows <= _NAIVE_UP_TO:
        contestants[NAIVE] = clocked(_by(naive, queries, _naive))
    times = await interleave(contestants, len(queries), step=bench.steps(len(queries)))
    return [
        Finding(
            NAME,
            name,
            {"tenant": rows},
            {
                **run.milliseconds(),
                **run.over(times[FREE]),
                "rows": sum(len(answer) for answer in run.answers) / len(queries),
            },
        )
        for name, run in times.items()
    ]


def _by(
    raw: Raw, queries: Sequence[Query], asked: Callable[[Query], Sent]
) -> Callable[[int], Awaitable[Sequence[int]]]:
    made = [asked(query) for query in queries]

    async def search(number: int) -> Sequence[int]:
        sql, arguments = made[number]
        async with raw.tenant(queries[number].tenant.org_id) as connection:
            return [hit["id"].int - 1 for hit in await connection.fetch(sql, *arguments)]

    return search


def _copied(query: Query) -> Sent:
    sql, arguments = worded(query)
    return sql.replace(_FUNCTION, _COPY), arguments


def _naive(query: Query) -> Sent:
    return _NAIVE, (query.tenant.org_id, query.text, query.tenant.rows, K)
