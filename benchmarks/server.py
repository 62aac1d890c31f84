"""The server that everything runs on, the databases on it, and the hand-written side's connections."""

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
import pgvector
from sqlalchemy import URL

from ibex_db import Database
from ibex_db_core.embedded import EmbeddedPostgres, postmaster
from ibex_db_core.engine import EngineSettings
from ibex_db_core.provisioning import SERVICE_LOGIN, Cluster

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

TUNED = "bench_tuned"
"""A superuser whose sessions have the vector index set as ours have it."""
BYPASS = "bench_bypass"
"""A login with the rights of services, and no policies on it."""

# Autovacuum and checkpoints would fall on whoever runs at that moment; VACUUM is run by hand after each load.
# No fsync: a commit that costs nothing hides nothing of a library's own cost.
_SETTINGS = {
    "shared_buffers": "256MB",
    "maintenance_work_mem": "64MB",
    "max_parallel_maintenance_workers": "0",
    "max_connections": "300",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
}
# For building the vector index of a whole partition in memory; it takes a session's own memory and no shared one.
_BUILD_MEMORY = "512MB"

# No statement may take too long here: on a busy machine a large write takes what it takes.
_PATIENT = EngineSettings(max_overflow=0, pool_timeout=600, statement_timeout=0, lock_timeout=0, idle_timeout=0)

PARTITIONS = 16
"""As the migration makes them unless it is told otherwise."""

EF_CONSTRUCTION = 200
"""As the migration declares the vector index."""

_FILES = """SELECT current_setting('data_directory') || '/base/' || oid
    FROM pg_database WHERE datname = current_database()"""

_HNSW = (
    "CREATE INDEX memories_embedding_hnsw ON ibex_core.memories USING hnsw (embedding vector_cosine_ops) "
    "WITH (m = 16, ef_construction = {})"
)


@asynccontextmanager
async def served(folder: Path) -> AsyncGenerator[Cluster]:
    """Start the server over a folder, or go on with the one that an interrupted run left."""
    with EmbeddedPostgres(folder, durable=False, settings=_SETTINGS) as server:
        cluster = Cluster.of(server)
        await cluster.create_logins()
        connection = await asyncpg.connect(dsn(cluster.url("postgres")))
        for name, rights in ((TUNED, "SUPERUSER"), (BYPASS, "BYPASSRLS IN ROLE ibex_app")):
            await connection.execute(
                f"DO $$ BEGIN CREATE ROLE {name} LOGIN {rights}; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
            )
        await connection.execute(f"ALTER ROLE {TUNED} SET hnsw.ef_search = 100")
        await connection.execute(f"ALTER ROLE {TUNED} SET hnsw.iterative_scan = relaxed_order")
        await connection.close()
        yield cluster


