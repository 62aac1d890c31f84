"""Many at once: units of work a second over tasks and connections, and what stands in each other's way."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from benchmarks import handwritten, ours
from benchmarks.bench import Bench
from benchmarks.dataset import Query, Tenant, memory_id
from benchmarks.loops import Work, in_turn, loop, steps
from benchmarks.results import OURS, RAW, Finding
from benchmarks.server import Raw, analyzed, migrated
from ibex_db import Database

NAME = "concurrency"
ALONE, WRITER = "alone", "beside a writer"
SAME, APART = "same ten rows", "ten rows of its own tenant"


async def measure(bench: Bench) -> list[Finding]:
    """Search from many tasks; then search beside a writer; then count the same rows from many tasks."""
    return [*await _throughput(bench), *await _beside_a_writer(bench), *await _hot_rows(bench)]


async def _throughput(bench: Bench) -> list[Finding]:
    found: list[Finding] = []
    for pool in bench.size.pools:
        database = await migrated(bench.cluster, bench.database_name, pool_size=pool)
        async with database, Raw.connected(bench.cluster, bench.database_name, pool_size=pool) as raw:
            found += await _with_pool(bench, database, raw, pool)
    return found


async def _with_pool(bench: Bench, database: Database, raw: Raw, pool: int) -> list[Finding]:
    size = bench.size
    queries = [query for rows in size.tenants if rows <= 1_000 for query in bench.data.queries(rows)]

    async def by_hand(number: int) -> object:
        return await handwritten.search(raw, queries[number % len(queries)])

    async def mine(number: int) -> object:
        return await ours.search(database, queries[number % len(queries)])

    for number in range(len(queries)):  # the sizes of all scopes are known then, as in a service that has run a while
        await mine(number)
    works: dict[str, Work] = {RAW: by_hand, OURS: mine}
    step = bench.steps(len(size.tasks) * steps(len(works)))
    found: list[Finding] = []
    for tasks in size.tasks:
        loops = await in_turn(works, tasks, size.seconds, step)
        for name, done in loops.items():
            values = {"per_s": done.per_s, "of_raw": done.per_s / loops[RAW].per_s, "p95_ms": done.quantile(0.95)}
            found.append(Finding(NAME, name, {"what": "searches", "tasks": tasks, "pool": pool}, values))
    return found


async def _beside_a_writer(bench: Bench) -> list[Finding]:
    """Search four at a time, while one task of ours keeps remembering in the same tenant, and while none does."""
    tenant, queries = await _of_its_own(bench, min(bench.size.tenants, key=lambda rows: abs(rows - 1_000)))

    async def by_hand(number: int) -> object:
        return await handwritten.search(bench.raw, queries[number % len(queries)])

    async def mine(number: int) -> object:
        return await ours.search(bench.database, queries[number % len(queries)])

    works: dict[str, Work] = {RAW: by_hand, OURS: mine}
    found: list[Finding] = []
    step = bench.steps(4 * len(works))
    for turn, (name, work) in itertools.product(range(4), works.items()):
        writing = asyncio.create_task(_write(bench, tenant)) if turn % 2 else None
        done = await loop(work, 4, bench.size.seconds)
        values = {"p50_ms": done.quantile(0.5), "p95_ms": done.quantile(0.95), "per_s": done.per_s}
        if writing is not None:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        found.append(Finding(NAME, name, {"what": WRITER if turn % 2 else ALONE, "turn": turn}, values))
        step()
    return found


async def _of_its_own(bench: Bench, rows: int) -> tuple[Tenant, Sequence[Query]]:
    """Make a tenant that may be written to, the data set's being what others are measured on, and queries to it."""
    fresh = replace(await bench.fresh_tenant(), rows=rows)
    contents, vectors = bench.fresh_memories(rows)
    drafts = [ours.draft(fresh, content, vector) for content, vector in zip(contents, vectors, strict=True)]
    await ours.remember_many(bench.database, fresh, drafts)
    await analyzed(bench.cluster, bench.database_name)
    return fresh, [Query(fresh, vector, "", frozenset()) for vector in vectors]


async def _write(bench: Bench, tenant: Tenant) -> None:
    while True:
        contents, vectors = bench.fresh_memories(20)
        for content, vector in zip(contents, vectors, strict=True):
            await ours.remember(bench.database, tenant, content, vector)


async def _hot_rows(bench: Bench) -> list[Finding]:
    """Count ten hits from sixteen tasks: always the same ten, and each task ten of another tenant."""
    queries = bench.data.queries(min(bench.size.tenants, key=lambda rows: abs(rows - 100)))
    idents: list[list[UUID]] = [[memory_id(row) for row in query.truth] for query in queries]
    numbers = itertools.count()

    async def same(_number: int) -> object:
        return await ours.record(bench.database, queries[0].tenant, idents[0])

    async def apart(_number: int) -> object:
        at = next(numbers) % len(queries)
        return await ours.record(bench.database, queries[at].tenant, idents[at])

    works: dict[str, Work] = {SAME: same, APART: apart}
    loops = await in_turn(works, 16, bench.size.seconds, bench.steps(steps(len(works))))
    return [
        Finding(
            NAME,
            OURS,
            {"what": name, "tasks": 16, "pool": 10},
            {"per_s": done.per_s, "p95_ms": done.quantile(0.95), "of_apart": done.per_s / loops[APART].per_s},
        )
        for name, done in loops.items()
    ]
