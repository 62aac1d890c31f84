"""What core's tests share: a database of toy tables, organizations in it, a view of the wire."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from uuid import UUID, uuid4

import asyncpg
import hypothesis
import pytest
import wire as wire_proxy
from sqlalchemy import text
from toys import AddBot, ToyBase
from wire import Wire

from ibex_db_core import Database, EngineSettings, Migrator
from ibex_db_core.engine import create_engine
from ibex_db_core.policies import OWNER_ROLE, secure_all
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN, Cluster
from ibex_db_core.testing import TestDatabase
from ibex_db_core.url import parse

# Nothing is timed: a busy machine is no finding.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# A shell that starts the tests in the background has them ignore Control-C, and whatever they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ONE = EngineSettings(pool_size=1, max_overflow=0, pool_timeout=5.0)
"""One connection, so that whatever a transaction leaves behind, the next one meets."""


@pytest.fixture(scope="session")
def toy_template(ibex_cluster: Cluster) -> Iterator[str]:
    """The name of a database with core's own migrations and the toy tables; never connected to but for copying."""
    name = f"ibex_toys_{uuid4().hex[:12]}"
    asyncio.run(_make_toys(ibex_cluster, name))
    yield name
    asyncio.run(ibex_cluster.drop_database(name))


async def _make_toys(cluster: Cluster, name: str) -> None:
    await cluster.create_logins()
    await cluster.create_database(name)
    engine = create_engine(parse(cluster.url(name)), EngineSettings(pool_size=1, max_overflow=0))
    await Migrator(engine).upgrade("core@head")
    async with engine.begin() as connection:
        await connection.execute(text(f"SET LOCAL ROLE {OWNER_ROLE}"))
        await connection.run_sync(ToyBase.metadata.create_all)
        for statement in secure_all(ToyBase.metadata):
            await connection.execute(text(statement))
    await engine.dispose()


@pytest.fixture(scope="session")
def toy_database(ibex_cluster: Cluster, toy_template: str) -> Iterator[TestDatabase]:
    """One database of toy tables for the whole run: each test works in organizations of its own."""
    name = f"{toy_template}_shared"
    asyncio.run(ibex_cluster.create_database(name, template=toy_template))
    yield TestDatabase(name, ibex_cluster)
    asyncio.run(ibex_cluster.drop_database(name))


@pytest.fixture
async def own_database(ibex_cluster: Cluster, toy_template: str) -> AsyncIterator[TestDatabase]:
    """A copy for one test, which may change the schema and see every row."""
    name = f"ibex_test_{uuid4().hex[:12]}"
    await ibex_cluster.create_database(name, template=toy_template)
    yield TestDatabase(name, ibex_cluster)
    await ibex_cluster.drop_database(name)


@pytest.fixture
async def empty_database(ibex_cluster: Cluster) -> AsyncIterator[TestDatabase]:
    """A database that nobody has migrated."""
    name = f"ibex_test_{uuid4().hex[:12]}"
    await ibex_cluster.create_logins()
    await ibex_cluster.create_database(name)
    yield TestDatabase(name, ibex_cluster)
    await ibex_cluster.drop_database(name)


@pytest.fixture
async def db(toy_database: TestDatabase) -> AsyncIterator[Database]:
    """An open Database as a service has it."""
    async with toy_database.connect() as database:
        yield database


@pytest.fixture
async def single(toy_database: TestDatabase) -> AsyncIterator[Database]:
    """An open Database with one connection and no more."""
    async with toy_database.connect(ONE) as database:
        yield database


@pytest.fixture
async def admin(toy_database: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    """The superuser's connection: sees what policies hide."""
    connection = await asyncpg.connect(address(toy_database))
    yield connection
    await connection.close()


def address(database: TestDatabase) -> str:
    return database.cluster.url(database.name).render_as_string(hide_password=False)


@pytest.fixture
def service_address(toy_database: TestDatabase) -> str:
    """The address of a service's login, for engines that are not ours and for raw SQL."""
    return toy_database.cluster.url(toy_database.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)


@pytest.fixture
async def acme(admin: asyncpg.Connection) -> UUID:
    """The organization that most tests work as."""
    return await add_organization(admin, "Acme")


@pytest.fixture
async def globex(admin: asyncpg.Connection) -> UUID:
    """Another organization, whose rows must stay its own."""
    return await add_organization(admin, "Globex")


async def add_organization(connection: asyncpg.Connection, name: str) -> UUID:
    """Make an organization as the platform would."""
    org_id = uuid4()
    await connection.execute("INSERT INTO ibex_core.organizations (id, name) VALUES ($1, $2)", org_id, name)
    return org_id


@pytest.fixture
def add_bot(admin: asyncpg.Connection) -> AddBot:
    """``await add_bot(org_id, slug)`` writes a row past every layer under test, and returns its id."""

    async def add(org_id: UUID, slug: str = "robin") -> UUID:
        found = await admin.fetchval(
            "INSERT INTO ibex_core.bots (org_id, slug) VALUES ($1, $2) RETURNING id", org_id, slug
        )
        assert isinstance(found, UUID)
        return found

    return add


@pytest.fixture
async def wire(toy_database: TestDatabase) -> AsyncIterator[Wire]:
    """A proxy before the toy database."""
    async with wire_proxy.listen(toy_database.cluster.admin) as opened:
        yield opened


@pytest.fixture
async def wired(wire: Wire, toy_database: TestDatabase) -> AsyncIterator[Database]:
    """A Database with one connection, whose messages the wire writes down; past its first connection's questions."""
    cluster, name = toy_database.cluster, toy_database.name
    database = Database(
        wire.address(cluster.url(name, user=SERVICE_LOGIN)),
        platform_url=wire.address(cluster.url(name, user=PLATFORM_LOGIN)),
        settings=ONE,
    )
    async with database:
        async with database.tenant(uuid4()):
            pass
        wire.clear()
        yield database
