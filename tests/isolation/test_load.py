"""Rule 7 under load: 8 tenants, 64 tasks, a pool of 10; no wrong row, and every acknowledged write is there.

IBEX_LOAD_ROUNDS=500 makes it longer: units of work per task.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest
from bouncer import Route
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from two import VECTOR, sign_up

from ibex_db import Agent, AgentRepository, Database, DatabaseError, EngineSettings, Memory, MemoryRepository
from ibex_db_core.testing import TestDatabase

TENANTS = 8
TASKS = 64
ROUNDS = int(os.environ.get("IBEX_LOAD_ROUNDS", "10"))
POOL = EngineSettings(pool_size=10, max_overflow=0, pool_timeout=120.0)


class _ChangedMindError(Exception):
    """What a service's own code raises in the middle of a unit of work."""


@dataclass
class _Tenant:
    """An organization, and what the server has acknowledged of it."""

    org_id: UUID
    agent_id: UUID
    written: dict[UUID, str] = field(default_factory=dict[UUID, str])


@dataclass
class _Load:
    db: Database
    tenants: Sequence[_Tenant]
    wrong: list[str] = field(default_factory=list[str])
    done: dict[str, int] = field(default_factory=dict[str, int])

    def look(self, tenant: _Tenant, rows: Sequence[Memory]) -> None:
        """Hold every row that was read against the one who asked: by its organization, and by what it says."""
        self.wrong.extend(
            f"{tenant.org_id} was shown {row.content}"
            for row in rows
            if row.org_id != tenant.org_id or not row.content.startswith(str(tenant.org_id))
        )

    async def add(self, tenant: _Tenant, session: AsyncSession) -> Memory:
        kept = await MemoryRepository(session, tenant.org_id).remember(
            agent_id=tenant.agent_id, content=f"{tenant.org_id} {uuid4()}", category="factual", embedding=VECTOR
        )
        self.look(tenant, [kept.memory])
        return kept.memory

    async def write(self, tenant: _Tenant) -> None:
        async with self.db.tenant(tenant.org_id) as session:
            memory = await self.add(tenant, session)
        tenant.written[memory.id] = memory.content

    async def write_many(self, tenant: _Tenant) -> None:
        contents = [f"{tenant.org_id} {uuid4()}" for _ in range(5)]
        async with self.db.tenant(tenant.org_id) as session:
            many = await MemoryRepository(session).remember_many(
                {"agent_id": tenant.agent_id, "content": content, "category": "factual"} for content in contents
            )
        tenant.written |= {outcome.id: content for outcome, content in zip(many.outcomes, contents, strict=True)}

    async def roll_back(self, tenant: _Tenant) -> None:
        with pytest.raises(_ChangedMindError):
            async with self.db.tenant(tenant.org_id) as session:
                await self.add(tenant, session)
                raise _ChangedMindError

    async def roll_back_half(self, tenant: _Tenant) -> None:
        async with self.db.tenant(tenant.org_id) as session:
            memory = await self.add(tenant, session)
            nested = await session.begin_nested()
            await self.add(tenant, session)
            await nested.rollback()
        tenant.written[memory.id] = memory.content

    async def fail(self, tenant: _Tenant) -> None:
        with pytest.raises(DatabaseError):
            async with self.db.tenant(tenant.org_id) as session:
                await self.add(tenant, session)
                await session.execute(text("SELECT 1 / 0"))

    async def be_cancelled(self, tenant: _Tenant) -> None:
        written = asyncio.Event()

        async def work() -> None:
            async with self.db.tenant(tenant.org_id) as session:
                await self.add(tenant, session)
                written.set()
                await session.execute(text("SELECT pg_sleep(60)"))

        task = asyncio.create_task(work())
        await written.wait()
        await asyncio.sleep(random.uniform(0.0, 0.01))  # noqa: S311 - before the statement is sent, or during it
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def search(self, tenant: _Tenant) -> None:
        async with self.db.tenant(tenant.org_id) as session:
            hits = await MemoryRepository(session).search(embedding=VECTOR, text=str(tenant.org_id), limit=50)
            self.look(tenant, [hit.memory for hit in hits])

    async def read(self, tenant: _Tenant) -> None:
        """Read all without our filter: the policies alone, and every acknowledged write is among them."""
        before = set(tenant.written)
        async with self.db.tenant(tenant.org_id, read_only=True) as session:
            found = (await session.execute(text("SELECT org_id, id, content FROM ibex_core.memories"))).all()
        self.wrong.extend(f"{tenant.org_id} was shown {row.content}" for row in found if row.org_id != tenant.org_id)
        self.wrong.extend(f"{tenant.org_id} misses {gone}" for gone in before - {row.id for row in found})

    async def ask_for_anothers(self, tenant: _Tenant) -> None:
        foreign = [ident for other in self.tenants if other is not tenant for ident in list(other.written)[:3]]
        async with self.db.tenant(tenant.org_id) as session:
            self.look(tenant, await MemoryRepository(session).get_many(foreign))

    async def task(self, number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - each task's own, and the same in each run
        steps: Sequence[Callable[[_Tenant], Awaitable[None]]] = [
            *(self.write, self.write_many, self.search, self.read, self.ask_for_anothers) * 2,
            *(self.roll_back, self.roll_back_half, self.fail, self.be_cancelled),
        ]
        for _ in range(ROUNDS):
            step = chance.choice(steps)
            await step(chance.choice(self.tenants))
            name = getattr(step, "__name__", "")
            self.done[name] = self.done.get(name, 0) + 1


async def test_under_load_no_row_is_wrong_and_every_acknowledged_write_is_there(
    ibex_test_database: TestDatabase, route: Route
) -> None:
    async with route.connect(ibex_test_database, POOL) as db:
        tenants: list[_Tenant] = []
        for number in range(TENANTS):
            org_id = await sign_up(db, f"load-{number}")
            async with db.tenant(org_id) as session:
                agent = await AgentRepository(session).add(Agent(name="Robin", slug="robin"))
            tenants.append(_Tenant(org_id, agent.id))
        load = _Load(db, tenants)

        await asyncio.gather(*(load.task(number) for number in range(TASKS)))

        assert load.wrong == []
        assert sum(load.done.values()) == TASKS * ROUNDS
        assert len(load.done) == 9, f"not everything was tried: {load.done}"
        for tenant in tenants:
            async with db.tenant(tenant.org_id) as session:
                rows = [row async for row in MemoryRepository(session).stream()]
                assert {row.id: row.content for row in rows} == tenant.written
        async with db.platform(reason="isolation tests: nothing else was written") as session:
            count = await session.scalar(text("SELECT count(*) FROM ibex_core.memories"))
            assert count == sum(len(tenant.written) for tenant in tenants) > 0
