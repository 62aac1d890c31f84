"""Read replicas: a real primary and a real standby of it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from uuid import UUID, uuid4

import asyncpg
import pytest
from ledger import POOL, Ledger, migrate
from sqlalchemy import text
from standby import Standby, standby

from ibex_db import (
    AccessDeniedError,
    ConnectionLostError,
    Database,
    EngineSettings,
    InvalidInputError,
    MemoryRepository,
    UnsafeRoleError,
)
from ibex_db_core import replicas
from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN, Cluster
from ibex_db_core.tenant import ScopedSession

SETTINGS = replace(POOL, replica_wait=0.3)

_IS_STANDBY = text("SELECT pg_is_in_recovery()")


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server with a migrated database, from which others may stream."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("primary") / "home", durable=False)
    with server:
        asyncio.run(migrate(Cluster.of(server)))
        yield server
    server.stop_and_wait()


@pytest.fixture(scope="module")
def shared(primary: EmbeddedPostgres) -> Iterator[Standby]:
    """A standby of it."""
    with standby(primary) as made:
        yield made


@pytest.fixture
def copy(shared: Standby) -> Iterator[Standby]:
    """The same, running and replaying again after each test."""
    yield shared
    if shared.process is None:
        shared.start()
    asyncio.run(execute(shared, "SELECT pg_wal_replay_resume()"))


def connect(primary: EmbeddedPostgres, copy: Standby, settings: EngineSettings = SETTINGS) -> Database:
    cluster = Cluster.of(primary)
    return Database(
        cluster.url("outages", user=SERVICE_LOGIN),
        platform_url=cluster.url("outages", user=PLATFORM_LOGIN),
        replica_urls=[copy.url("outages", user=SERVICE_LOGIN)],
        settings=settings,
    )


@pytest.fixture
async def db(primary: EmbeddedPostgres, copy: Standby) -> AsyncIterator[Database]:
    async with connect(primary, copy) as database:
        yield database


@pytest.fixture
async def ledger(db: Database) -> Ledger:
    """Organizations with a memory each, on both servers."""
    ledger = await Ledger.open(db)
    for account in ledger.accounts:
        await ledger.write(account)
    await arrived(db, ledger.accounts[0].org_id)
    return ledger


async def arrived(db: Database, org_id: UUID) -> None:
    """Wait until the standby has everything."""
    position = await db.position()
    async with asyncio.timeout(30):
        while not await on_standby(db, org_id, after=position):
            pass


async def on_standby(db: Database, org_id: UUID, after: str | None = None) -> bool:
    async with db.tenant(org_id, read_only=True, after=after) as session:
        return bool(await session.scalar(_IS_STANDBY))


async def contents(session: ScopedSession) -> set[str]:
    return set((await session.execute(text("SELECT content FROM ibex_core.memories"))).scalars())


async def execute(copy: Standby, sql: str) -> None:
    connection = await asyncpg.connect(copy.url("outages"))
    await connection.execute(sql)
    await connection.close()


async def test_reads_go_to_the_replica_and_writes_to_the_primary(db: Database, ledger: Ledger) -> None:
    account = ledger.accounts[0]

    async with db.tenant(account.org_id) as session:
        assert await session.scalar(_IS_STANDBY) is False
    async with db.tenant(account.org_id, read_only=True) as session:
        assert await session.scalar(_IS_STANDBY) is True
        assert await contents(session) == account.acknowledged


async def test_on_the_replica_the_walls_stand_as_on_the_primary(db: Database, copy: Standby, ledger: Ledger) -> None:
    superuser = await asyncpg.connect(copy.url("outages"))
    assert await superuser.fetchval("SELECT count(DISTINCT org_id) FROM ibex_core.memories") >= len(ledger.accounts)
    await superuser.close()

    for account in ledger.accounts:
        async with db.tenant(account.org_id, read_only=True) as session:
            assert await session.scalar(_IS_STANDBY) is True
            rows = (await session.execute(text("SELECT DISTINCT org_id FROM ibex_core.memories"))).scalars()
            assert list(rows) == [account.org_id]
            assert len(await MemoryRepository(session).search(text=str(account.org_id), limit=9)) == 1


async def test_nothing_is_ever_written_to_a_replica(db: Database, ledger: Ledger) -> None:
    account = ledger.accounts[0]

    with pytest.raises(AccessDeniedError, match="read-only"):
        async with db.tenant(account.org_id, read_only=True) as session:
            assert await session.scalar(_IS_STANDBY) is True
            await MemoryRepository(session).remember(agent_id=account.agent_id, content="No.", category="factual")

    assert db.replicas[0].healthy


async def test_a_position_makes_a_read_see_what_was_written_before_it(
    db: Database, copy: Standby, ledger: Ledger
) -> None:
    account = ledger.accounts[0]
    before = set(account.acknowledged)
    await execute(copy, "SELECT pg_wal_replay_pause()")
    await ledger.write(account)
    position = await db.position()

    async with db.tenant(account.org_id, read_only=True) as session:
        assert (await session.scalar(_IS_STANDBY), await contents(session)) == (True, before), "the replica is behind"
    async with db.tenant(account.org_id, read_only=True, after=position) as session:
        assert (await session.scalar(_IS_STANDBY), await contents(session)) == (False, account.acknowledged)

    await execute(copy, "SELECT pg_wal_replay_resume()")
    await arrived(db, account.org_id)
    async with db.tenant(account.org_id, read_only=True, after=position) as session:
        assert (await session.scalar(_IS_STANDBY), await contents(session)) == (True, account.acknowledged)


async def test_a_replica_that_is_too_far_behind_is_passed_over(
    primary: EmbeddedPostgres, copy: Standby, ledger: Ledger
) -> None:
    account = ledger.accounts[0]
    async with connect(primary, copy, replace(SETTINGS, replica_lag=0.5)) as db:
        assert await on_standby(db, account.org_id)
        await execute(copy, "SELECT pg_wal_replay_pause()")
        await ledger.write(account)

        async with asyncio.timeout(30):
            while await on_standby(db, account.org_id):  # noqa: ASYNC110 - the standby's word, which wakes nobody
                await asyncio.sleep(0.1)

        assert "behind, more than 0.5" in str(db.replicas[0].why)
        await execute(copy, "SELECT pg_wal_replay_resume()")
        await arrived(db, account.org_id)


async def test_when_the_replica_dies_the_primary_answers_until_it_is_back(
    db: Database, copy: Standby, ledger: Ledger
) -> None:
    account = ledger.accounts[0]
    assert await on_standby(db, account.org_id)

    with pytest.raises(ConnectionLostError):
        async with db.tenant(account.org_id, read_only=True) as session:
            await contents(session)
            copy.kill()
            await contents(session)
    for _ in range(5):
        assert not await on_standby(db, account.org_id)
    assert not db.replicas[0].healthy

    copy.start()
    async with asyncio.timeout(60):
        while not await on_standby(db, account.org_id):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.1)
    assert db.replicas[0].healthy


async def test_while_every_connection_to_the_replica_is_in_use_the_primary_answers(
    primary: EmbeddedPostgres, copy: Standby, ledger: Ledger
) -> None:
    org_id = ledger.accounts[0].org_id
    one = replace(SETTINGS, pool_size=1, max_overflow=0, pool_timeout=0.2)
    async with connect(primary, copy, one) as db, db.tenant(org_id, read_only=True) as session:
        assert await session.scalar(_IS_STANDBY) is True

        assert not await on_standby(db, org_id, after=await db.position())

        assert db.replicas[0].healthy, "it is busy, not ill"


async def test_one_outage_that_many_readers_meet_is_one_failure_of_the_replica(
    primary: EmbeddedPostgres, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replicas, "_REST_SECONDS", 30.0)  # so that it rests still when the last of them has failed
    url = Cluster.of(primary).url("outages", user=SERVICE_LOGIN)

    # Nothing listens there; over a socket's path each would have its answer before the next one asks.
    nowhere, together = ["postgresql://nobody@127.0.0.1:1/outages"], replace(SETTINGS, pool_size=8)
    async with Database(url, replica_urls=nowhere, settings=together) as db:
        answers = await asyncio.gather(*(on_standby(db, ledger.accounts[0].org_id) for _ in range(8)))

    assert not any(answers)
    told = [record.__dict__["rest_seconds"] for record in caplog.records if record.name == "ibex_db.replicas"]
    assert told == [30.0]


async def test_a_replica_that_is_not_there_at_first_hinders_nobody(
    primary: EmbeddedPostgres, copy: Standby, ledger: Ledger
) -> None:
    copy.kill()

    async with connect(primary, copy) as db:
        assert not await on_standby(db, ledger.accounts[0].org_id)


async def test_a_promoted_replica_is_not_asked_any_more(primary: EmbeddedPostgres, ledger: Ledger) -> None:
    account = ledger.accounts[0]
    with standby(primary) as own:
        async with connect(primary, own) as db:
            await arrived(db, account.org_id)
            await asyncio.to_thread(own.promote)
            await asyncio.sleep(1.1)  # what it said of itself a second ago counts no longer

            async with db.tenant(account.org_id, read_only=True) as session:
                assert await contents(session) == account.acknowledged
            assert "promoted" in str(db.replicas[0].why)


async def test_a_replica_is_asked_for_no_more_than_the_primary_would_grant(
    primary: EmbeddedPostgres, copy: Standby, ledger: Ledger
) -> None:
    cluster = Cluster.of(primary)
    async with Database(
        cluster.url("outages", user=SERVICE_LOGIN), replica_urls=[copy.url("outages")], settings=SETTINGS
    ) as db:
        with pytest.raises(UnsafeRoleError, match="superuser"):
            async with db.tenant(ledger.accounts[0].org_id, read_only=True):
                raise AssertionError("a superuser was let in")


@pytest.mark.parametrize("after", ["", "now", "16", "1/", "16/B374D8481", "0/0; DROP TABLE memories"])
async def test_a_position_that_is_none_is_refused(primary: EmbeddedPostgres, after: str) -> None:
    async with Cluster.of(primary).database("outages") as db:
        with pytest.raises(InvalidInputError, match="after"):
            db.tenant(uuid4(), read_only=True, after=after)


async def test_a_position_is_for_reading(primary: EmbeddedPostgres) -> None:
    async with Cluster.of(primary).database("outages") as db:
        with pytest.raises(InvalidInputError, match="read_only"):
            db.tenant(uuid4(), after=await db.position())
