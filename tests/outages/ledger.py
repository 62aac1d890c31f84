"""What a service was told of its writes while things broke, held against what the database has afterwards."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from sqlalchemy import text

from ibex_db import (
    Agent,
    AgentRepository,
    CommitUnknownError,
    Database,
    EngineSettings,
    MemoryRepository,
    Organization,
    TransientError,
)
from ibex_db_core.provisioning import SERVICE_LOGIN, Cluster

POOL = EngineSettings(pool_size=4, max_overflow=0, pool_timeout=30.0)
TASKS = 12
TENANTS = 3

_VECTOR = [1.0] + [0.0] * 383
_ROWS = text("SELECT org_id, content FROM ibex_core.memories")
_BACKENDS = text(
    "SELECT count(*), count(*) FILTER (WHERE state LIKE 'idle in transaction%') FROM pg_stat_activity "
    f"WHERE datname = current_database() AND usename = '{SERVICE_LOGIN}' AND pid <> pg_backend_pid()"
)


async def migrate(cluster: Cluster) -> None:
    """Make the database that the services of these tests use."""
    await cluster.create_logins()
    await cluster.create_database("outages")
    async with cluster.database("outages") as db:
        await db.upgrade()


@dataclass
class Account:
    """One organization's writes.

    Attributes:
        acknowledged: COMMIT was answered.
        unknown: it may have been.
    """

    org_id: UUID
    agent_id: UUID
    acknowledged: set[str] = field(default_factory=set[str])
    unknown: set[str] = field(default_factory=set[str])


@dataclass
class Ledger:
    """Writers and readers of several organizations on one small pool.

    Attributes:
        wrong: what no reader may ever see, or must have seen.
        done: how often each thing came to pass, errors by their names.
    """

    db: Database
    accounts: Sequence[Account]
    wrong: list[str] = field(default_factory=list[str])
    done: Counter[str] = field(default_factory=Counter[str])

    @classmethod
    async def open(cls, db: Database) -> "Ledger":
        """Sign up the organizations."""
        accounts: list[Account] = []
        for _ in range(TENANTS):
            async with db.platform(reason="outage tests: sign-up") as session:
                organization = Organization(name="Outage", slug=f"outage-{uuid4().hex[:12]}")
                session.add(organization)
            async with db.tenant(organization.id) as session:
                agent = await AgentRepository(session).add(Agent(name="Robin", slug="robin"))
            accounts.append(Account(organization.id, agent.id))
        return cls(db, accounts)

    @asynccontextmanager
    async def load(self) -> AsyncGenerator[None]:
        """Work while the block runs: it begins once every task has done something, and ends when all have stopped."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            began = [asyncio.Event() for _ in range(TASKS)]
            for number, event in enumerate(began):
                tasks.create_task(self._work(number, event, stop))
            try:
                await asyncio.gather(*(event.wait() for event in began))
                yield
            finally:
                stop.set()

    async def until(self, *names: str, times: int = 1) -> None:
        """Wait until any of these has come to pass so many times more."""
        before = Counter(self.done)
        while sum((self.done - before)[name] for name in names) < times:  # noqa: ASYNC110 - any of many tasks counts
            await asyncio.sleep(0.01)

    async def settle(self) -> None:
        """Hold the database against the ledger: every acknowledged write is there, and nothing that nobody wrote."""
        assert self.wrong == []
        for account in self.accounts:
            there = await self._contents(account)
            assert account.acknowledged - there == set(), "acknowledged writes were lost"
            assert there - account.acknowledged - account.unknown == set(), "rows that nobody wrote"
        assert sum(len(account.acknowledged) for account in self.accounts) > 0

    async def healed(self) -> None:
        """Use every connection of the pool at once, and find none left over or left in a transaction."""
        together = asyncio.Barrier(POOL.pool_size)

        async def use(account: Account) -> None:
            async with self.db.tenant(account.org_id) as session:
                await session.execute(text("SELECT 1"))
                await together.wait()

        await asyncio.gather(*(use(self.accounts[number % TENANTS]) for number in range(POOL.pool_size)))
        async with self.db.tenant(self.accounts[0].org_id) as session:
            others, idle = (await session.execute(_BACKENDS)).one()
        assert (others < POOL.pool_size, idle) == (True, 0), f"{others + 1} connections, {idle} idle in transaction"

    async def _work(self, number: int, began: asyncio.Event, stop: asyncio.Event) -> None:
        chance = random.Random(number)  # noqa: S311 - each task's own, and the same in each run
        while not stop.is_set():
            account = chance.choice(self.accounts)
            step = chance.choice((self.write, self.write, self.look, self.search))
            try:
                await step(account)
                self.done["worked"] += 1
            except (TransientError, CommitUnknownError) as error:
                self.done[type(error).__name__] += 1
                await asyncio.sleep(0.02)
            began.set()

    async def write(self, account: Account) -> None:
        """Keep a memory; what its COMMIT was answered is written down."""
        content = f"{account.org_id} {uuid4()}"
        try:
            async with self.db.tenant(account.org_id) as session:
                await MemoryRepository(session).remember(
                    agent_id=account.agent_id, content=content, category="factual", embedding=_VECTOR
                )
        except CommitUnknownError:
            account.unknown.add(content)
            raise
        account.acknowledged.add(content)

    async def look(self, account: Account) -> None:
        """Read all, held back by the policies alone."""
        before = set(account.acknowledged)
        there = await self._contents(account)
        self.wrong.extend(
            f"{account.org_id} was shown {one}" for one in there if not one.startswith(str(account.org_id))
        )
        self.wrong.extend(f"{account.org_id} misses {one}" for one in before - there)

    async def search(self, account: Account) -> None:
        """Search by vector."""
        async with self.db.tenant(account.org_id) as session:
            hits = await MemoryRepository(session).search(embedding=_VECTOR, limit=5)
            self.wrong.extend(
                f"{account.org_id} found {h.memory.id}" for h in hits if h.memory.org_id != account.org_id
            )

    async def _contents(self, account: Account) -> set[str]:
        async with self.db.tenant(account.org_id) as session:
            rows = (await session.execute(_ROWS)).all()
        self.wrong.extend(f"{account.org_id} was shown {row.org_id}" for row in rows if row.org_id != account.org_id)
        return {row.content for row in rows}
