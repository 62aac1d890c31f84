"""Everything at once, for a while: writers, searchers, sweepers, migrations and faults, over several organizations.

IBEX_CHAOS_SECONDS says how long (20), IBEX_CHAOS_SEED which chances; `uv run nox -s chaos` takes two minutes.
"""

import asyncio
import os
import random
import secrets
import shutil
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace

import asyncpg
import pytest
from books import Book, settle
from bouncer import pgbouncer
from proxy import Proxy, proxy
from storms import Storm
from sweeps import Sweeps
from works import Works

from ibex_db import Database, EngineSettings, IbexError
from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import Cluster

SECONDS = float(os.environ.get("IBEX_CHAOS_SECONDS", "20"))
ORGANIZATIONS = 4
WRITERS = 10
DATABASE = "chaos"

SETTINGS = EngineSettings(
    pool_size=4,
    max_overflow=0,
    pool_timeout=5.0,
    statement_timeout=3.0,
    lock_timeout=1.0,
    idle_timeout=10.0,
    network_timeout=1.0,
)
PATIENCE = SETTINGS.statement_timeout + SETTINGS.network_timeout

# Until a backend whose client is gone has noticed, and a pool has thrown away what broke.
_HEALED_SECONDS = 60.0

# Every client's, whoever it logged in as, but ours that asks; what PgBouncer keeps is its own.
_LEFT = """
    SELECT application_name || ', ' || usename AS pool, count(*) AS backends,
        count(*) FILTER (WHERE state LIKE 'idle in transaction%') AS idle
    FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
        AND pid <> pg_backend_pid() AND application_name NOT IN ('chaos pgbouncer', '') GROUP BY pool
"""
"""Those of PgBouncer apart: they bear its clients' name, and none before the first client.  Ours bear one always."""


@dataclass
class Sea:
    """The ways to one database, and its superuser's address."""

    server: EmbeddedPostgres
    routes: Mapping[str, Database]
    network: Proxy
    admin_url: str

    async def ask(self, query: str) -> list[asyncpg.Record]:
        admin = await asyncpg.connect(self.admin_url)
        try:
            found: list[asyncpg.Record] = await admin.fetch(query)
        finally:
            await admin.close()
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    embedded = EmbeddedPostgres(tmp_path_factory.mktemp("chaos") / "home", port=_port())
    with embedded:
        asyncio.run(_migrate(Cluster.of(embedded)))
        yield embedded
    embedded.stop_and_wait()


def _port() -> int:
    """Return a port that no client is given for its own end while the server is down: it comes up there again."""
    chance = secrets.SystemRandom()
    while True:
        port = chance.randint(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


async def _migrate(cluster: Cluster) -> None:
    await cluster.create_logins()
    await cluster.create_database(DATABASE)
    async with cluster.database(DATABASE) as db:
        await db.upgrade()


@pytest.fixture
async def sea(server: EmbeddedPostgres) -> AsyncIterator[Sea]:
    """Straight to the server, through a network that fails, and through PgBouncer where it is installed."""
    cluster = Cluster.of(server)
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(proxy(cluster.admin))
        # pgbouncer's own account lies behind 15 s by default, after a login that failed.
        bounced = stack.enter_context(pgbouncer(cluster, "server_login_retry = 1")) if _has_pgbouncer() else None
        through = replace(cluster, admin=network.address(cluster.admin))
        routes = {"straight": cluster.database(DATABASE, settings=named("straight"))}
        routes["proxy"] = through.database(DATABASE, settings=named("proxy"))
        if bounced is not None:
            behind = replace(named("pgbouncer"), statement_cache_size=0)
            routes["pgbouncer"] = bounced.database(DATABASE, settings=behind)
        for db in routes.values():
            await stack.enter_async_context(db)
        yield Sea(server, routes, network, server.url(DATABASE))


def _has_pgbouncer() -> bool:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") is not None


def named(route: str) -> EngineSettings:
    return replace(SETTINGS, application_name=f"chaos {route}")


async def heal(db: Database, books: list[Book]) -> None:
    """Use every connection of a pool at once, until all work."""
    together = asyncio.Barrier(SETTINGS.pool_size)

    async def use(book: Book) -> None:
        async with db.tenant(book.org_id) as session:
            await session.connection()
            async with asyncio.timeout(PATIENCE):
                await together.wait()

    async with asyncio.timeout(_HEALED_SECONDS):
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for number in range(SETTINGS.pool_size):
                        tasks.create_task(use(books[number % len(books)]))
            except* (IbexError, TimeoutError, asyncio.BrokenBarrierError):
                await together.reset()
                await asyncio.sleep(0.2)
            else:
                return


async def left_after_closing(sea: Sea) -> dict[str, int]:
    """Close every Database; return the backends that are left, PgBouncer's own apart."""
    for db in sea.routes.values():
        await db.close()
    found: dict[str, int] = {}
    try:
        async with asyncio.timeout(_HEALED_SECONDS):
            while found := {row[0]: row[1] for row in await sea.ask(_LEFT)}:  # noqa: ASYNC110 - the server's word
                await asyncio.sleep(0.1)
    except TimeoutError:
        return found
    return found


def report(day: "Day") -> None:
    """Print what came to pass."""
    works, sweeps, storm, books = day.works, day.sweeps, day.storm, day.books
    told: Counter[str] = works.told + sweeps.told
    erased = sum(book.erased for book in sweeps.doomed)
    print(f"  acknowledged writes: {sum(book.acknowledged for book in books):,} in {len(books)} organizations")  # noqa: T201
    print(f"  organizations erased: {erased} of {len(sweeps.doomed)}; retries of db.run(): {works.retries}")  # noqa: T201
    for title, counts in (("operations", works.done), ("sweeps", sweeps.done), ("faults", storm.hit), ("told", told)):
        print(f"  {title}: " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())))  # noqa: T201


