"""The SQL of remember and remember_many.

A batch is one statement: retire expired twins, insert what is new, tag it, and
name the row that says it.  ``retired`` must be done before ``inserted`` starts,
hence the count that reads it to its end.  Created or known is told by which
part found the row: an id may be the caller's, and given twice.

A single memory is most often new, and its one statement is then an INSERT,
whose plan is made in no time; looking for its twin in the same statement cost
every new memory the planning of an UPDATE and a SELECT of a partitioned table.
Only where the INSERT meets a twin is that looked at, by a statement of its own,
whose snapshot sees whatever the INSERT ran into.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import UUID

import pgvector
from sqlalchemy import (
    ARRAY,
    BindParameter,
    Boolean,
    Column,
    Engine,
    Executable,
    Text,
    TextClause,
    Uuid,
    bindparam,
    column,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import NullType

from ibex_db_core.types import BINARY_VECTORS, Vector
from ibex_db_memory.drafts import CheckedDraft
from ibex_db_memory.models import EMBEDDING_DIMENSIONS, Memory

# Column and SQL type of what a draft brings, in one order for both statements.
_COLUMNS = {
    "id": "uuid",
    "agent_id": "uuid",
    "session_id": "uuid",
    "content": "text",
    "content_hash": "text",
    "embedding": "vector",
    "embedding_model": "text",
    "category": "text",
    "source": "text",
    "status": "text",
    "confidence": "numeric",
    "usefulness_score": "numeric",
    "metadata": "jsonb",
    "valid_from": "timestamptz",
    "valid_until": "timestamptz",
    "expires_at": "timestamptz",
}
_NAMES = ", ".join(_COLUMNS)

# The arbiter memories_content_hash_org; without its predicate ON CONFLICT is error 42P10.
_CONFLICT = "ON CONFLICT (org_id, agent_id, content_hash) WHERE status = 'active' AND deleted_at IS NULL DO NOTHING"


def _twin(agent_id: str, content_hash: str, status: str) -> str:
    """Match the live row that says the same; only active memories have one."""
    return f"""m.org_id = :org_id AND m.agent_id = {agent_id} AND m.content_hash = {content_hash}
            AND m.status = 'active' AND m.deleted_at IS NULL AND {status} = 'active'"""


def _values(value: Callable[[str], str]) -> str:
    return ", ".join(f"COALESCE({value(name)}, now())" if name == "valid_from" else value(name) for name in _COLUMNS)


_READ = tuple(
    cast("Column[Any]", column)
    for column in Memory.__table__.columns
    if column.name not in {"embedding", "search_vector"}
)

_READ_NAMES = ", ".join(column.name for column in _READ)


def _one(name: str) -> str:
    return f"CAST(:{name} AS {_COLUMNS[name]})"


# Where vectors lie beside the memories, they go there, and the memory's own column stays empty.
_VECTORED = """vectored AS (
        INSERT INTO ibex_core.memory_vectors (org_id, space_id, id, content_hash, dimensions, embedding)
        SELECT :org_id, CAST(:space_id AS uuid), {n}.id, {n}.content_hash, vector_dims({embedding}), {embedding}
        FROM {source} WHERE {embedding} IS NOT NULL
    )"""


def _beside(value: Callable[[str], str]) -> Callable[[str], str]:
    return lambda name: "NULL" if name == "embedding" else value(name)


_INSERT_ONE = f"""INSERT INTO ibex_core.memories (org_id, {_NAMES}) VALUES (:org_id, {_values(_one)})
    {_CONFLICT} RETURNING {_READ_NAMES}"""
_TWIN_OF_ONE = _twin(_one("agent_id"), _one("content_hash"), _one("status"))
_EXPIRED = column("expired", Boolean())


def _insert_one(
    statement: str, *parameters: BindParameter[Any], dimensions: int | None = EMBEDDING_DIMENSIONS
) -> Executable:
    values = (
        bindparam("org_id", type_=Uuid()),
        bindparam("embedding", type_=Vector(dimensions)),
        bindparam("metadata", type_=JSONB()),
    )
    # Made once, so that SQLAlchemy works its cache key out once.
    return select(Memory).from_statement(text(statement).bindparams(*values, *parameters).columns(*_READ))


INSERT_ONE = _insert_one(_INSERT_ONE)
"""One memory without tags: returns its row, and nothing where it has a twin."""

INSERT_TAGGED = _insert_one(
    f"""
    WITH inserted AS ({_INSERT_ONE}), tagged AS (
        INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag)
        SELECT :org_id, n.id, t.tag FROM inserted n, unnest(CAST(:tags AS text[])) AS t (tag)
    )
    SELECT {_READ_NAMES} FROM inserted
    """,
    bindparam("tags", type_=ARRAY(Text())),
)
"""One memory with its tags: as INSERT_ONE."""

INSERT_BESIDE = _insert_one(
    f"""
    WITH inserted AS (
        INSERT INTO ibex_core.memories (org_id, {_NAMES}) VALUES (:org_id, {_values(_beside(_one))})
        {_CONFLICT} RETURNING {_READ_NAMES}
    ), tagged AS (
        INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag)
        SELECT :org_id, n.id, t.tag FROM inserted n, unnest(CAST(:tags AS text[])) AS t (tag)
    ), {_VECTORED.format(n="n", embedding=_one("embedding"), source="inserted n")}
    SELECT {_READ_NAMES} FROM inserted
    """,
    bindparam("tags", type_=ARRAY(Text())),
    bindparam("space_id", type_=Uuid()),
    dimensions=None,
)
"""One memory whose vector lies beside it, with its tags: as INSERT_ONE."""

TWIN_OF_ONE = select(Memory, _EXPIRED).from_statement(
    text(f"SELECT {_READ_NAMES}, expires_at <= now() IS TRUE AS expired FROM ibex_core.memories m WHERE {_TWIN_OF_ONE}")
    .bindparams(bindparam("org_id", type_=Uuid()))
    .columns(*_READ, _EXPIRED)
)
"""The twin of one memory: its row, and whether it has expired; nothing where it is gone by now."""

RETIRE_ONE = text(
    f"UPDATE ibex_core.memories m SET deleted_at = now() WHERE {_TWIN_OF_ONE} AND m.expires_at <= now()"
).bindparams(bindparam("org_id", type_=Uuid()))
"""Soft-delete the expired twin of one memory, unless another has done so, or has made it live longer."""


def _many(name: str, kind: str) -> str:
    # jsonb travels as text: asyncpg's codec is set for single values.
    return f"CAST(:{name} AS {'text' if kind == 'jsonb' else kind}[])"


_TWIN_OF_MANY = _twin("i.agent_id", "i.content_hash", "i.status")


# Expired twins are locked in the order of their ids: two batches over the same ones would otherwise deadlock.
# They are updated by their ids: to be joined, an organization that statistics do not know is read whole.  Twins are
# joined all the same: that is once for a batch, and one by one it might be once for each twin.
def _remember_many(*, beside: bool) -> TextClause:
    value = _beside("i.{}".format) if beside else "i.{}".format
    source = "inserted n JOIN input i USING (id)"
    vectored = ", " + _VECTORED.format(n="i", embedding="i.embedding", source=source) if beside else ""
    return text(
        f"""
    WITH input AS (
        SELECT {", ".join(f"r.{name}::{kind} AS {name}" for name, kind in _COLUMNS.items())}
        FROM unnest({", ".join(_many(name, kind) for name, kind in _COLUMNS.items())}) AS r ({_NAMES})
    ), expired AS MATERIALIZED (
        SELECT m.id FROM ibex_core.memories m JOIN input i ON {_TWIN_OF_MANY} AND m.expires_at <= now()
        ORDER BY m.id FOR NO KEY UPDATE OF m
    ), retired AS (
        UPDATE ibex_core.memories m SET deleted_at = now()
        WHERE m.org_id = :org_id AND m.id = ANY(ARRAY(SELECT id FROM expired)) RETURNING 1
    ), inserted AS (
        INSERT INTO ibex_core.memories (org_id, {_NAMES})
        SELECT :org_id, {_values(value)} FROM input i WHERE (SELECT count(*) FROM retired) >= 0
        {_CONFLICT}
        RETURNING id, expires_at
    ), tagged AS (
        INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag)
        SELECT :org_id, n.id, t.tag
        FROM unnest(CAST(:tag_of AS uuid[]), CAST(:tag AS text[])) AS t (id, tag) JOIN inserted n USING (id)
    ){vectored}
    SELECT i.id, COALESCE(n.id, m.id), n.id IS NOT NULL, COALESCE(n.expires_at <= now(), false) FROM input i
    LEFT JOIN inserted n ON n.id = i.id
    LEFT JOIN ibex_core.memories m
        ON {_TWIN_OF_MANY} AND n.id IS NULL AND (m.expires_at IS NULL OR m.expires_at > now())
    """
    ).bindparams(
        bindparam("org_id", type_=Uuid()),
        *(bindparam(name, type_=NullType()) for name in (*_COLUMNS, "tag_of", "tag")),
        *([bindparam("space_id", type_=Uuid())] if beside else []),
    )


REMEMBER_MANY = _remember_many(beside=False)
"""A batch: returns each draft's id, the id of the row that says it (NULL where that is not visible yet), whether
that is a new row, and whether it has expired already."""

REMEMBER_MANY_BESIDE = _remember_many(beside=True)
"""A batch whose vectors lie beside the memories: as REMEMBER_MANY."""


KNOWN = (
    text(
        """
    SELECT 'memory' AS kind, m.id, m.agent_id,
        CASE WHEN m.status = 'active' AND m.deleted_at IS NULL THEN m.content_hash END AS twin_hash
    FROM ibex_core.memories m WHERE m.org_id = :org_id AND m.id = ANY(:ids)
    UNION ALL SELECT 'agent', a.id, NULL, NULL
    FROM ibex_core.agents a WHERE a.org_id = :org_id AND a.id = ANY(:agent_ids)
    UNION ALL SELECT 'session', s.id, NULL, NULL
    FROM ibex_core.sessions s WHERE s.org_id = :org_id AND s.id = ANY(:session_ids)
    """
    )
    .bindparams(
        bindparam("org_id", type_=Uuid()),
        *(bindparam(name, type_=ARRAY(Uuid())) for name in ("ids", "agent_ids", "session_ids")),
    )
    .columns(kind=Text(), id=Uuid(), agent_id=Uuid(), twin_hash=Text())
)
"""Which ids of a batch that failed are taken, and which of its agents and sessions are there."""


def columns_of(rows: Sequence[CheckedDraft], org_id: UUID, binary: bool) -> dict[str, object]:  # noqa: FBT001
    """Turn rows into the arrays that REMEMBER_MANY takes."""
    found: dict[str, object] = {"org_id": org_id}
    for name, kind in _COLUMNS.items():
        values = [row.values[name] for row in rows]
        if kind == "jsonb":
            values = [json.dumps(value) for value in values]
        elif kind == "vector" and not binary:
            values = [cast("pgvector.Vector", value).to_text() if value is not None else None for value in values]
        found[name] = values
    found["tag_of"] = [row.values["id"] for row in rows for _ in row.tags]
    found["tag"] = [tag for row in rows for tag in row.tags]
    return found


def speaks_binary(bind: Engine) -> bool:
    """Tell whether an engine's connections have the binary vector codec."""
    return bool(getattr(bind.dialect, BINARY_VECTORS, False))
