"""Upgrades and downgrades of a database in use, from every state that the revisions pass: nothing is lost or fails."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

import asyncpg
import pytest
from live_load import Load, organizations
from quick import parametrize

from ibex_db import EngineSettings, Migrator, Revision
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


@pytest.fixture
async def dropped(ibex_cluster: Cluster) -> AsyncIterator[list[str]]:
    names: list[str] = []
    yield names
    for name in names:
        await ibex_cluster.drop_database(name)


# With the first tables of all, and with all but the newest step: the two that differ most.
_QUICK = {"memory_0001", REVISIONS[-2]}


@parametrize("revision", REVISIONS, quick=_QUICK)
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
        load = Load(db, await organizations(db), ladder.number(revision) >= ladder.number("memory_0001"))
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
        load = Load(db, await organizations(db), memories=True)
        async with load.running():
            await asyncio.sleep(0.5)
        # A reader keeps the first pod in the middle of its way: memory_0002 wants the table for itself.
        reader = await asyncpg.connect(url)
        held = reader.transaction()
        await held.start()
        await reader.fetch("SELECT * FROM ibex_core.memories LIMIT 1")
        first = _pod(url)
        async with asyncio.timeout(120):
            while not await _waits(url):  # noqa: ASYNC110 - the server's word, which wakes nobody
                await asyncio.sleep(0.05)
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        pods = [_pod(url) for _ in range(4)]
        await asyncio.sleep(1)
        await held.rollback()
        await reader.close()
        try:
            ends = await asyncio.gather(*(asyncio.to_thread(pod.communicate, timeout=300) for pod in pods))
        finally:
            for pod in pods:
                pod.kill()  # does nothing to one that has ended

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
