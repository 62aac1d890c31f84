"""Whole tables of a given size, each in a database of its own, with the same few tenants among fillers."""

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import numpy as np

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.dataset import Query, Tenant, clustered, near, nearest
from benchmarks.homes import fresh_tenant
from benchmarks.server import PARTITIONS, Raw, build_vector_index, drop_vector_index, migrated, superuser
from benchmarks.words import question
from ibex_db import Database

_FILLER = 100
_NUMBERS = 20_000_000
# Heap, out of line and all indexes; each is measured as a whole.
_TABLE_SIZE = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relname LIKE 'memories_p%'"
_VERSIONS_SIZE = "SELECT pg_total_relation_size('ibex_core.memory_versions')"
_INDEX_SIZE = """SELECT sum(pg_relation_size(i.indexrelid)) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am a ON a.oid = c.relam JOIN pg_class t ON t.oid = i.indrelid
    WHERE a.amname = 'hnsw' AND t.relname LIKE 'memories_p%'"""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        rows: memories in it.
        partitions: hash partitions.
        database: open.
        name: of the database.
        watched: the tenants that every table has.
        others: all that the rest of the table is made of, of a hundred memories each.
        spare: a tenant without memories, to write to, in a partition of average size.
        build_seconds: of the vector index.
        index_bytes: of the vector index.
        table_bytes: of everything else: rows, and the other indexes.
        versions_bytes: of the memories' versions, one each.
        written_per_s: rows a second by remember_many, without the vector index.
    """

    rows: int
    partitions: int
    database: Database
    name: str
    watched: Sequence[Tenant]
    others: Sequence[Tenant]
    spare: Tenant
    build_seconds: float
    index_bytes: int
    table_bytes: int
    versions_bytes: int
    written_per_s: float

    def by_hand(self, bench: Bench) -> AbstractAsyncContextManager[Raw]:
        """Connect to it as a service does that is written by hand."""
        return Raw.connected(bench.cluster, self.name)

    def queries(self, tenant: Tenant, count: int) -> Sequence[Query]:
        """Return queries to a watched tenant: the same in every table."""
        return queries_to(tenant, count)

    def walk(self, count: int) -> Sequence[Query]:
        """Return a query to each of so many others, spread over the table; where there are fewer, in turns."""
        step = max(len(self.others) // count, 1)
        return [queries_to(self.others[at * step % len(self.others)], 1)[0] for at in range(count)]


def queries_to(tenant: Tenant, count: int) -> Sequence[Query]:
    """Return queries near memories of a tenant whose vectors are made of its number."""
    vectors = clustered(tenant.rows, tenant.number)
    places = np.random.default_rng(tenant.number).integers(tenant.rows, size=count)
    asked = near(vectors[places], tenant.number)
    return [
        Query(
            tenant,
            vector,
            question(tenant.first + int(place)),
            frozenset(tenant.first + at for at in nearest(vectors, vector)),
        )
        for place, vector in zip(places, asked, strict=True)
    ]


@asynccontextmanager
async def table(bench: Bench, rows: int, *, partitions: int = PARTITIONS) -> AsyncGenerator[Table]:
    """Make a table, and drop it at the end."""
    name = f"bench_{rows}_{partitions}"
    await bench.cluster.drop_database(name)
    tenants = list(_tenants(bench.size.growth_tenants, rows))
    step = bench.steps(rows)
    async with await migrated(bench.cluster, name, partitions=partitions) as database:
        async with superuser(bench.cluster, name) as connection:
            with bench.placement.crowded():
                await drop_vector_index(connection)
                start = time.perf_counter()
                for tenant in tenants:
                    await _fill(database, tenant, step)
                written = time.perf_counter()
                await build_vector_index(connection, workers=bench.size.build_workers)
                built = time.perf_counter()
            index_bytes = int(await connection.fetchval(_INDEX_SIZE))
            table_bytes = int(await connection.fetchval(_TABLE_SIZE)) - index_bytes
            versions_bytes = int(await connection.fetchval(_VERSIONS_SIZE))
        yield Table(
            rows,
            partitions,
            database,
            name,
            tenants[: len(bench.size.growth_tenants)],
            [tenant for tenant in tenants[len(bench.size.growth_tenants) :] if tenant.rows == _FILLER],
            (await fresh_tenant(bench, database, name, beside=rows // partitions))[0],
            built - written,
            index_bytes,
            table_bytes,
            versions_bytes,
            rows / (written - start),
        )
    await bench.cluster.drop_database(name)


def _tenants(watched: Sequence[int], rows: int) -> Iterator[Tenant]:
    first = 0
    for number in range(rows):
        count = watched[number] if number < len(watched) else min(_FILLER, rows - first)
        if count <= 0:
            return
        yield Tenant(_NUMBERS + number, count, first)
        first += count


async def _fill(database: Database, tenant: Tenant, step: Callable[[], None]) -> None:
    await ours.settle(database, [tenant])
    vectors = clustered(tenant.rows, tenant.number)
    rows = range(tenant.first, tenant.first + tenant.rows)
    await ours.remember_many(
        database, tenant, (ours.draft_of(tenant, row, vectors[row - tenant.first]) for row in rows)
    )
    for _ in rows:
        step()
