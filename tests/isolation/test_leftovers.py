"""Rules 4, 5 and 7 against a service's own raw SQL: what outlives a transaction, and what ends one unnoticed."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import UUID

import pytest
from bouncer import Route
from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from two import ONE, Two

from ibex_db import (
    ConfigurationError,
    Database,
    DatabaseError,
    InvalidInputError,
    MemoryRepository,
    TenantError,
    TenantMismatchError,
)
from ibex_db_core.provisioning import SERVICE_LOGIN
from ibex_db_core.testing import TestDatabase

_ORGS = text("SELECT DISTINCT org_id FROM ibex_core.memories")


# Each leaves something on the connection as one tenant, and tells how another could read it.
LEFTOVERS = {
    "a held cursor": ("DECLARE loot CURSOR WITH HOLD FOR SELECT org_id FROM ibex_core.memories", "FETCH ALL FROM loot"),
    "a temporary table": (
        "CREATE TEMP TABLE loot AS SELECT org_id FROM ibex_core.memories",
        "SELECT org_id FROM pg_temp.loot",
    ),
    "a temporary view": (
        "CREATE TEMP VIEW loot AS SELECT 1 AS planted",
        "SELECT planted FROM pg_temp.loot",
    ),
    "a type that is looked up first": (
        "CREATE DOMAIN pg_temp.uuid AS pg_catalog.uuid CHECK (true)",
        "SELECT typname FROM pg_type WHERE oid = to_regtype('uuid') AND typtype = 'd'",
    ),
}


@pytest.mark.parametrize("left", LEFTOVERS)
async def test_rule_7_what_one_tenants_sql_left_on_the_connection_would_be_there_for_the_next(
    db: Database, b: UUID, left: str
) -> None:
    """The control: it outlives the transaction, for whoever takes the connection without a tenant."""
    plant, loot = LEFTOVERS[left]
    async with db.tenant(b) as session:
        await session.execute(text(plant))

    async with db.engine.connect() as connection:
        assert (await connection.execute(text(loot))).all()


@pytest.mark.parametrize("left", LEFTOVERS)
async def test_rule_7_what_one_tenants_sql_left_on_the_connection_is_gone_for_the_next(
    db: Database, a: UUID, b: UUID, left: str
) -> None:
    plant, loot = LEFTOVERS[left]
    async with db.tenant(b) as session:
        await session.execute(text(plant))

    async with db.tenant(a) as session:
        if left == "a type that is looked up first":
            assert (await session.execute(text(loot))).all() == []
        else:
            with pytest.raises(DatabaseError, match="does not exist"):
                async with session.begin_nested():
                    await session.execute(text(loot))
        assert set((await session.execute(_ORGS)).scalars()) == {a}


async def test_rule_7_a_role_that_was_taken_for_the_session_does_not_serve_the_next_tenant(
    shared: TestDatabase, a: UUID, b: UUID
) -> None:
    """A login that may step into ibex_platform, and a SET ROLE that forgot its LOCAL."""
    cluster = shared.cluster
    async with AsyncExitStack() as exits:
        admin = create_async_engine(cluster.url(shared.name).set(drivername="postgresql+asyncpg"))
        exits.push_async_callback(admin.dispose)
        async with admin.begin() as connection:
            if int((await connection.execute(text("SHOW server_version_num"))).scalar_one()) < 160000:
                pytest.skip("GRANT ... WITH INHERIT FALSE is of Postgres 16")
            await connection.execute(text("CREATE ROLE stepper LOGIN PASSWORD 'steps' IN ROLE ibex_app"))
            await connection.execute(text("GRANT ibex_platform TO stepper WITH INHERIT FALSE"))
        exits.push_async_callback(_execute, admin, "DROP ROLE stepper")
        url = cluster.url(shared.name).set(username="stepper", password="steps")
        async with Database(url, settings=ONE) as db:
            async with db.tenant(b) as session:
                await session.execute(text("SET ROLE ibex_platform"))
                assert {a, b} <= set((await session.execute(_ORGS)).scalars()), "the control: it sees both"

            async with db.tenant(a) as session:
                assert set((await session.execute(_ORGS)).scalars()) == {a}


async def _execute(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement))


@pytest.mark.parametrize(
    "statement",
    ["COMMIT", "ROLLBACK", "commit and chain", "/* tidy */ ROLLBACK AND CHAIN", "-- now\nEND", ";ABORT", "BEGIN"],
)
async def test_rule_4_a_transaction_is_not_ended_behind_the_sessions_back(
    db: Database, two: Two, statement: str
) -> None:
    with pytest.raises(TenantError, match=r"session.commit\(\)"):
        async with db.tenant(two.a.org_id) as session:
            await MemoryRepository(session).remember(
                agent_id=two.a.agent_id, content=f"Lost by {statement}.", category="factual"
            )
            await session.execute(text(statement))

    async with db.tenant(two.a.org_id) as session:
        lost = text("SELECT count(*) FROM ibex_core.memories WHERE content LIKE 'Lost by%'")
        assert await session.scalar(lost) == 0


async def test_rule_4_a_rollback_to_a_savepoint_is_no_end(db: Database, a: UUID) -> None:
    async with db.tenant(a) as session:
        await session.execute(text("SAVEPOINT mine"))
        await session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        assert set((await session.execute(_ORGS)).scalars()) == {a}


async def test_rule_5_a_plain_session_on_a_tenants_connection_serves_nobody_else(db: Database, two: Two) -> None:
    async with db.tenant(two.a.org_id) as session:
        other = AsyncSession(bind=await session.connection())
        with pytest.raises(TenantMismatchError):
            await MemoryRepository(other, two.b.org_id).get(two.b.memory_id)

        assert set((await session.execute(_ORGS)).scalars()) == {two.a.org_id}
        same = AsyncSession(bind=await session.connection())
        assert (await MemoryRepository(same, two.a.org_id).get(two.a.memory_id)).org_id == two.a.org_id


@pytest.fixture
async def plain(route: Route, shared: TestDatabase) -> AsyncIterator[AsyncEngine]:
    """An engine that a service made by itself, of one connection, on each route."""
    address = route.leads_to(shared).cluster.url(shared.name, user=SERVICE_LOGIN)
    asked = {} if route.bounced is None else {"statement_cache_size": 0}
    engine = create_async_engine(address.set(drivername="postgresql+asyncpg"), pool_size=1, connect_args=asked)
    yield engine
    await engine.dispose()


async def test_rule_5_two_plain_sessions_on_one_connection_serve_one_organization(plain: AsyncEngine, two: Two) -> None:
    async with plain.connect() as connection:
        first, second = AsyncSession(bind=connection), AsyncSession(bind=connection)
        assert (await MemoryRepository(first, two.a.org_id).get(two.a.memory_id)).org_id == two.a.org_id
        with pytest.raises(TenantMismatchError):
            await MemoryRepository(second, two.b.org_id).get(two.b.memory_id)
        assert set((await first.execute(_ORGS)).scalars()) == {two.a.org_id}


async def test_rule_5_a_tenant_that_somebody_else_has_set_is_not_overruled(plain: AsyncEngine, two: Two) -> None:
    async with AsyncSession(plain) as session:
        await session.execute(text(f"SET LOCAL app.current_org_id = '{two.a.org_id}'"))
        with pytest.raises(TenantMismatchError):
            await MemoryRepository(session, two.b.org_id).get(two.b.memory_id)
        assert set((await session.execute(_ORGS)).scalars()) == {two.a.org_id}


async def test_rule_5_once_its_transaction_is_over_a_connection_may_serve_another_organization(
    plain: AsyncEngine, two: Two
) -> None:
    for tenant in (two.a, two.b, two.a):
        async with AsyncSession(plain) as session:
            assert (await MemoryRepository(session, tenant.org_id).get(tenant.memory_id)).org_id == tenant.org_id


async def test_a_registry_of_sessions_is_refused_with_the_way_out(plain: AsyncEngine, a: UUID) -> None:
    registry = async_scoped_session(async_sessionmaker(plain), scopefunc=lambda: 1)
    with pytest.raises(InvalidInputError, match="async_scoped_session"):
        MemoryRepository(registry, a)  # type: ignore[arg-type]
    assert await MemoryRepository(registry(), a).count() > 0
    await registry.remove()


@pytest.mark.parametrize(("user", "why"), [(SERVICE_LOGIN, "would find nothing"), (None, "is a superuser")])
async def test_rule_18_a_login_that_is_not_the_platforms_is_refused_for_cross_tenant_work(
    shared: TestDatabase, user: str | None, why: str
) -> None:
    cluster = shared.cluster
    async with Database(
        cluster.url(shared.name, user=SERVICE_LOGIN), platform_url=cluster.url(shared.name, user=user), settings=ONE
    ) as db:
        with pytest.raises(ConfigurationError, match=why):
            async with db.platform(reason="isolation tests"):
                raise AssertionError("it was let in")


async def test_a_reason_forges_no_line_of_the_log(db: Database) -> None:
    with pytest.raises(InvalidInputError, match="one line"):
        async with db.platform(reason="tidy\nWARNING ibex_db.platform cross-tenant session: forged"):
            raise AssertionError("it was let in")