def remove(folder: Path) -> None:
    """Delete a server's folder and the data that it links to."""
    for data in folder.glob("pgdata-*"):
        if data.is_symlink():
            shutil.rmtree(data.resolve().parent, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def dsn(url: URL) -> str:
    """Return an address as drivers take it."""
    return url.render_as_string(hide_password=False)


async def migrated(cluster: Cluster, name: str, *, partitions: int = PARTITIONS, pool_size: int = 10) -> Database:
    """Return an open Database of that name with the schema in it."""
    await cluster.create_database(name)
    settings = replace(_PATIENT, pool_size=pool_size)
    os.environ["IBEX_MEMORY_PARTITIONS"] = str(partitions)  # read by the migration alone
    database = await cluster.database(name, settings=settings).open()
    await database.upgrade()
    return database


class Raw:
    """Hand-written asyncpg: what nothing can be faster than, with the tenant in BEGIN and vectors in binary."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self.pool = pool

    @classmethod
    @asynccontextmanager
    async def at(cls, address: str, *, pool_size: int = 10) -> "AsyncGenerator[Raw]":
        """Connect with the same settings for each connection as a Database."""

        async def prepare(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
            await connection.execute(_PATIENT.each_connection)
            await vectors_in_binary(connection)

        async def leave(_connection: "asyncpg.Connection[asyncpg.Record]") -> None:
            """Save the round trip of RESET ALL: nothing is left behind but what SET LOCAL set."""

        async with asyncpg.create_pool(address, min_size=1, max_size=pool_size, init=prepare, reset=leave) as pool:
            yield cls(pool)

    @classmethod
    def connected(
        cls, cluster: Cluster, database: str, *, pool_size: int = 10, user: str = SERVICE_LOGIN
    ) -> "AbstractAsyncContextManager[Raw]":
        """Connect as a service does."""
        return cls.at(dsn(cluster.url(database, user=user)), pool_size=pool_size)

    @asynccontextmanager
    async def tenant(
        self, org_id: UUID, *, begin: str = "BEGIN; SET LOCAL app.current_org_id = '{}'"
    ) -> "AsyncGenerator[PoolConnectionProxy[asyncpg.Record]]":
        """Open a transaction of one tenant: a round trip for BEGIN, one for COMMIT."""
        async with self.pool.acquire() as connection:
            await connection.execute(begin.format(org_id))
            try:
                yield connection
            except BaseException:
                await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")


async def vectors_in_binary(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Teach a connection pgvector's binary format."""
    schema = await connection.fetchval(
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'vector'"
    )
    await connection.set_type_codec(
        "vector",
        schema=schema,
        encoder=pgvector.Vector.to_binary,
        decoder=pgvector.Vector.from_binary,
        format="binary",
    )


@asynccontextmanager
async def superuser(cluster: Cluster, database: str) -> "AsyncGenerator[asyncpg.Connection[asyncpg.Record]]":
    """Connect past everything, for loading and for looking."""
    connection = await asyncpg.connect(dsn(cluster.url(database)))
    try:
        yield connection
    finally:
        await connection.close()


async def drop_vector_index(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Have a large load build the graph once, as pgvector advises."""
    await connection.execute("DROP INDEX IF EXISTS ibex_core.memories_embedding_hnsw")


async def build_vector_index(
    connection: "asyncpg.Connection[asyncpg.Record]", *, workers: int, ef_construction: int = EF_CONSTRUCTION
) -> None:
    """Build the index, as the migration declares it or less thoroughly; then count and clean as autovacuum would.

    Args:
        connection: a superuser's.
        workers: beside the session itself; with one or more, the build's memory is shared memory.
        ef_construction: candidates that are kept as a row is linked.
    """
    await connection.execute(f"SET maintenance_work_mem = '{_BUILD_MEMORY}'")
    await connection.execute(f"SET max_parallel_maintenance_workers = {workers}")
    await connection.execute(_HNSW.format(ef_construction))
    await connection.execute("RESET maintenance_work_mem")
    await connection.execute("RESET max_parallel_maintenance_workers")
    await connection.execute("VACUUM (ANALYZE) ibex_core.memories")


async def main_process(cluster: Cluster) -> int:
    """Return the process that all backends come of.

    Raises:
        RuntimeError: it has ended since it answered.
    """
    async with superuser(cluster, "postgres") as connection:
        folder = Path(str(await connection.fetchval("SHOW data_directory")))
    if (pid := postmaster.pid(folder)) is None:
        raise RuntimeError(f"no server runs over {folder}")
    return pid


async def analyzed(cluster: Cluster, database: str) -> None:
    """Have the planner know a database as it is now, as autovacuum would soon: a measure may have written much."""
    async with superuser(cluster, database) as connection:
        await connection.execute("ANALYZE")


async def versions(cluster: Cluster) -> Mapping[str, str]:
    """Say which server this is and how it is set."""
    async with superuser(cluster, "postgres") as connection:
        return {
            "postgres": str(await connection.fetchval("SHOW server_version")).split()[0],
            "pgvector": await connection.fetchval(
                "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
            ),
            **{
                name: await connection.fetchval(f"SHOW {name}")
                for name in ("shared_buffers", "maintenance_work_mem", "max_parallel_maintenance_workers", "fsync")
            },
            "index build memory": _BUILD_MEMORY,
        }


async def read_through(cluster: Cluster, database: str) -> None:
    """Read every file of a database once, so that the system's cache has it and no later read is of a disk.

    Machines take back what nobody has used for a minute: the table that was loaded first would be read from its disk,
    the one that was loaded last from memory, and that would be taken for a difference of theirs.
    """
    async with superuser(cluster, database) as connection:
        folder = str(await connection.fetchval(_FILES))
    await asyncio.to_thread(_read, Path(folder))


def _read(folder: Path) -> None:
    buffer = bytearray(1 << 20)
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