@dataclass
class Day:
    """One run of everything, until it is over and swept."""

    works: Works
    sweeps: Sweeps
    storm: Storm
    books: list[Book]

    @classmethod
    async def over(cls, sea: Sea, seed: int, *, seconds: float, faults: bool = True) -> "Day":
        """Work for so long, then heal.  Without faults: nothing but the works and one minute's peace."""
        chance = random.Random(seed)  # noqa: S311 - the same chances again
        works = Works(sea.routes, chance)
        books = [await works.sign_up() for _ in range(ORGANIZATIONS)]
        day = cls(
            works,
            Sweeps(sea.routes["straight"], works, sea.admin_url, books, chance),
            Storm(sea.server, DATABASE, sea.network, PATIENCE, SETTINGS.lock_timeout, chance),
            books,
        )
        stop = asyncio.Event()

        async def work() -> None:
            while not stop.is_set():
                await works.any(chance.choice(books))

        async with asyncio.timeout(seconds * 5 + 300), asyncio.TaskGroup() as tasks:
            for _ in range(WRITERS):
                tasks.create_task(work())
            for sweep in day.sweeps.every() if faults else ():
                tasks.create_task(day.sweeps.repeat(sweep, stop))
            try:
                await (day.storm.rage(seconds) if faults else asyncio.sleep(seconds))
                if faults:
                    await day.migrated()
            finally:
                sea.network.resume()
                stop.set()
        await day.sweeps.settle()
        for db in sea.routes.values():
            await heal(db, books)
        return day

    async def migrated(self) -> None:
        """Wait for a first way down and up: on a busy machine every one may have been broken off by the faults."""
        with suppress(TimeoutError):  # what is missing is asserted
            async with asyncio.timeout(_HEALED_SECONDS):
                while not (self.sweeps.done["revisions taken back"] and self.sweeps.done["revisions brought"]):  # noqa: ASYNC110 - a count
                    await asyncio.sleep(0.1)

    async def wrong(self, sea: Sea) -> list[str]:
        """Hold everything against the books."""
        admin = await asyncpg.connect(sea.admin_url)
        try:
            found = await settle(admin, [*self.books, *self.sweeps.doomed])
        finally:
            await admin.close()
        for pool, backends, idle in await sea.ask(_LEFT):
            if backends > SETTINGS.pool_size or idle:
                found.append(f"{pool}: {backends} backends, {idle} of them in a transaction")
        for route, db in sea.routes.items():
            if lent := getattr(db.engine.pool, "checkedout")():  # noqa: B009 - of the pool that there is
                found.append(f"{route}: {lent} connections were not given back")
        doctor = (await sea.routes["straight"].doctor()).findings
        return [*self.works.wrong, *self.sweeps.errors, *found, *(f"{one.code}: {one.object}" for one in doctor)]


