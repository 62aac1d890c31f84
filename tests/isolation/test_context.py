"""Rules 1 to 9: the tenant is in every transaction, on every way to the database, and goes with it."""

import ast
import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from bouncer import Route
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from two import Two
from ways import SCOPED_WAYS, WAYS

from ibex_db import (
    Database,
    EngineSettings,
    IbexError,
    Memory,
    MemoryRepository,
    TenantMismatchError,
)
from ibex_db_core.provisioning import SERVICE_LOGIN
from ibex_db_core.testing import TestDatabase

SOURCES = Path(__file__).parents[2] / "packages"


@pytest.fixture
async def plain(route: Route, shared: TestDatabase) -> AsyncIterator[AsyncEngine]:
    """An engine that a service made by itself, of one connection, on each route."""
    address = route.leads_to(shared).cluster.url(shared.name, user=SERVICE_LOGIN)
    asked = {} if route.bounced is None else {"statement_cache_size": 0}
    engine = create_async_engine(
        address.set(drivername="postgresql+asyncpg"), pool_size=1, max_overflow=0, connect_args=asked
    )
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("way", WAYS)
async def test_without_walls_the_way_would_see_both_organizations(db: Database, two: Two, way: str) -> None:
    async with db.platform(reason="isolation tests: the control") as session:
        seen = await WAYS[way](session, two)
        await session.rollback()

    # A look at B's rows by name is the one way that is not after A's.
    assert seen >= ({two.b.org_id} if way == "forged_where" else {two.a.org_id, two.b.org_id})


@pytest.mark.parametrize("way", [*WAYS, *SCOPED_WAYS])
async def test_rule_1_every_way_through_a_tenant_session_sees_the_tenants_rows_only(
    db: Database, two: Two, way: str
) -> None:
    async with db.tenant(two.a.org_id) as session:
        seen = await (WAYS | SCOPED_WAYS)[way](session, two)
        await session.rollback()

    assert seen == (set() if way == "forged_where" else {two.a.org_id})


@pytest.mark.parametrize("way", [*WAYS, *SCOPED_WAYS])
async def test_rule_1_every_way_through_a_plain_session_with_a_repository_sees_the_tenants_rows_only(
    plain: AsyncEngine, two: Two, way: str
) -> None:
    async with AsyncSession(plain, expire_on_commit=False) as session:
        await MemoryRepository(session, two.a.org_id).count()

        seen = await (WAYS | SCOPED_WAYS)[way](session, two)

        await session.rollback()
    assert seen == (set() if way == "forged_where" else {two.a.org_id})


@pytest.mark.parametrize("way", WAYS)
async def test_rule_7_the_next_tenant_of_the_same_connection_meets_nothing_of_the_last(
    db: Database, two: Two, way: str
) -> None:
    async with db.tenant(two.b.org_id) as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))

    async with db.tenant(two.a.org_id) as session:
        same = await session.scalar(text("SELECT pg_backend_pid()"))
        seen = await WAYS[way](session, two)
        await session.rollback()

    assert same == pid
    assert two.b.org_id not in seen


async def _fails(session: AsyncSession) -> None:
    await session.execute(text("SELECT 1 / 0"))


async def _is_cancelled(session: AsyncSession) -> None:
    sleeping = asyncio.ensure_future(session.execute(text("SELECT pg_sleep(30)")))
    await asyncio.sleep(0.1)
    sleeping.cancel()
    await sleeping


async def _times_out(session: AsyncSession) -> None:
    async with asyncio.timeout(0.1):
        await session.execute(text("SELECT pg_sleep(30)"))


async def _runs_into_statement_timeout(session: AsyncSession) -> None:
    await session.execute(text("SET LOCAL statement_timeout = 50"))
    await session.execute(text("SELECT pg_sleep(30)"))


@pytest.mark.parametrize("interruption", [_fails, _is_cancelled, _times_out, _runs_into_statement_timeout])
async def test_rule_7_an_interrupted_transaction_leaves_nothing_to_the_next_tenant(
    db: Database, two: Two, interruption: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    with pytest.raises((IbexError, asyncio.CancelledError, TimeoutError)):
        async with db.tenant(two.b.org_id) as session:
            await session.execute(text("UPDATE ibex_core.memories SET embedding_model = 'left behind'"))
            await interruption(session)

    async with db.tenant(two.a.org_id) as session:
        assert set((await session.execute(text("SELECT org_id FROM ibex_core.memories"))).scalars()) == {two.a.org_id}
    async with db.tenant(two.b.org_id) as session:
        left = "SELECT count(*) FROM ibex_core.memories WHERE embedding_model = 'left behind'"
        assert await session.scalar(text(left)) == 0


async def test_rule_7_a_terminated_backend_leaves_nothing_and_the_pool_heals(
    db: Database, shared: TestDatabase, two: Two
) -> None:
    async with db.tenant(two.b.org_id) as session:
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
    owner = await asyncpg.connect(shared.cluster.url(shared.name).render_as_string(hide_password=False))
    await owner.execute("SELECT pg_terminate_backend($1, 5000)", pid)
    await owner.close()

    async with db.tenant(two.a.org_id) as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) != pid
        assert set((await session.execute(text("SELECT org_id FROM ibex_core.memories"))).scalars()) == {two.a.org_id}


async def test_rule_3_what_is_added_first_is_flushed_under_the_tenant(db: Database, two: Two) -> None:
    async with db.tenant(two.a.org_id) as session:
        session.add(Memory(agent_id=two.a.agent_id, content="Added first.", category="factual"))
        found = (await session.execute(text("SELECT 1"))).scalar()
        count = await MemoryRepository(session).count(Memory.content == "Added first.")
        await session.rollback()

    assert (found, count) == (1, 1)


