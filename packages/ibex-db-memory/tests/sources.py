"""Databases of other libraries, for the tests of the importers."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg

from ibex_db_core.provisioning import Cluster

_SHAPE = """
    SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           pg_get_expr(d.adbin, d.adrelid)
      FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
      LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname NOT LIKE '%_migrations'
    UNION ALL
    SELECT tablename, indexname, indexdef, true, NULL FROM pg_indexes
     WHERE schemaname = 'public' AND tablename NOT LIKE '%_migrations'
    UNION ALL
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), true, NULL FROM pg_constraint
     WHERE connamespace = 'public'::regnamespace AND contype <> 'n' AND conrelid::regclass::text NOT LIKE '%_migrations'
"""


@dataclass(frozen=True)
class Elsewhere:
    """A database that another library works in."""

    dsn: str
    connection: asyncpg.Connection

    async def shape(self) -> set[tuple[object, ...]]:
        """Return every column, index and constraint."""
        return {tuple(row) for row in await self.connection.fetch(_SHAPE)}


@asynccontextmanager
async def elsewhere(cluster: Cluster, *, tables: str | None = None) -> AsyncGenerator[Elsewhere]:
    """Make a database, with the tables of peers/<tables>.sql."""
    name = f"ibex_elsewhere_{uuid4().hex[:12]}"
    await cluster.create_database(name)
    dsn = cluster.url(name).render_as_string(hide_password=False)
    connection = await asyncpg.connect(dsn)
    try:
        if tables is not None:
            await connection.execute((Path(__file__).parent / "peers" / f"{tables}.sql").read_text())
        yield Elsewhere(dsn, connection)
    finally:
        await connection.close()
        await cluster.drop_database(name)


def text_of(vector: list[float]) -> str:
    """Return a vector as pgvector reads it."""
    return f"[{','.join(map(repr, vector))}]"


MEM0_PAYLOADS: list[Mapping[str, object]] = [
    {
        "data": "Prefers tea over coffee.",
        "hash": "4d1c",
        "text_lemmatized": "prefer tea coffee",
        "user_id": "ada",
        "agent_id": "support-bot",
        "run_id": "run-1",
        "role": "user",
        "attributed_to": "user",
        "mood": "calm",
        "score": 0.75,
        "created_at": "2026-01-02T03:04:05.678901-08:00",
        "updated_at": "2026-01-03T03:04:05.678901-08:00",
        "expiration_date": "2999-12-31",
    },
    {
        "data": "Restart the router, then call again.",
        "hash": "77aa",
        "user_id": "ada",
        "memory_type": "procedural_memory",
        "created_at": "2026-01-02T03:04:05",
        "updated_at": "2026-01-02T03:04:05",
    },
]