async def test_nothing_is_lost_and_nobody_sees_anothers_rows_whatever_breaks(sea: Sea) -> None:
    seed = int(os.environ.get("IBEX_CHAOS_SEED") or secrets.randbits(32))
    print(f"\nIBEX_CHAOS_SEED={seed} IBEX_CHAOS_SECONDS={SECONDS:g}, routes: {', '.join(sea.routes)}")  # noqa: T201

    day = await Day.over(sea, seed, seconds=SECONDS)
    report(day)

    wrong = await day.wrong(sea)
    assert not wrong, "\n".join(wrong)
    assert await left_after_closing(sea) == {}
    # Each kind must have come to pass, or nothing was tried.
    assert day.storm.missed == []
    assert day.works.done["search"] > 0
    assert day.sweeps.done["revisions taken back"] > 0
    assert day.sweeps.done["revisions brought"] > 0
    assert day.works.told["CommitUnknownError"] + day.works.told["CancelledError"] > 0
    assert all(book.acknowledged for book in day.books)


# -- it would be seen


_CALM_SECONDS = 2.0


async def test_whatever_is_done_to_the_rows_behind_the_services_backs_is_found(sea: Sea) -> None:
    day = await Day.over(sea, 7, seconds=_CALM_SECONDS, faults=False)
    assert await day.wrong(sea) == []
    book = max(day.books, key=lambda one: len(one.kept))
    lost, forgotten, brought_back = [*book.kept][:3]
    admin = await asyncpg.connect(sea.admin_url)
    async with admin.transaction():
        await admin.execute("DELETE FROM ibex_core.memories WHERE id = $1", book.kept[lost])
        await admin.execute("UPDATE ibex_core.memories SET deleted_at = now() WHERE id = $1", book.kept[forgotten])
        turns = book.turns + book.turns_unknown + 1  # one more than can have been counted
        await admin.execute("UPDATE ibex_core.sessions SET turn_count = $2 WHERE id = $1", book.run_id, turns)
        await admin.execute(
            "INSERT INTO ibex_core.memories (org_id, id, agent_id, content, content_hash, category) "
            "VALUES ($1, gen_random_uuid(), $2, 'unheard of', repeat('0', 64), 'factual')",
            *(book.org_id, book.agent_id),
        )
    await admin.close()
    book.forgotten.add(brought_back)
    del book.kept[brought_back]

    found = "\n".join(await day.wrong(sea))

    assert f"lost, though acknowledged: {lost}" in found
    assert f"forgotten by nobody: {forgotten}" in found
    assert f"not forgotten, though acknowledged: {brought_back}" in found
    assert "there, though nobody wrote it: unheard of" in found
    assert "a row of another organization's words: unheard of" in found
    assert f"counted {turns} times" in found


async def test_an_erased_organization_that_left_a_row_is_found(sea: Sea) -> None:
    day = await Day.over(sea, 7, seconds=_CALM_SECONDS, faults=False)
    book = day.books[0]
    book.erased = True  # says the book, and nobody has done it

    found = "\n".join(await day.wrong(sea))

    assert f"{book.org_id} was erased, and memories has" in found
    assert f"{book.org_id} was erased, and has 0 receipts" in found


async def test_a_wall_that_falls_is_found(sea: Sea) -> None:
    admin = await asyncpg.connect(sea.admin_url)
    await admin.execute("ALTER TABLE ibex_core.memories DISABLE ROW LEVEL SECURITY")
    try:
        day = await Day.over(sea, 7, seconds=_CALM_SECONDS, faults=False)
        found = "\n".join(await day.wrong(sea))
    finally:
        await admin.execute("ALTER TABLE ibex_core.memories ENABLE ROW LEVEL SECURITY")
        await admin.close()

    assert "was shown" in found
    assert "rls-disabled: ibex_core.memories" in found


async def test_a_connection_that_is_kept_is_found(sea: Sea) -> None:
    day = await Day.over(sea, 7, seconds=_CALM_SECONDS, faults=False)
    async with sea.routes["straight"].tenant(day.books[0].org_id) as session:
        await session.connection()
        await day.works.look(day.books[0])
        found = "\n".join(await day.wrong(sea))

    assert "straight: 1 connections were not given back" in found
