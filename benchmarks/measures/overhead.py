"""What ibex-db adds to a search, and where: the same plan over the same rows, and nobody else in between.

Twice: call by call in turn, so that each side finds the processor's caches as the other has left them, and in blocks,
so that it finds them as it left them itself.  A service is between the two.

In blocks, three more by hand tell the parts apart. ``STATEMENT`` sends our own statement: what it adds to the plain one
is the server's planning. ``COMMANDS`` sends our BEGIN as well, which throws away what raw SQL of the transaction before
may have left. ``BUSY`` sends the plain statement from a client that computes between BEGIN and it: what it adds to the
server's time is what two processes on one processor take from each other's caches.
"""

import copy
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from benchmarks import handwritten, ours
from benchmarks.backends import Backends, watched
from benchmarks.bench import Bench
from benchmarks.results import OURS, RAW, Finding
from benchmarks.statements import nearest
from benchmarks.timing import clocked, interleave

NAME = "overhead"
IN_TURN, IN_BLOCKS = "call by call", "in blocks"
LEAN = f"{RAW}, id and content only"
STATEMENT = f"{RAW}, our statement"
COMMANDS = f"{RAW}, our BEGIN and statement"
BUSY = f"{RAW}, a busy client"

_BEGIN = "BEGIN; CLOSE ALL; DISCARD TEMP; COMMIT; BEGIN; SET LOCAL app.current_org_id = '{}'; SET LOCAL ROLE NONE"

_BLOCK, _LEAD = 20, 5

# As much of a processor as a search of ours takes of its client, beyond the plain one (the figures of this measure).
_COMPUTED = 0.0006
# What it computes with: rows as objects, which is what the time of ours goes to.
_ROW: dict[str, object] = {
    f"column_{number}": [UUID(int=number), datetime(2026, 1, 1, tzinfo=UTC), "text", {}][number % 4]
    for number in range(26)
}


async def measure(bench: Bench) -> list[Finding]:
    """Search each size of tenant, call by call and in blocks."""
    found: list[Finding] = []
    for rows in bench.size.tenants:
        query = bench.data.queries(rows)[0]
        await handwritten.search(bench.raw, query)  # so that each side has its connection
        await ours.search(bench.database, query)
        async with watched(bench.cluster, bench.database_name) as backends:
            found += await _at(bench, rows, backends)
    return found


async def _at(bench: Bench, rows: int, backends: Backends) -> list[Finding]:
    queries = bench.data.queries(rows)
    sql, _ = nearest(queries[0])
    made = [nearest(query)[1] for query in queries]

    async def raw(number: int) -> Sequence[int]:
        return await handwritten.search(bench.raw, queries[number])

    async def lean(number: int) -> Sequence[int]:
        return await handwritten.search(bench.raw, queries[number], lean=True)

    async def statement(number: int) -> Sequence[int]:
        async with bench.raw.tenant(queries[number].tenant.org_id) as connection:
            return [row["id"].int - 1 for row in await connection.fetch(sql, *made[number])]

    async def commands(number: int) -> Sequence[int]:
        async with bench.raw.tenant(queries[number].tenant.org_id, begin=_BEGIN) as connection:
            return [row["id"].int - 1 for row in await connection.fetch(sql, *made[number])]

    async def busy(number: int) -> Sequence[int]:
        return await handwritten.search(bench.raw, queries[number], meanwhile=_compute)

    async def mine(number: int) -> Sequence[int]:
        return await ours.search(bench.database, queries[number])

    works = {RAW: raw, OURS: mine, LEAN: lean, STATEMENT: statement, COMMANDS: commands, BUSY: busy}
    contestants = {name: clocked(work, backends.seconds) for name, work in works.items()}
    count, blocks = len(queries), -(-len(queries) // _BLOCK)
    two = {name: contestants[name] for name in (RAW, OURS)}
    found: list[Finding] = []
    for how, times in (
        (IN_TURN, await interleave(two, count, warm=count // 5, step=bench.steps(count))),
        (IN_BLOCKS, await interleave(contestants, count, warm=0, block=_BLOCK, lead=_LEAD, step=bench.steps(blocks))),
    ):
        found += [
            Finding(NAME, name, {"tenant": rows, "how": how}, {**run.milliseconds(), **run.over(times[RAW])})
            for name, run in times.items()
        ]
    return found


def _compute() -> None:
    end = time.perf_counter() + _COMPUTED
    while time.perf_counter() < end:
        copy.deepcopy(_ROW)
