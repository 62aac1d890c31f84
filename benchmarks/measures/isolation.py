"""Isolation under load: eight tenants, sixty-four tasks, ten connections; every row that comes back is looked at."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

from benchmarks.bench import Bench
from benchmarks.dataset import Array, K, Tenant
from benchmarks.results import OURS, Finding
from benchmarks.server import migrated, superuser
from ibex_db import Database, Memory, MemoryRepository

NAME = "isolation"

_TENANTS, _TASKS, _POOL = 8, 64, 10
_SEED = 7
_FRESH = 50


@dataclass
class Seen:
    """What was done and what came back.

    Attributes:
        acknowledged: ids that remember() gave back and whose transaction was committed, by tenant.
        counts: units of work, rows looked at, wrong rows.
    """

    acknowledged: dict[UUID, set[UUID]] = field(default_factory=dict[UUID, set[UUID]])
    counts: Counter[str] = field(default_factory=Counter[str])

    def look(self, tenant: Tenant, memory: Memory) -> None:
        """Check one row: its organization, its agent, and the tenant's name in its words."""
        self.counts["rows"] += 1
        right = (memory.org_id, memory.agent_id) == (tenant.org_id, tenant.agent_id)
        self.counts["wrong"] += not (right and memory.content.startswith(f"{tenant.org_id} "))


async def measure(bench: Bench) -> list[Finding]:
    """Read and write from all tasks, then count what is there past all policies."""
    tenants = [await bench.fresh_tenant() for _ in range(_TENANTS)]
    seen = Seen({tenant.org_id: set() for tenant in tenants})
    seconds = bench.size.isolation_seconds
    step = bench.steps(round(seconds))
    deadline = time.monotonic() + seconds
    async with (
        await migrated(bench.cluster, bench.database_name, pool_size=_POOL) as database,
        asyncio.TaskGroup() as group,
    ):
        for number in range(_TASKS):
            group.create_task(_task(bench, Load(database, tenants, seen, random.Random(_SEED + number), deadline)))
        for _ in range(round(seconds)):
            await asyncio.sleep(1)
            step()
    lost = 0
    async with superuser(bench.cluster, bench.database_name) as connection:
        for tenant in tenants:
            kept = await connection.fetch("SELECT id FROM ibex_core.memories WHERE org_id = $1", tenant.org_id)
            lost += len(seen.acknowledged[tenant.org_id] - {row["id"] for row in kept})
    values = {
        "wrong_rows": float(seen.counts["wrong"]),
        "lost_writes": float(lost),
        "rows_looked_at": float(seen.counts["rows"]),
        "acknowledged_writes": float(sum(len(ids) for ids in seen.acknowledged.values())),
        "units": float(seen.counts["units"]),
        "seconds": seconds,
    }
    return [Finding(NAME, OURS, {"tenants": _TENANTS, "tasks": _TASKS, "pool": _POOL}, values)]


@dataclass(frozen=True)
class Load:
    """What one task works with, until the deadline."""

    database: Database
    tenants: list[Tenant]
    seen: Seen
    draw: random.Random
    deadline: float

    async def unit(self, content: str, vector: Array) -> None:
        """Write, or look in one of three ways, for what any of the tenants may have written."""
        tenant = self.draw.choice(self.tenants)
        kept = None
        async with self.database.tenant(tenant.org_id) as session:
            memories = MemoryRepository(session)
            match self.draw.randrange(4):
                case 0:
                    words = f"{tenant.org_id} {content}"
                    kept = await memories.remember(
                        agent_id=tenant.agent_id, content=words, category="factual", embedding=vector
                    )
                    rows = [kept.memory]
                case 1:
                    rows = [hit.memory for hit in await memories.search(embedding=vector, limit=K)]
                case 2:
                    rows = [hit.memory for hit in await memories.search(text=content, limit=K)]
                case _:
                    rows = list(await memories.find(limit=K))
        self.seen.counts["units"] += 1
        for memory in rows:
            self.seen.look(tenant, memory)
        if kept is not None:
            self.seen.acknowledged[tenant.org_id].add(kept.memory.id)


async def _task(bench: Bench, load: Load) -> None:
    while True:
        for content, vector in zip(*bench.fresh_memories(_FRESH), strict=True):
            if time.monotonic() >= load.deadline:
                return
            await load.unit(content, vector)
