"""One remember_many of many: does the process's memory stay flat while they pass?"""

import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.dataset import DIMENSIONS, Tenant, clustered
from benchmarks.results import OURS, Finding
from benchmarks.server import drop_vector_index, migrated, superuser
from benchmarks.words import content
from ibex_db import MemoryDraft, MemoryRepository

NAME = "streaming"

_DATABASE = "bench_streaming"
_BATCH = 1_000
_STATM = Path("/proc/self/statm")


async def measure(bench: Bench) -> list[Finding]:
    """Pass memories from a generator into a table without the vector index: it is the client that is looked at."""
    rows = bench.size.streamed
    step = bench.steps(rows // _BATCH)
    await bench.cluster.drop_database(_DATABASE)
    sizes: list[int] = []

    def note(_done: int) -> None:
        sizes.append(resident())
        step()

    async with await migrated(bench.cluster, _DATABASE) as database:
        tenant = await bench.fresh_tenant(database)
        async with superuser(bench.cluster, _DATABASE) as connection:
            await drop_vector_index(connection)
        gc.collect()
        before = resident()
        async with database.tenant(tenant.org_id) as session:
            done = await MemoryRepository(session).remember_many(_drafts(tenant, rows), progress=note)
    await bench.cluster.drop_database(_DATABASE)
    passed = rows * DIMENSIONS * 4
    # The first batches fill caches and the allocator's arenas; what grows after them grows with the rows.
    settled = sizes[max(len(sizes) // 10 - 1, 0)]
    values = {
        "created": float(done.created),
        "vectors_mb": passed / 1e6,
        "grown_mb": (sizes[-1] - before) / 1e6,
        "grown_after_a_tenth_mb": (sizes[-1] - settled) / 1e6,
        "bytes_kept_per_row": (sizes[-1] - settled) / rows,
    }
    return [Finding(NAME, OURS, {"rows": rows}, values)]


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
