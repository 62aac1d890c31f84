"""One remember_many of many: does the process's memory stay flat while they pass?

The process is one of its own, where nothing has grown yet: the measures before have filled the harness's arenas.
"""

import asyncio
import gc
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.dataset import DIMENSIONS, Tenant, clustered
from benchmarks.results import OURS, Finding
from benchmarks.server import drop_vector_index, dsn, migrated, superuser
from benchmarks.words import content
from ibex_db import Database, MemoryDraft, MemoryRepository
from ibex_db_core.provisioning import SERVICE_LOGIN

NAME = "streaming"

_DATABASE = "bench_streaming"
_BATCH = 1_000
_RUN = "import sys; from benchmarks.measures.streaming import run; run(*sys.argv[1:])"
_STATM = Path("/proc/self/statm")


async def measure(bench: Bench) -> list[Finding]:
    """Pass memories from a generator into a table without the vector index: it is the client that is looked at."""
    rows = bench.size.streamed
    step = bench.steps(rows // _BATCH)
    await bench.cluster.drop_database(_DATABASE)
    async with await migrated(bench.cluster, _DATABASE) as database:
        tenant = await bench.fresh_tenant(database)
    async with superuser(bench.cluster, _DATABASE) as connection:
        await drop_vector_index(connection)
    address = dsn(bench.cluster.url(_DATABASE, user=SERVICE_LOGIN))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _RUN, address, str(tenant.number), str(rows)),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    sizes: list[int] = []
    async for line in process.stdout or asyncio.StreamReader():
        sizes.append(json.loads(line))
        step()
    if await process.wait() != 0:
        raise RuntimeError(f"{NAME} ended with {process.returncode}")
    async with superuser(bench.cluster, _DATABASE) as connection:
        created = await connection.fetchval("SELECT count(*) FROM ibex_core.memories")
    await bench.cluster.drop_database(_DATABASE)
    before, *sizes = sizes
    # The first batches fill caches and the allocator's arenas; what grows after them grows with the rows.
    settled = sizes[max(len(sizes) // 10 - 1, 0)]
    values = {
        "created": float(created),
        "vectors_mb": rows * DIMENSIONS * 4 / 1e6,
        "grown_mb": (sizes[-1] - before) / 1e6,
        "grown_after_a_tenth_mb": (sizes[-1] - settled) / 1e6,
        "bytes_kept_per_row": (sizes[-1] - settled) / rows,
    }
    return [Finding(NAME, OURS, {"rows": rows}, values)]


def run(dsn: str, tenant: str, rows: str) -> None:
    """Pass so many memories of a tenant, and print this process's size before the first and after each batch."""
    asyncio.run(_stream(dsn, Tenant(int(tenant), 0, 0), int(rows)))


async def _stream(dsn: str, tenant: Tenant, rows: int) -> None:

    def note(_done: int) -> None:
        print(resident(), flush=True)

    async with Database(dsn) as database, database.tenant(tenant.org_id) as session:
        await session.connection()
        gc.collect()
        note(0)
        await MemoryRepository(session).remember_many(_drafts(tenant, rows), progress=note)


def resident() -> int:
    """Return the bytes of this process that are in memory; where Linux does not tell, the most that ever were."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _drafts(tenant: Tenant, rows: int) -> Iterator[MemoryDraft]:
    for first in range(0, rows, _BATCH):
        vectors = clustered(_BATCH, first)
        for at in range(min(_BATCH, rows - first)):
            yield ours.draft(tenant, content(first + at), vectors[at])
