"""Writing many memories where statements go through Citus: the steps of one batch, each a statement for one worker.

What elsewhere is one statement of many parts is several here, in one transaction: Citus takes no INSERT beside another
in one statement to the worker, and refuses INSERT ... SELECT where policies apply.  VALUES it takes.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, cast
from uuid import UUID

import pgvector
from sqlalchemy import ARRAY, Table, Text, Uuid, bindparam, column, func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from ibex_db_memory.drafts import CheckedDraft
from ibex_db_memory.models import Memory, MemoryTag, MemoryVector
from ibex_db_memory.search.spaces import Space

Execute = Callable[..., Awaitable[Any]]

_MEMORIES = cast("Table", Memory.__table__)
_TAGS = cast("Table", MemoryTag.__table__)
_VECTORS = cast("Table", MemoryVector.__table__)

# A driver's message names at most 32,767 parameters.
_PARAMETERS = 32_000

_TWINS = """FROM ibex_core.memories m
    JOIN unnest(CAST(:agent_ids AS uuid[]), CAST(:hashes AS text[])) AS i (agent_id, content_hash)
        ON m.agent_id = i.agent_id AND m.content_hash = i.content_hash
    WHERE m.org_id = :org_id AND m.status = 'active' AND m.deleted_at IS NULL"""
_BINDS = (
    bindparam("org_id", type_=Uuid()),
    bindparam("agent_ids", type_=ARRAY(Uuid())),
    bindparam("hashes", type_=ARRAY(Text())),
)
# In the order of the ids: two batches over the same ones would otherwise deadlock.
_EXPIRED = text(f"SELECT m.id {_TWINS} AND m.expires_at <= now() ORDER BY m.id FOR NO KEY UPDATE OF m").bindparams(
    *_BINDS
)
_KNOWN = (
    text(f"SELECT m.id, m.agent_id, m.content_hash {_TWINS} AND (m.expires_at IS NULL OR m.expires_at > now())")
    .bindparams(*_BINDS)
    .columns(column("id", Uuid()), column("agent_id", Uuid()), column("content_hash", Text()))
)
_RETIRE = text(
    "UPDATE ibex_core.memories m SET deleted_at = now() WHERE m.org_id = :org_id AND m.id = ANY(:ids)"
).bindparams(bindparam("org_id", type_=Uuid()), bindparam("ids", type_=ARRAY(Uuid())))


class Row(NamedTuple):
    """What became of one draft: its id, the id of the row that says it, whether that is new, whether it has expired."""

    wanted: UUID
    found: UUID | None
    created: bool
    expired: bool


async def remember_many(execute: Execute, rows: Sequence[CheckedDraft], org_id: UUID, space: Space) -> Sequence[Row]:
    """Keep a batch, of which no two say the same."""
    active = [row for row in rows if row.values["status"] == "active"]
    twins = {
        "org_id": org_id,
        "agent_ids": [row.values["agent_id"] for row in active],
        "hashes": [row.values["content_hash"] for row in active],
    }
    await retire(execute, twins)
    own = [{"org_id": org_id, **row.values} for row in rows]
    if space.id is not None:
        own = [{**row, "embedding": None} for row in own]
    inserted = await insert_memories(execute, own)
    await insert_beside(execute, [row for row in rows if row.values["id"] in inserted], org_id, space)
    known: dict[tuple[UUID, str], UUID] = {}
    if len(inserted) < len(rows):
        found = (await execute(_KNOWN, twins)).all()
        known = {(agent_id, content_hash): ident for ident, agent_id, content_hash in found}
    return [_told(row, inserted, known) for row in rows]


def _told(row: CheckedDraft, inserted: Mapping[UUID, bool], known: Mapping[tuple[UUID, str], UUID]) -> Row:
    ident = cast("UUID", row.values["id"])
    if ident in inserted:
        return Row(ident, ident, created=True, expired=inserted[ident])
    place = cast("tuple[UUID, str]", (row.values["agent_id"], row.values["content_hash"]))
    return Row(ident, known.get(place), created=False, expired=False)


async def retire(execute: Execute, twins: Mapping[str, object]) -> None:
    """Soft-delete the expired memories that say one of these contents."""
    expired = (await execute(_EXPIRED, twins)).scalars().all()
    if expired:
        await execute(_RETIRE, {"org_id": twins["org_id"], "ids": expired})


async def insert_beside(execute: Execute, rows: Sequence[CheckedDraft], org_id: UUID, space: Space) -> None:
    """Insert the tags of memories that are there by now, and their vectors where these lie beside."""
    tags = [{"org_id": org_id, "memory_id": row.values["id"], "tag": tag} for row in rows for tag in row.tags]
    await insert_rows(execute, _TAGS, tags)
    await insert_vectors(execute, [row.values for row in rows], org_id, space)


async def insert_vectors(execute: Execute, rows: Iterable[Mapping[str, Any]], org_id: UUID, space: Space) -> None:
    """Insert the vectors of memories that are there by now, where these lie beside."""
    if space.id is None:
        return
    vectors = [(row, cast("pgvector.Vector", row["embedding"])) for row in rows if row["embedding"] is not None]
    await insert_rows(
        execute,
        _VECTORS,
        [
            {
                "org_id": org_id,
                "space_id": space.id,
                "id": row["id"],
                "content_hash": row["content_hash"],
                "dimensions": vector.dimensions(),
                "embedding": vector,
            }
            for row, vector in vectors
        ],
    )


async def insert_memories(execute: Execute, rows: Iterable[Mapping[str, Any]]) -> Mapping[UUID, bool]:
    """Insert what has no twin; return the ids, and whether each has expired already."""
    inserted: dict[UUID, datetime | None] = {}
    for group in _alike({name: value for name, value in row.items() if value is not None} for row in rows):
        for batch in _batches(_MEMORIES, group):
            statement = (
                upsert(_MEMORIES)
                .values(batch)
                .on_conflict_do_nothing(
                    index_elements=["org_id", "agent_id", "content_hash"],
                    index_where=text("status = 'active' AND deleted_at IS NULL"),
                )
            )
            found = (await execute(statement.returning(_MEMORIES.c.id, _MEMORIES.c.expires_at))).all()
            inserted.update((ident, expires_at) for ident, expires_at in found)
    if not any(inserted.values()):
        return dict.fromkeys(inserted, False)
    now: datetime = (await execute(select(func.now()))).scalar_one()  # which no RETURNING may say
    return {ident: expires_at is not None and expires_at <= now for ident, expires_at in inserted.items()}


async def insert_rows(execute: Execute, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows as VALUES, a column's default where a row has no value of it."""
    present = [{name: value for name, value in row.items() if value is not None} for row in rows]
    for group in _alike(present):
        for batch in _batches(table, group):
            await execute(insert(table).values(batch))


def _alike(rows: Iterable[Mapping[str, Any]]) -> Sequence[Sequence[Mapping[str, Any]]]:
    """Return the rows in groups of the same columns: VALUES knows no default for some."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    return list(groups.values())


def _batches(table: Table, rows: Sequence[Mapping[str, Any]]) -> Iterable[Sequence[Mapping[str, Any]]]:
    # Defaults that Python gives are bound for each row, too.
    bound = {*rows[0], *(column.name for column in table.columns if column.default is not None)}
    size = _PARAMETERS // len(bound)
    return (rows[start : start + size] for start in range(0, len(rows), size))
