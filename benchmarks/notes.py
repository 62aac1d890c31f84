"""The rivals of the repository verbs: plain SQLAlchemy with pgvector-python, and advanced-alchemy.

They know nothing of tenants: they get a copy of the same columns in a table
with an index on the organization, a filter that is written by hand, and no
policies.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import URL, Column, Table, Uuid, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, column_property

from benchmarks import handwritten
from benchmarks.dataset import DIMENSIONS, Array, Tenant
from ibex_db import Memory
from ibex_db_memory.content import content_hash

TABLE = "notes"

_vectors: Any = import_module("pgvector.sqlalchemy")


class _Base(DeclarativeBase):
    """What SQLAlchemy's documentation begins with."""


_table = Table(
    TABLE,
    _Base.metadata,
    Column("id", Uuid(), primary_key=True),
    *(
        Column(column.name, column.type)
        for column in Memory.__table__.columns
        if column.name not in {"id", "embedding", "search_vector"}
    ),
    Column("embedding", _vectors.Vector(DIMENSIONS)),
)


class Note(_Base):
    """The columns of Memory without what guards them; the vector is read only when asked for."""

    __table__ = _table
    embedding = column_property(_table.c.embedding, deferred=True)
    metadata_ = column_property(_table.c.metadata)


async def make(connection: "asyncpg.Connection[asyncpg.Record]", tenants: Sequence[Tenant]) -> None:
    """Copy the tenants' memories."""
    await connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
    await connection.execute(
        f"CREATE TABLE {TABLE} AS SELECT {handwritten.COLUMNS}, embedding FROM ibex_core.memories "
        f"WHERE org_id = ANY('{{{','.join(str(tenant.org_id) for tenant in tenants)}}}')"
    )
    await connection.execute(f"ALTER TABLE {TABLE} ADD PRIMARY KEY (id)")
    await connection.execute(f"CREATE INDEX ON {TABLE} (org_id)")
    await connection.execute(f"CREATE INDEX ON {TABLE} USING hnsw (embedding vector_cosine_ops)")
    await connection.execute(f"VACUUM (ANALYZE) {TABLE}")


@asynccontextmanager
async def engine(url: URL) -> AsyncGenerator[AsyncEngine]:
    """Connect as pgvector-python's documentation says."""
    made = create_async_engine(url.set(drivername="postgresql+asyncpg"), pool_size=10)

    yield made
    await made.dispose()


def new_note(tenant: Tenant, content: str, vector: Array) -> Note:
    """Return a note to add."""
    return Note(
        id=uuid4(),
        org_id=tenant.org_id,
        agent_id=tenant.agent_id,
        content=content,
        content_hash=content_hash(content),
        category="factual",
        source="extracted",
        status="active",
        embedding=vector,
    )


class Plain:
    """SQLAlchemy alone: a session for each unit of work."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def get(self, tenant: Tenant, ident: UUID) -> int:
        """Read one note."""
        async with AsyncSession(self._engine) as session, session.begin():
            where = (_table.c.id == ident, _table.c.org_id == tenant.org_id)
            return len([(await session.execute(select(Note).where(*where))).scalar_one()])

    async def list(self, tenant: Tenant, limit: int) -> int:
        """Read the newest notes."""
        newest = select(Note).where(_table.c.org_id == tenant.org_id).order_by(*_newest()).limit(limit)
        async with AsyncSession(self._engine) as session, session.begin():
            return len((await session.execute(newest)).scalars().all())

    async def add(self, note: Note) -> int:
        """Write one note."""
        async with AsyncSession(self._engine) as session, session.begin():
            session.add(note)
        return 1

    async def search(self, tenant: Tenant, vector: Array, limit: int) -> int:
        """Read the notes that are nearest, and how near."""
        distance = cast("Any", Note.embedding).cosine_distance(vector)
        nearest = select(Note, distance).where(_table.c.org_id == tenant.org_id).order_by(distance).limit(limit)
        async with AsyncSession(self._engine) as session, session.begin():
            return len((await session.execute(nearest)).all())


class Alchemy:
    """advanced-alchemy's repository over the same model."""

    def __init__(self, engine: AsyncEngine) -> None:
        package: Any = import_module("advanced_alchemy.repository")
        self._engine = engine
        self._repository: Any = type("NoteRepository", (package.SQLAlchemyAsyncRepository,), {"model_type": Note})

    async def get(self, tenant: Tenant, ident: UUID) -> int:
        """Read one note."""
        async with AsyncSession(self._engine) as session, session.begin():
            return len([await self._repository(session=session).get_one(org_id=tenant.org_id, id=ident)])

    async def list(self, tenant: Tenant, limit: int) -> int:
        """Read the newest notes."""
        newest = select(Note).order_by(*_newest()).limit(limit)
        async with AsyncSession(self._engine) as session, session.begin():
            return len(await self._repository(session=session, statement=newest).list(org_id=tenant.org_id))

    async def add(self, note: Note) -> int:
        """Write one note."""
        async with AsyncSession(self._engine) as session, session.begin():
            await self._repository(session=session).add(note)
        return 1


def _newest() -> tuple[Any, Any]:
    columns = _table.c
    return columns.created_at.desc(), columns.id.desc()
