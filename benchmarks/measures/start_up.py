"""Start-up: importing, the first query with what it imports, and without, each in an interpreter of its own."""

import asyncio
import json
import sys
import tempfile
from typing import Any

from benchmarks.bench import Bench
from benchmarks.results import OURS, RAW, Finding
from benchmarks.server import dsn
from benchmarks.timing import Contestant, Shot, interleave
from ibex_db_core.provisioning import SERVICE_LOGIN

NAME = "start_up"
DRIVERS = "sqlalchemy.ext.asyncio, asyncpg"

_AROUND = """
import sys, time
{before}
start = time.perf_counter()
{code}
print('{{"seconds": %f, "modules": %d}}' % (time.perf_counter() - start, len(sys.modules)))
"""
_IMPORT_OURS = """
import asyncio, uuid
from ibex_db import Database, MemoryRepository
"""
_OURS = """
async def main():
    async with Database({dsn!r}) as db, db.tenant(uuid.UUID({org!r})) as session:
        assert len(await MemoryRepository(session).find(limit=10)) == 10
asyncio.run(main())
"""
_IMPORT_RAW = """
import asyncio, uuid, asyncpg
"""
_RAW = """
async def main():
    org = uuid.UUID({org!r})
    pool = await asyncpg.create_pool({dsn!r}, min_size=1)
    async with pool.acquire() as c, c.transaction():
        await c.execute(f"SET LOCAL app.current_org_id = '{{org}}'")
        sql = (
            "SELECT id, content FROM ibex_core.memories WHERE org_id = $1 AND created_at >= '-infinity' "
            "ORDER BY created_at DESC, id DESC LIMIT 10"
        )
        assert len(await c.fetch(sql, org)) == 10
    await pool.close()
asyncio.run(main())
"""


async def measure(bench: Bench) -> list[Finding]:
    """Import ours and what it stands on, in turn; then connect and ask."""
    url = bench.cluster.url(bench.database_name, user=SERVICE_LOGIN)
    where = {"dsn": dsn(url), "org": str(bench.data.tenants[0].org_id)}
    raw, mine = _RAW.format(**where), _OURS.format(**where)
    cases = {
        "import": {DRIVERS: ("", f"import {DRIVERS}"), OURS: ("", "import ibex_db")},
        "import and first query": {RAW: ("", _IMPORT_RAW + raw), OURS: ("", _IMPORT_OURS + mine)},
        "first query, when all is imported": {RAW: (_IMPORT_RAW, raw), OURS: (_IMPORT_OURS, mine)},
    }
    found: list[Finding] = []
    for what, codes in cases.items():
        contestants = {name: _fresh(*code) for name, code in codes.items()}
        times = await interleave(contestants, bench.size.starts, warm=1, step=bench.steps(bench.size.starts))
        base = next(iter(times.values()))
        for name, run in times.items():
            values = {**run.milliseconds(), **run.over(base), "modules": float(run.answers[-1])}
            found.append(Finding(NAME, name, {"what": what}, values))
    return found


def _fresh(before: str, code: str) -> Contestant[int]:
    """Run code in a fresh interpreter; ``before`` is run first and not timed."""

    async def shoot(_number: int) -> Shot[int]:
        with tempfile.TemporaryDirectory() as elsewhere:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _AROUND.format(before=before, code=code)),
                cwd=elsewhere,
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await process.communicate()
        answer: dict[str, Any] = json.loads(said)
        return Shot(float(answer["seconds"]), int(answer["modules"]))

    return shoot
