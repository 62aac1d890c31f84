"""The statements that the isolation proof tries: raw SQL, as a forgetful or hostile service would send it."""

from collections.abc import Sequence
from typing import cast
from uuid import UUID, uuid4

from sqlalchemy import Uuid, bindparam, text

from ibex_db_core.tenant import ScopedSession
from ibex_db_core.types import Vector
from ibex_db_memory.content import content_hash
from ibex_db_memory.models import EMBEDDING_DIMENSIONS

__all__ = ["IDENTICAL", "add_memory", "move", "nearest", "relate"]

# A vector's cosine similarity to itself, less what float32 rounds away.
IDENTICAL = 0.9999

_UUIDS = {name: bindparam(name, type_=Uuid()) for name in ("org", "agent", "id", "source", "target")}

_ADD = text(
    """
    INSERT INTO ibex_core.memories (org_id, agent_id, content, content_hash, category)
    VALUES (:org, :agent, :content, :hash, 'factual') RETURNING id
    """
).bindparams(_UUIDS["org"], _UUIDS["agent"])
_MOVE = text("UPDATE ibex_core.memories SET org_id = :org WHERE id = :id RETURNING id").bindparams(
    _UUIDS["org"], _UUIDS["id"]
)
_RELATE = text(
    """
    INSERT INTO ibex_core.memory_relationships (org_id, source_memory_id, target_memory_id, relationship_type)
    VALUES (:org, :source, :target, 'related_to') RETURNING id
    """
).bindparams(_UUIDS["org"], _UUIDS["source"], _UUIDS["target"])
_NEAREST = text(
    """
    SELECT org_id, 1 - (embedding <=> :vector) AS similarity
    FROM ibex_core.memories WHERE embedding IS NOT NULL ORDER BY embedding <=> :vector LIMIT :limit
    """
).bindparams(bindparam("vector", type_=Vector(EMBEDDING_DIMENSIONS)))


async def add_memory(session: ScopedSession, org_id: UUID, agent_id: UUID) -> UUID:
    """Insert a memory that nobody has yet, naming the organization and the agent."""
    content = f"Written by the isolation proof, and taken back: {uuid4()}."
    values = {"org": org_id, "agent": agent_id, "content": content, "hash": content_hash(content)}
    return cast("UUID", await session.scalar(_ADD, values))


async def move(session: ScopedSession, memory_id: UUID, org_id: UUID) -> UUID | None:
    """Give a memory to another organization."""
    return cast("UUID | None", await session.scalar(_MOVE, {"id": memory_id, "org": org_id}))


async def relate(session: ScopedSession, org_id: UUID, source: UUID, target: UUID) -> UUID:
    """Point from one memory at another."""
    values = {"org": org_id, "source": source, "target": target}
    return cast("UUID", await session.scalar(_RELATE, values))


async def nearest(session: ScopedSession, vector: Sequence[float], *, limit: int) -> Sequence[tuple[UUID, float]]:
    """Search by vector and name no organization at all."""
    rows = (await session.execute(_NEAREST, {"vector": vector, "limit": limit})).all()
    return [(org_id, similarity) for org_id, similarity in rows]
