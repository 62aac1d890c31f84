"""A server that is restarted under a Database: every connection of the pool is dead, and no tenant is left over."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from two import Two, populate

from ibex_db import CommitUnknownError, ConnectionLostError, Database, EngineSettings
from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import Cluster

POOL = EngineSettings(pool_size=3, max_overflow=0, pool_timeout=5.0)

_ORGS = text("SELECT org_id FROM ibex_core.memories")
_PID = text("SELECT pg_backend_pid()")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, for nobody else may lose theirs.

    At a fixed address it comes back where it was, and its data with it.
    """
    embedded = EmbeddedPostgres(tmp_path_factory.mktemp("restarted") / "home", durable=False)
    with embedded:
        yield embedded
    embedded.stop_and_wait()


@pytest.fixture(scope="module")
def two(server: EmbeddedPostgres) -> Two:
    """Two organizations in the server's database."""
    return asyncio.run(_populated(Cluster.of(server)))


async def _populated(cluster: Cluster) -> Two:
    await cluster.create_logins()
    await cluster.create_database("restarted")
    async with cluster.database("restarted") as db:
        await db.upgrade()
        return await populate(db)


@pytest.fixture
async def db(server: EmbeddedPostgres, two: Two) -> AsyncIterator[Database]:
    """A service's Database, whose connections have all served the other tenant."""
    async with Cluster.of(server).database("restarted", settings=POOL) as database:
        together = asyncio.Barrier(POOL.pool_size)

        async def serve() -> None:
            async with database.tenant(two.b.org_id) as session:
                await session.execute(_ORGS)
                await together.wait()

        await asyncio.gather(*(serve() for _ in range(POOL.pool_size)))
        yield database


async def _restart(server: EmbeddedPostgres) -> None:
    """Stop it as an administrator would, connections or not, and start it at the same address."""
    before = server.url()
    assert await asyncio.to_thread(server.stop_and_wait)
    await asyncio.to_thread(server.start)
    assert server.url() == before


async def _orgs(session: AsyncSession) -> set[UUID]:
    return set((await session.execute(_ORGS)).scalars())


async def test_between_two_units_of_work_a_restart_goes_unnoticed(
    server: EmbeddedPostgres, db: Database, two: Two
) -> None:
    await _restart(server)

    for _ in range(2 * POOL.pool_size):
        async with db.tenant(two.a.org_id) as session:
            assert await _orgs(session) == {two.a.org_id}


async def test_many_tasks_meet_the_restarted_server_at_once_and_each_sees_its_own_rows(
    server: EmbeddedPostgres, db: Database, two: Two
) -> None:
    async def look(org_id: UUID) -> set[UUID]:
        return await db.run(org_id, _orgs)

    orgs = [two.a.org_id, two.b.org_id] * 10

    await _restart(server)

    assert await asyncio.gather(*(look(org_id) for org_id in orgs)) == [{org_id} for org_id in orgs]


async def test_within_a_unit_of_work_it_is_a_lost_connection_and_nothing_of_it_was_kept(
    server: EmbeddedPostgres, db: Database, two: Two
) -> None:
    with pytest.raises(ConnectionLostError):
        async with db.tenant(two.b.org_id) as session:
            await session.execute(text("UPDATE ibex_core.memories SET embedding_model = 'half done'"))
            await _restart(server)
            await session.execute(_ORGS)

    async with db.tenant(two.a.org_id) as session:
        assert await _orgs(session) == {two.a.org_id}
    async with db.tenant(two.b.org_id) as session:
        half = text("SELECT count(*) FROM ibex_core.memories WHERE embedding_model = 'half done'")
        assert await session.scalar(half) == 0


async def test_run_hides_the_restart_that_comes_in_the_middle(server: EmbeddedPostgres, db: Database, two: Two) -> None:
    backends: list[int] = []

    async def work(session: AsyncSession) -> set[UUID]:
        backends.append((await session.execute(_PID)).scalar_one())
        if len(backends) == 1:
            await _restart(server)
        return await _orgs(session)

    assert await db.run(two.a.org_id, work) == {two.a.org_id}
    assert len(backends) == 2


async def test_a_restart_before_commit_is_never_taken_for_success(
    server: EmbeddedPostgres, db: Database, two: Two
) -> None:
    model = uuid4().hex
    change = text("UPDATE ibex_core.memories SET embedding_model = :model")
    with pytest.raises((ConnectionLostError, CommitUnknownError)):
        async with db.tenant(two.b.org_id) as session:
            await session.execute(change, {"model": model})
            await _restart(server)

    async with db.tenant(two.b.org_id) as session:
        kept = text("SELECT count(*) FROM ibex_core.memories WHERE embedding_model = :model")
        assert await session.scalar(kept, {"model": model}) == 0


async def test_what_was_acknowledged_outlives_the_restart(server: EmbeddedPostgres, db: Database, two: Two) -> None:
    model = uuid4().hex
    async with db.tenant(two.b.org_id) as session:
        await session.execute(text("UPDATE ibex_core.memories SET embedding_model = :model"), {"model": model})

    await _restart(server)

    async with db.tenant(two.b.org_id) as session:
        kept = text("SELECT count(*) FROM ibex_core.memories WHERE embedding_model = :model")
        assert await session.scalar(kept, {"model": model}) == 2
    async with db.tenant(two.a.org_id) as session:
        assert await session.scalar(kept, {"model": model}) == 0