async def test_rule_5_a_session_never_serves_a_second_organization(
    db: Database, plain: AsyncEngine, a: UUID, b: UUID
) -> None:
    async with db.tenant(a) as session:
        with pytest.raises(TenantMismatchError):
            MemoryRepository(session, b)
    async with AsyncSession(plain) as session:
        await MemoryRepository(session, a).count()
        with pytest.raises(TenantMismatchError):
            MemoryRepository(session, b)


async def test_rule_8_no_tenant_is_no_row_and_no_error_on_a_connection_that_had_one(
    shared: TestDatabase, a: UUID
) -> None:
    address = shared.cluster.url(shared.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
    connection = await asyncpg.connect(address)
    try:
        fresh = await connection.fetchval("SELECT count(*) FROM ibex_core.memories")
        async with connection.transaction():
            await connection.execute(f"SET LOCAL app.current_org_id = '{a}'")
            within = await connection.fetchval("SELECT count(*) FROM ibex_core.memories")

        after = [await connection.fetchval("SELECT count(*) FROM ibex_core.memories") for _ in range(2)]
        setting = await connection.fetchval("SELECT current_setting('app.current_org_id', true)")
    finally:
        await connection.close()

    assert (fresh, within, after) == (0, 2, [0, 0])
    assert setting == ""  # not NULL: what NULLIF in the policies is there for


def test_rule_9_no_source_sets_the_tenant_for_longer_than_a_transaction() -> None:
    session_level = re.compile(  # a setting that is named, and not ours, may stay: a migration's timeouts
        r"set_config\((?!'(?!app\.))[^)]*,\s*false\s*\)|SET\s+(SESSION\s+)?app\.|SET\s+(SESSION\s+)?\{TENANT_SETTING\}",
        re.IGNORECASE,
    )
    sources = list(SOURCES.glob("*/src/**/*.py"))

    guilty = [str(path) for path in sources if session_level.search(path.read_text())]

    assert len(sources) > 50
    assert session_level.search("SELECT set_config('app.current_org_id', :org, false)")
    assert session_level.search("SELECT set_config(:name, :org, false)")
    assert not session_level.search("SELECT set_config('lock_timeout', '0', false)")
    assert session_level.search("SET app.current_org_id = 'x'")
    assert guilty == []


def test_every_crossing_of_the_walls_in_the_packages_is_known() -> None:
    found = Counter(
        (path.relative_to(SOURCES).as_posix(), function)
        for path in SOURCES.glob("*/src/**/*.py")
        for function in _crossings(ast.parse(path.read_text()))
    )

    assert found == KNOWN_CROSSINGS


def test_a_second_crossing_in_a_known_file_would_be_found() -> None:
    source = """
class Sweeper:
    async def sweep(self):
        async with self.db.platform(reason="one") as session:
            def inner():
                return session, self.db.platform(reason="two")
enter = db.platform
"""

    assert list(_crossings(ast.parse(source))) == ["Sweeper.sweep", "Sweeper.sweep.inner", ""]


def _crossings(node: ast.AST, within: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the function of each mention of an attribute named platform, called or handed on."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        within = (*within, node.name)
    if isinstance(node, ast.Attribute) and node.attr == "platform" and ast.unparse(node) != "sys.platform":
        yield ".".join(within)
    for child in ast.iter_child_nodes(node):
        yield from _crossings(child, within)


# A new use of platform() in a wheel is a decision: put it here, with its reason.
_DEMO = "ibex-db-memory/src/ibex_db_memory/demo"
_COMMANDS = "ibex-db-memory/src/ibex_db_memory/commands"
KNOWN_CROSSINGS = Counter(
    {
        # Finds the organization that the command line names.
        (f"{_COMMANDS}/transfer.py", "organization"): 1,
        (f"{_COMMANDS}/expire.py", "due_of"): 1,  # asks which organizations have something to expire
        ("ibex-db-memory/src/ibex_db_memory/bench.py", "_organization"): 2,  # makes one to measure with, and erases it
        # platform() itself: its engine, and the address of that.
        ("ibex-db-core/src/ibex_db_core/database.py", "Database.platform"): 3,
        ("ibex-db-core/src/ibex_db_core/engines.py", "Engines.platform"): 2,
        (f"{_DEMO}/storing.py", "find_or_make"): 1,  # signs the demo's organizations up
        (f"{_DEMO}/story.py", "_Story.open"): 1,  # reads the server's version
        (f"{_DEMO}/roads.py", "raw_count"): 1,  # the proof's control: there is something to hide
        (f"{_DEMO}/roads.py", "every_table"): 1,  # the same, for each table
        (f"{_DEMO}/searching.py", "ask"): 1,  # the same, for a search
        ("ibex-db-tenancy/src/ibex_db_tenancy/testing.py", "make_organization.make"): 1,  # a fixture signs one up
    }
)


async def test_150_tasks_of_two_tenants_over_five_connections_see_no_wrong_row(shared: TestDatabase, two: Two) -> None:
    async def look(db: Database, org_id: UUID) -> set[UUID]:
        async with db.tenant(org_id) as session:
            return set((await session.execute(text("SELECT org_id FROM ibex_core.memories"))).scalars())

    orgs = [two.a.org_id, two.b.org_id] * 75
    async with shared.connect(EngineSettings(pool_size=5, max_overflow=0, pool_timeout=60)) as db:
        seen = await asyncio.gather(*(look(db, org_id) for org_id in orgs))

    assert seen == [{org_id} for org_id in orgs]
