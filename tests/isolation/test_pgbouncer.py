"""Rule 27: behind PgBouncer in transaction mode, statement_cache_size=0 and nothing else.

The ways of test_context.py go through it as well: the fixture `db` comes in both kinds.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from bouncer import BEHIND, POOL_SIZE
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from two import VECTOR, Tenant, Two
from ways import SCOPED_WAYS, WAYS

from ibex_db import Database, DatabaseError, EngineSettings, IbexError, MemoryRepository
from ibex_db_core.provisioning import SERVICE_LOGIN, Cluster
from ibex_db_core.testing import TestDatabase

REQUESTS = 1_000
CLIENTS = 16

_PID = text("SELECT pg_backend_pid()")
_LEFT = text("SELECT statement FROM pg_prepared_statements")
_BACKENDS = text(f"SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = '{SERVICE_LOGIN}'")


@pytest.fixture
def through(own: TestDatabase, bounced: Cluster) -> TestDatabase:
    """A test's own database, as PgBouncer shows it."""
    return TestDatabase(own.name, bounced)


@pytest.fixture
async def crowd(through: TestDatabase) -> AsyncIterator[Database]:
    """Many client connections over PgBouncer's few."""
    settings = replace(BEHIND, pool_size=CLIENTS, max_overflow=0, pool_timeout=60.0)
    async with through.connect(settings) as database:
        yield database


async def _left_behind(db: Database) -> list[str]:
    """Return the prepared statements on all server connections that PgBouncer holds for the service's login.

    pg_prepared_statements shows one's own session only.  So as many transactions are held open at once as there are
    server connections, each of which then is on another one; pg_stat_activity says whether these are all.
    """
    pids: set[int] = set()
    backends: set[int] = set()
    left: list[str] = []
    async with AsyncExitStack() as held:
        for _ in range(POOL_SIZE):
            connection = await held.enter_async_context(db.engine.connect())
            pids.add((await connection.execute(_PID)).scalar_one())
            left.extend((await connection.execute(_LEFT)).scalars())
            backends = set((await connection.execute(_BACKENDS)).scalars())
    assert len(pids) == POOL_SIZE
    assert pids == backends
    return left


async def _search(session: AsyncSession, two: Two) -> set[UUID]:
    """Search by a vector, which binds and reads pgvector's binary format, and by words."""
    hits = await MemoryRepository(session, two.a.org_id).search(embedding=VECTOR, text="tea", limit=10)
    assert hits
    return {hit.memory.org_id for hit in hits}


async def _remember(session: AsyncSession, two: Two) -> set[UUID]:
    kept = await MemoryRepository(session, two.a.org_id).remember(
        agent_id=two.a.agent_id, content=f"Number {uuid4()}.", category="factual", embedding=VECTOR, tags=["new"]
    )
    return {kept.memory.org_id}


async def _fail(session: AsyncSession, two: Two) -> set[UUID]:
    with pytest.raises(DatabaseError):
        async with session.begin_nested():
            await session.execute(text("SELECT 1 / 0"))
    return {two.a.org_id}


_REQUESTS = {**WAYS, **SCOPED_WAYS, "search": _search, "remember": _remember, "fail": _fail}


async def _requests(db: Database, two: Two, names: Sequence[str]) -> list[str]:
    """Make requests of alternating tenants; return those that saw what they must not, or saw nothing."""
    wrong: list[str] = []
    for number, name in enumerate(names):
        asking = two if number % 2 else Two(two.b, two.a)
        async with db.tenant(asking.a.org_id) as session:
            seen = await _REQUESTS[name](session, asking)
            await session.rollback()
        if seen != (set() if name == "forged_where" else {asking.a.org_id}):
            wrong.append(f"{name}: {seen}")
    return wrong


async def test_rule_27_mixed_requests_of_two_tenants_over_few_server_connections_are_all_right(
    crowd: Database, two: Two
) -> None:
    chosen = random.Random(27)  # noqa: S311 - the same requests in each run
    names = list(_REQUESTS) + chosen.choices(list(_REQUESTS), k=REQUESTS - len(_REQUESTS))
    chosen.shuffle(names)

    wrong = await asyncio.gather(*(_requests(crowd, two, names[client::CLIENTS]) for client in range(CLIENTS)))

    assert [name for of_client in wrong for name in of_client] == []
    assert await _left_behind(crowd) == []


async def test_a_prepared_statement_left_behind_would_be_found(crowd: Database) -> None:
    async with crowd.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute("PREPARE left_behind AS SELECT 1")

    assert await _left_behind(crowd) == ["PREPARE left_behind AS SELECT 1"]


async def test_without_the_setting_the_requests_fail(through: TestDatabase, two: Two) -> None:
    """The setting is not for show: asyncpg's own cache names statements on connections that are not its own."""
    async with through.connect(EngineSettings(pool_size=CLIENTS, max_overflow=0)) as db:
        outcomes = await asyncio.gather(
            *(_requests(db, two, ["scalars", "search"] * 5) for _ in range(CLIENTS)), return_exceptions=True
        )

    assert [outcome for outcome in outcomes if isinstance(outcome, DatabaseError)]


@pytest.mark.parametrize("tenant", ["a", "b"])
async def test_our_settings_ride_in_each_transaction_and_are_gone_after_it(
    through: TestDatabase, two: Two, tenant: str
) -> None:
    who: Tenant = getattr(two, tenant)
    ours = text(
        "SELECT current_setting('statement_timeout'), current_setting('hnsw.ef_search'), "
        "current_setting('plan_cache_mode'), current_setting('app.current_org_id')"
    )
    plain = text(
        "SELECT current_setting('statement_timeout'), current_setting('plan_cache_mode'), "
        "coalesce(current_setting('app.current_org_id', true), '')"
    )
    async with through.connect(replace(BEHIND, statement_timeout=7.0, hnsw_ef_search=123)) as db:
        async with db.tenant(who.org_id) as session:
            within = (await session.execute(ours)).one()
        async with db.engine.connect() as connection:
            after = (await connection.execute(plain)).one()

    assert tuple(within) == ("7s", "123", "force_custom_plan", str(who.org_id))
    assert tuple(after) == ("0", "auto", "")


async def test_a_service_keeps_its_name_through_pgbouncer(through: TestDatabase, two: Two) -> None:
    async with (
        through.connect(replace(BEHIND, application_name="billing")) as db,
        db.tenant(two.a.org_id) as session,
    ):
        assert await session.scalar(text("SELECT current_setting('application_name')")) == "billing"


async def test_what_pgbouncer_refuses_is_told_and_not_of_our_doing(through: TestDatabase, two: Two) -> None:
    """As docs/how-to/pgbouncer.md says: a startup parameter that it does not track."""
    refused = replace(BEHIND, connect_args={"server_settings": {"statement_timeout": "1000"}})
    async with through.connect(refused) as db:
        with pytest.raises(IbexError, match="unsupported startup parameter"):
            async with db.tenant(two.a.org_id):
                pass
