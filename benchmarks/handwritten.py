"""What a careful engineer would write by hand over asyncpg: the limit that everything is compared with.

The same tables, policies, columns and plans as ours; no checks of input, no
objects, and only what each query needs.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pgvector

from benchmarks.dataset import Array, K, Query, Tenant
from benchmarks.server import Raw
from ibex_db_memory.content import content_hash
from ibex_db_memory.models import Memory
from ibex_db_memory.search.plan import EXACT_UP_TO

if TYPE_CHECKING:
    import asyncpg

COLUMNS = ", ".join(
    column.name for column in Memory.__table__.columns if column.name not in {"embedding", "search_vector"}
)
_LIVE = """org_id = $1 AND embedding IS NOT NULL AND status = 'active' AND deleted_at IS NULL
    AND (expires_at IS NULL OR expires_at > now())"""


def search_sql(columns: str, *, exact: bool) -> str:
    """Return a search: org_id, query, limit; ``+ 0`` is no index's expression, so the rows are scanned and sorted."""
    rank = "(embedding <=> $2) + 0" if exact else "embedding <=> $2"
    nearest = f"SELECT {columns}, {rank} AS distance FROM ibex_core.memories WHERE {_LIVE} ORDER BY {rank} LIMIT $3"
    return f"SELECT * FROM ({nearest}) AS nearest ORDER BY distance, id"


SEARCH = {exact: search_sql(COLUMNS, exact=exact) for exact in (True, False)}
SEARCH_LEAN = {exact: search_sql("id, content", exact=exact) for exact in (True, False)}

_GIVEN = {
    "id": "uuid",
    "agent_id": "uuid",
    "content": "text",
    "content_hash": "text",
    "embedding": "vector",
    "category": "text",
    "source": "text",
    "status": "text",
    "confidence": "numeric",
    "usefulness_score": "numeric",
    "metadata": "jsonb",
    "valid_from": "timestamptz",
}
_NAMES = ", ".join(_GIVEN)
INSERT = (
    f"INSERT INTO ibex_core.memories (org_id, {_NAMES}) "
    f"VALUES ($1, {', '.join(f'${place}' for place in range(2, len(_GIVEN) + 2))}) RETURNING {COLUMNS}"
)
_ARRAYS = ", ".join(f"${place}::{kind}[]" for place, kind in enumerate(_GIVEN.values(), start=2))
INSERT_MANY = f"INSERT INTO ibex_core.memories (org_id, {_NAMES}) SELECT $1, r.* FROM unnest({_ARRAYS}) AS r ({_NAMES})"

RETRIEVED = """UPDATE ibex_core.memories SET retrieval_count = retrieval_count + 1, last_retrieved_at = now()
    WHERE org_id = $1 AND id = ANY($2)"""


async def search(
    raw: Raw, query: Query, *, lean: bool = False, limit: int = K, meanwhile: Callable[[], None] = lambda: None
) -> Sequence[int]:
    """Return the rows nearest to a query, in a transaction of its own; ``meanwhile`` is done before the statement."""
    sql = (SEARCH_LEAN if lean else SEARCH)[query.tenant.rows <= EXACT_UP_TO]
    async with raw.tenant(query.tenant.org_id) as connection:
        meanwhile()
        found = await connection.fetch(sql, query.tenant.org_id, pgvector.Vector(query.vector), limit)
    return [row["id"].int - 1 for row in found]


def row_of(tenant: Tenant, content: str, vector: Array) -> tuple[object, ...]:
    """Return the values of one new memory, in the order of INSERT without its org_id."""
    now = datetime.now(UTC)
    return (
        *(uuid4(), tenant.agent_id, content, content_hash(content), pgvector.Vector(vector)),
        *("factual", "extracted", "active", Decimal("0.8"), Decimal("0.5"), "{}", now),
    )


async def insert(raw: Raw, tenant: Tenant, row: tuple[object, ...]) -> "asyncpg.Record | None":
    """Write one memory, in a transaction of its own."""
    async with raw.tenant(tenant.org_id) as connection:
        return await connection.fetchrow(INSERT, tenant.org_id, *row)


async def insert_many(raw: Raw, tenant: Tenant, rows: Sequence[tuple[object, ...]]) -> int:
    """Write many memories with one statement over arrays."""
    async with raw.tenant(tenant.org_id) as connection:
        status = await connection.execute(INSERT_MANY, tenant.org_id, *zip(*rows, strict=True))
    return int(status.split()[-1])


async def copy_many(raw: Raw, tenant: Tenant, rows: Sequence[tuple[object, ...]]) -> int:
    """Write many memories with COPY; Postgres refuses COPY FROM under row-level security, so as a superuser."""
    async with raw.pool.acquire() as connection, connection.transaction():
        status = await connection.copy_records_to_table(
            "memories",
            schema_name="ibex_core",
            columns=["org_id", *_GIVEN],
            records=[(tenant.org_id, *row) for row in rows],
        )
    return int(status.split()[-1])


async def record(raw: Raw, org_id: UUID, idents: Sequence[UUID]) -> int:
    """Count a retrieval of some memories, in a transaction of its own; return how many there were."""
    async with raw.tenant(org_id) as connection:
        return int((await connection.execute(RETRIEVED, org_id, idents)).split()[-1])
