"""Readers and writers of a database whose schema is being changed, and what they must find afterwards."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from sqlalchemy import text

from ibex_db import Database, ScopedSession

_VECTOR = str([1.0] + [0.0] * 383)

_WRITE_AGENT = text("INSERT INTO ibex_core.agents (org_id, name, slug) VALUES (:org, 'Robin', :mark)")
_WRITE_MEMORY = text(
    "INSERT INTO ibex_core.memories (org_id, agent_id, content, content_hash, category, embedding) "
    f"VALUES (:org, :agent, :mark, :hash, 'factual', CAST('{_VECTOR}' AS vector))"
)
_BUMP = text("UPDATE ibex_core.memories SET confidence = 0.9 WHERE org_id = :org AND content = :mark")
_AGENTS = text("SELECT org_id, slug AS mark FROM ibex_core.agents WHERE slug <> 'first'")
_MEMORIES = text("SELECT org_id, content AS mark FROM ibex_core.memories")


@dataclass
class Load:
    """Readers and writers in SQL that is valid before and after; every unit of work as a service runs it."""

    db: Database
    orgs: Sequence[tuple[UUID, UUID]]
    memories: bool
    acknowledged: dict[UUID, set[str]] = field(default_factory=dict[UUID, set[str]])
    failed: list[str] = field(default_factory=list[str])
    done: Counter[str] = field(default_factory=Counter[str])

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Work while the block runs: it begins after the first and ends after the last has worked."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for number in range(4):
                tasks.create_task(self._work(number, stop))
            try:
                await self._more()
                yield
                await self._more()
            finally:
                stop.set()

    async def _more(self) -> None:
        before = self.done.total()
        while self.done.total() < before + 12 and not self.failed:  # noqa: ASYNC110 - any of many tasks counts
            await asyncio.sleep(0.01)

    async def _work(self, number: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            org, agent = self.orgs[number % len(self.orgs)]
            try:
                if number % 2:
                    await self.db.run(org, self.read)
                else:
                    mark = f"{org}-{uuid4().hex}"
                    await self.db.run(org, self.write, agent, mark)
                    self.acknowledged.setdefault(org, set()).add(mark)
            except Exception as exc:  # noqa: BLE001 - each is a finding
                self.failed.append(f"{type(exc).__name__}: {exc}")
                return
            self.done["read" if number % 2 else "write"] += 1
            await asyncio.sleep(0.01)  # the migration is on this event loop too

    async def write(self, session: ScopedSession, agent: UUID, mark: str) -> None:
        org = UUID(mark[:36])
        if not self.memories:
            await session.execute(_WRITE_AGENT, {"org": org, "mark": mark})
            return
        values = {"org": org, "agent": agent, "mark": mark, "hash": hashlib.sha256(mark.encode()).hexdigest()}
        await session.execute(_WRITE_MEMORY, values)
        await session.execute(_BUMP, values)

    async def read(self, session: ScopedSession) -> None:
        before = {org: set(marks) for org, marks in self.acknowledged.items()}
        rows = (await session.execute(_MEMORIES if self.memories else _AGENTS)).all()
        seen = {row.org_id for row in rows}
        self.failed += [f"{len(seen)} organizations were shown to one"] if len(seen) > 1 else []
        there = {row.mark for row in rows}
        self.failed += [
            f"{org} misses {marks - there}" for org, marks in before.items() if org in seen and marks - there
        ]

    async def settle(self) -> None:
        """Every acknowledged write is there, with its history, and nothing has failed."""
        assert self.failed == []
        assert self.done["write"] > 0
        assert self.done["read"] > 0
        for org, _ in self.orgs:
            async with self.db.tenant(org) as session:
                there = {row.mark for row in await session.execute(_MEMORIES if self.memories else _AGENTS)}
                assert self.acknowledged.get(org, set()) - there == set()
                if self.memories:
                    versions = await session.execute(text("SELECT count(*) FROM ibex_core.memory_versions"))
                    assert versions.scalar_one() == 2 * len(there)


async def organizations(db: Database, count: int = 3) -> list[tuple[UUID, UUID]]:
    """Sign up organizations, each with an agent; return their ids."""
    made: list[tuple[UUID, UUID]] = []
    for _ in range(count):
        async with db.platform(reason="live upgrade tests: sign-up") as session:
            insert = "INSERT INTO ibex_core.organizations (name, slug) VALUES ('One', :slug) RETURNING id"
            org: UUID = (await session.execute(text(insert), {"slug": f"one-{uuid4().hex[:8]}"})).scalar_one()
        async with db.tenant(org) as session:
            insert = "INSERT INTO ibex_core.agents (org_id, name, slug) VALUES (:org, 'First', 'first') RETURNING id"
            made.append((org, (await session.execute(text(insert), {"org": org})).scalar_one()))
    return made
