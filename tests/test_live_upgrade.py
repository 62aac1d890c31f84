"""Upgrades and downgrades of a database in use, from every state that the revisions pass: nothing is lost or fails."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text

from ibex_db import Database, EngineSettings, Migrator, Revision, ScopedSession
from ibex_db_core.provisioning import Cluster

# What takes back each revision loses, as table or table.column; an upgrade loses nothing.
LOST = {
    "core_0002": {"signing_keys"},
    "tenancy_0001": {"organizations", "users", "agents", "tokens", "directives", "directive_versions"},
    "tenancy_0002": {"erasure_receipts", "erasure_tombstones", "erasure_keys", "organization_erasures"},
    "memory_0001": {"memory_tags", "memory_relationships", "memory_versions", "memories", "checkpoints", "sessions"},
    "memory_0002": {"memories.search_vector"},
    "memory_0004": {"memory_vectors", "embedding_spaces"},
    "memory_0005": {
        "memory_versions.valid_from",
        "memory_versions.valid_until",
        "memory_versions.replaced_embedding",
        "memory_versions.replaced_embedding_model",
    },
}

_WRITE_AGENT = text("INSERT INTO ibex_core.agents (org_id, name, slug) VALUES (:org, 'Robin', :mark)")
_WRITE_MEMORY = text(
    "INSERT INTO ibex_core.memories (org_id, agent_id, content, content_hash, category, embedding) "
    "VALUES (:org, :agent, :mark, :hash, 'factual', CAST(:vector AS vector))"
)
_BUMP = text("UPDATE ibex_core.memories SET confidence = 0.9 WHERE org_id = :org AND content = :mark")
_AGENTS = text("SELECT org_id, slug AS mark FROM ibex_core.agents WHERE slug <> 'first'")
_MEMORIES = text("SELECT org_id, content AS mark FROM ibex_core.memories")
_VECTOR = str([1.0] + [0.0] * 383)


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
        org = session.info["org_id"] if "org_id" in session.info else UUID(mark[:36])
        if not self.memories:
            await session.execute(_WRITE_AGENT, {"org": org, "mark": mark})
            return
        values = {"org": org, "agent": agent, "mark": mark, "hash": hashlib.sha256(mark.encode()).hexdigest()}
        await session.execute(_WRITE_MEMORY, {**values, "vector": _VECTOR})
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


@dataclass(frozen=True)
class Ladder:
    """The revisions in the order in which they run, and a database that is kept at each of them, filled."""

    cluster: Cluster
    revisions: Sequence[Revision]

    async def at(self, revision: str) -> str:
        """Make a database at a revision, with organizations where there can be some."""
        name = f"ibex_test_{uuid4().hex[:12]}"
        await self.cluster.create_database(name)
        async with self.cluster.database(name) as db:
            for step in self.revisions[: self.number(revision) + 1]:
                await db.upgrade(step.id)
        return name

    def number(self, revision: str) -> int:
        return [step.id for step in self.revisions].index(revision)

    async def down(self, migrator: Migrator, revision: str) -> None:
        """Take everything back that runs after a revision, the last first."""
        for step in reversed(self.revisions[self.number(revision) + 1 :]):
            await migrator.downgrade(await self.below(step), allow_destructive=True)

    async def below(self, step: Revision) -> str:
        number = int(step.id[-4:])
        return f"{step.wheel}_{number - 1:04}" if number > 1 else f"{step.wheel}@base"


def _revisions() -> list[Revision]:
    from ibex_db_core.migrations import runner

    return runner.revisions(())


REVISIONS = [step.id for step in _revisions()]


@pytest.fixture
async def ladder(ibex_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Ladder:
    monkeypatch.setenv("IBEX_MEMORY_PARTITIONS", "3")  # five HNSW indexes in each, and nothing here counts them
    await ibex_cluster.create_logins()
    return Ladder(ibex_cluster, _revisions())


async def _organizations(db: Database, count: int = 3) -> list[tuple[UUID, UUID]]:
    made: list[tuple[UUID, UUID]] = []
    for _ in range(count):
        async with db.platform(reason="live upgrade tests: sign-up") as session:
            insert = "INSERT INTO ibex_core.organizations (name, slug) VALUES ('One', :slug) RETURNING id"
            org: UUID = (await session.execute(text(insert), {"slug": f"one-{uuid4().hex[:8]}"})).scalar_one()
        async with db.tenant(org) as session:
            insert = "INSERT INTO ibex_core.agents (org_id, name, slug) VALUES (:org, 'First', 'first') RETURNING id"
            made.append((org, (await session.execute(text(insert), {"org": org})).scalar_one()))
    return made


@pytest.fixture
async def dropped(ibex_cluster: Cluster) -> AsyncIterator[list[str]]:
    names: list[str] = []
    yield names
    for name in names:
        await ibex_cluster.drop_database(name)


@pytest.mark.parametrize("revision", REVISIONS)
async def test_up_from_each_state_and_down_to_it_again_under_load(
    ladder: Ladder, dropped: list[str], revision: str
) -> None:
    name = await ladder.at(revision)
    dropped.append(name)
    async with ladder.cluster.database(name, settings=EngineSettings(pool_size=6)) as db:
        if ladder.number(revision) < ladder.number("tenancy_0001"):
            await db.upgrade()  # nothing could be in it yet
            async with db.migrator() as migrator:
                await ladder.down(migrator, revision)
                await migrator.upgrade()
                assert await migrator.check() == []
            return
        load = Load(db, await _organizations(db), ladder.number(revision) >= ladder.number("memory_0001"))
        async with load.running(), db.migrator() as migrator:
            await migrator.upgrade()
        await load.settle()
        async with load.running(), db.migrator() as migrator:
            await ladder.down(migrator, revision)
        await load.settle()
        async with load.running(), db.migrator() as migrator:
            await migrator.upgrade()
            assert await migrator.check() == []
        await load.settle()


async def test_what_each_step_back_loses_is_known_before(ladder: Ladder, dropped: list[str]) -> None:
    """The catalog before and after says what went; what the guard had said is held against that."""
    name = await ladder.at(REVISIONS[-1])
    dropped.append(name)
    url = ladder.cluster.url(name).render_as_string(hide_password=False)
    found: dict[str, set[str]] = {}
    async with ladder.cluster.database(name) as db, db.migrator() as migrator:
        for step in reversed(ladder.revisions):
            target = await ladder.below(step)
            told = {_named(line) for line in await migrator.losses(target, down=True)}
            before = await _columns(url)
            await migrator.downgrade(target, allow_destructive=True)
            gone = before - await _columns(url)
            tables = {one.partition(".")[0] for one in gone} - {one.partition(".")[0] for one in await _columns(url)}
            lost = tables | {one for one in gone if one.partition(".")[0] not in tables}
            # Taken away and made again within the step: not gone, and yet its values are.
            assert lost <= told, step.id
            if told:
                found[step.id] = told
        for step in ladder.revisions:
            assert await migrator.losses(step.id) == []
            await migrator.upgrade(step.id)
    assert found == LOST


def _named(line: str) -> str:
    _, kind, name, *_ = line.split(" ")
    assert kind in {"table", "column"}, line
    return name.removeprefix("ibex_core.")


async def _columns(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        "SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
        "WHERE c.relnamespace = 'ibex_core'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition "
        "AND a.attnum > 0 AND NOT a.attisdropped AND c.relname <> 'alembic_version'"
    )
    await connection.close()
    return {row[0] for row in rows}


# -- many pods


def _pod(url: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "error", "-m", "ibex_db_core.cli", "upgrade", "--json", "--url", url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603


async def test_of_many_pods_one_migrates_and_one_that_is_killed_is_followed_by_the_next(
    ladder: Ladder, dropped: list[str]
) -> None:
    name = await ladder.at("memory_0001")
    dropped.append(name)
    url = ladder.cluster.url(name).render_as_string(hide_password=False)
    async with ladder.cluster.database(name) as db:
        load = Load(db, await _organizations(db), memories=True)
        async with load.running():
            await asyncio.sleep(0.5)
        # A reader keeps the first pod in the middle of its way: memory_0002 wants the table for itself.
        reader = await asyncpg.connect(url)
        held = reader.transaction()
        await held.start()
        await reader.fetch("SELECT * FROM ibex_core.memories LIMIT 1")
        first = _pod(url)
        async with asyncio.timeout(30):
            while not await _waits(url):  # noqa: ASYNC110 - the server's word, which wakes nobody
                await asyncio.sleep(0.05)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        pods = [_pod(url) for _ in range(4)]
        await asyncio.sleep(1)
        await held.rollback()
        await reader.close()
        ends = await asyncio.gather(*(asyncio.to_thread(pod.communicate, timeout=60) for pod in pods))

        assert [pod.returncode for pod in pods] == [0] * 4, ends
        assert sorted(out.count('"memory_0006"') for out, _ in ends) == [0, 0, 0, 1]
        await load.settle()
        async with db.migrator() as migrator:
            assert await migrator.check() == []


async def _waits(url: str) -> bool:
    connection = await asyncpg.connect(url)
    waits = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
        "WHERE d.datname = current_database() AND l.locktype = 'relation' AND NOT l.granted)"
    )
    await connection.close()
    return bool(waits)
