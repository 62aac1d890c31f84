"""How memories stand to each other: edges, walks that end in spite of cycles, and the tip of a chain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import cast
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Text,
    TextClause,
    Uuid,
    and_,
    bindparam,
    delete,
    literal_column,
    not_,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_core.repository import BaseRepository
from ibex_db_memory.models import Memory, MemoryRelationship, RelationshipType
from ibex_db_memory.search.filters import limit_of

# A walk's cost is bounded by its depth times the edges it meets; nobody reads further.
MAX_DEPTH = 10


class Direction(StrEnum):
    """Which edges a walk follows: those that leave a memory, those that reach it, or both."""

    OUT = "out"
    IN = "in"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One memory that a walk reached, by the shortest way.

    Attributes:
        memory: without its embedding.
        depth: edges from the start, from 1.
        relationship_type: of the last edge.
        outgoing: the last edge leads to this memory; False: it leads away from it.
        via: the memory before it on the way; the start where depth is 1.
    """

    memory: Memory
    depth: int
    relationship_type: RelationshipType
    outgoing: bool
    via: UUID


def _stands(org_id: UUID, source: UUID, target: UUID) -> ColumnElement[bool]:
    """Match the edge that supersede() or merge() drew, as long as the target points back.

    By the ids, and kept apart by OFFSET 0: joined to the edges, one of the two would
    be read whole of an organization that statistics do not know.
    """
    points_back = or_(
        and_(MemoryRelationship.relationship_type == RelationshipType.SUPERSEDES, Memory.superseded_by == source),
        and_(MemoryRelationship.relationship_type == RelationshipType.MERGED_FROM, Memory.merged_into == source),
    )
    mine = select(Memory.id).where(Memory.org_id == org_id, Memory.id == target, points_back)
    return mine.offset(literal_column("0")).exists()


# The edges that lead on from w, and those by which one that was reached may have been reached.
_ON = {
    Direction.OUT: """SELECT e.target_memory_id AS id FROM ibex_core.memory_relationships e
                WHERE e.org_id = :org_id AND e.source_memory_id = w.id {types}""",
    Direction.IN: """SELECT e.source_memory_id AS id FROM ibex_core.memory_relationships e
                WHERE e.org_id = :org_id AND e.target_memory_id = w.id {types}""",
}
_BACK = {
    Direction.OUT: """SELECT e.relationship_type, true AS outgoing, e.source_memory_id AS via
                FROM ibex_core.memory_relationships e
                WHERE e.org_id = :org_id AND e.target_memory_id = r.id {types}""",
    Direction.IN: """SELECT e.relationship_type, false AS outgoing, e.target_memory_id AS via
                FROM ibex_core.memory_relationships e
                WHERE e.org_id = :org_id AND e.source_memory_id = r.id {types}""",
}


def _walk(direction: Direction, *, typed: bool) -> TextClause:
    ways = [Direction.OUT, Direction.IN] if direction is Direction.BOTH else [direction]
    types = "AND e.relationship_type = ANY(:types)" if typed else ""
    on = " UNION ALL ".join(_ON[way] for way in ways).format(types=types)
    back = " UNION ALL ".join(_BACK[way] for way in ways).format(types=types)
    # UNION, not UNION ALL, and of nothing but place and depth: a memory is left
    # once at each depth however many ways lead to it, so a dense graph costs its
    # edges times the depth.  By which edge each was reached is asked at the end,
    # of those alone that are returned.
    # OFFSET 0 keeps the planner from joining otherwise than edge by edge: it would
    # read the whole of an organization that statistics do not know.
    statement = text(
        f"""
        WITH RECURSIVE walk (id, depth) AS (
            SELECT CAST(:start AS uuid), 0
            UNION
            SELECT n.id, w.depth + 1 FROM walk w CROSS JOIN LATERAL ({on} OFFSET 0) n
            WHERE w.depth < :depth AND n.id <> :start
        ), nearest AS MATERIALIZED (
            SELECT id, min(depth) AS depth FROM walk GROUP BY id
        ), reached AS (
            SELECT n.id, n.depth FROM nearest n CROSS JOIN LATERAL (
                SELECT FROM ibex_core.memories m
                WHERE m.org_id = :org_id AND m.id = n.id AND m.deleted_at IS NULL OFFSET 0
            ) m
            WHERE n.depth > 0 ORDER BY n.depth, n.id LIMIT :limit
        )
        SELECT r.id, r.depth, last.relationship_type, last.outgoing, last.via
        FROM reached r CROSS JOIN LATERAL (
            SELECT b.* FROM ({back}) b JOIN nearest v ON v.id = b.via AND v.depth = r.depth - 1
            ORDER BY b.relationship_type, b.outgoing, b.via LIMIT 1
        ) last ORDER BY r.depth, r.id
        """
    ).bindparams(bindparam("org_id", type_=Uuid()), bindparam("start", type_=Uuid()))
    return statement.bindparams(bindparam("types", type_=ARRAY(Text()))) if typed else statement


WALKS = {(direction, typed): _walk(direction, typed=typed) for direction in Direction for typed in (False, True)}

# As in _walk(), the way is gone memory by memory; UNION ends a circle, which only raw SQL can make: it has no tip.
_TIP = text(
    """
    WITH RECURSIVE chain (id, next) AS (
        SELECT m.id, COALESCE(m.superseded_by, m.merged_into) FROM ibex_core.memories m
        WHERE m.org_id = :org_id AND m.id = :start
        UNION
        SELECT m.id, COALESCE(m.superseded_by, m.merged_into)
        FROM chain c CROSS JOIN LATERAL (
            SELECT * FROM ibex_core.memories m WHERE m.org_id = :org_id AND m.id = c.next OFFSET 0
        ) m
    )
    SELECT id FROM chain WHERE next IS NULL
    """
).bindparams(bindparam("org_id", type_=Uuid()), bindparam("start", type_=Uuid()))


class Graph(BaseRepository[Memory]):
    """Relationships between an organization's memories."""

    model = Memory

    async def relate(
        self,
        source: UUID,
        target: UUID,
        relationship_type: RelationshipType | str,
        *,
        confidence: Decimal | float = 1.0,
        notes: str | None = None,
    ) -> MemoryRelationship:
        """Draw the edge "source TYPE target", or give the one that is there this confidence and these notes.

        Raises:
            InvalidInputError: a memory related to itself, an unknown type, confidence outside [0, 1].
            ForeignKeyError: one of the two is not in this organization.

        Example:
            >>> a = (await memories.remember(agent_id=agent.id, content="Moved to Oslo.", category="episodic")).memory
            >>> b = (await memories.remember(agent_id=agent.id, content="Lives in Oslo.", category="factual")).memory
            >>> (await memories.relate(b.id, a.id, "derived_from")).relationship_type
            <RelationshipType.DERIVED_FROM: 'derived_from'>
        """
        source, target = validation.uuid("source", source), validation.uuid("target", target)
        if source == target:
            raise InvalidInputError("target", target, "must be another memory than the source")
        values = {
            "org_id": self._tenant,
            "source_memory_id": source,
            "target_memory_id": target,
            "relationship_type": validation.enum_member("relationship_type", RelationshipType, relationship_type),
            "confidence": validation.check(MemoryRelationship, "confidence", confidence),
            "notes": None if notes is None else validation.text("notes", notes),
        }
        statement = insert(MemoryRelationship).values(values)
        statement = statement.on_conflict_do_update(
            constraint="memory_relationships_edge_key",
            set_={"confidence": statement.excluded.confidence, "notes": statement.excluded.notes},
        )
        found = await self._execute(
            select(MemoryRelationship).from_statement(statement.returning(MemoryRelationship)), populate_existing=True
        )
        return cast("MemoryRelationship", found.scalars().one())

    async def unrelate(
        self, source: UUID, target: UUID, relationship_type: RelationshipType | str | None = None
    ) -> int:
        """Remove the edges from source to target, of one type or of all; return how many there were.

        The edge of a supersession or a merge that stands is the lifecycle's:
        restore() of the target takes it away, with the pointer.

        Raises:
            InvalidInputError: one of them is such an edge; none is removed.

        Example:
            >>> a = (await memories.remember(agent_id=agent.id, content="Moved to Oslo.", category="episodic")).memory
            >>> b = (await memories.remember(agent_id=agent.id, content="Lives in Oslo.", category="factual")).memory
            >>> edge = await memories.relate(b.id, a.id, "derived_from")
            >>> await memories.unrelate(b.id, a.id)
            1
        """
        source, target = validation.uuid("source", source), validation.uuid("target", target)
        stands = _stands(self._tenant, source, target)
        edges = [
            MemoryRelationship.org_id == self._tenant,
            MemoryRelationship.source_memory_id == source,
            MemoryRelationship.target_memory_id == target,
        ]
        if relationship_type is not None:
            kind = validation.enum_member("relationship_type", RelationshipType, relationship_type)
            edges.append(MemoryRelationship.relationship_type == kind)
        standing = (await self._execute(select(MemoryRelationship.relationship_type).where(*edges, stands))).scalars()
        for kind in standing:
            raise InvalidInputError(
                "relationship_type",
                cast("RelationshipType", kind).value,
                f"is the edge of a step that stands: restore({target}) takes it back, pointer and edge",
            )
        # Asked again: a step that is taken at this very moment keeps its edge.
        statement = delete(MemoryRelationship).where(*edges, not_(stands)).returning(MemoryRelationship.id)
        return len((await self._execute(statement)).all())

    async def neighbors(
        self,
        ident: UUID,
        *,
        depth: int = 1,
        types: Iterable[RelationshipType | str] | None = None,
        direction: Direction | str = Direction.BOTH,
        limit: int = 100,
    ) -> Sequence[Neighbor]:
        """Return the memories within some edges of one, nearest first; ends in spite of cycles.

        Forgotten memories are left out, though a way may lead through them.  A
        memory that is not there has no neighbors.

        Args:
            ident: where to start; never among the neighbors.
            depth: edges, 1 to 10.
            types: follow edges of these types only.
            direction: "out" from source to target, "in", or "both".
            limit: how many at most, 1 to 1000.

        Example:
            >>> a = (await memories.remember(agent_id=agent.id, content="Moved to Oslo.", category="episodic")).memory
            >>> b = (await memories.remember(agent_id=agent.id, content="Lives in Oslo.", category="factual")).memory
            >>> edge = await memories.relate(b.id, a.id, "derived_from")
            >>> [(n.memory.content, n.depth) for n in await memories.neighbors(b.id, depth=2)]
            [('Moved to Oslo.', 1)]
        """
        parameters: dict[str, object] = {
            "org_id": self._tenant,
            "start": validation.uuid("id", ident),
            "depth": validation.integer("depth", depth, 1, MAX_DEPTH),
            "limit": limit_of(limit),
        }
        if types is not None:
            given = [types] if isinstance(types, str) else list(types)
            if not given:
                raise InvalidInputError("types", [], "must not be empty: leave it out to follow every type")
            parameters["types"] = [validation.enum_member("types", RelationshipType, kind).value for kind in given]
        way = validation.enum_member("direction", Direction, direction)
        rows = (await self._execute(WALKS[cast("Direction", way), types is not None], parameters)).all()
        found = {memory.id: memory for memory in await self.get_many([row[0] for row in rows])}
        return [
            Neighbor(found[near], steps, RelationshipType(kind), outgoing, via)
            for near, steps, kind, outgoing, via in rows
            if near in found
        ]

    async def current(self, ident: UUID) -> Memory:
        """Return what holds today in a memory's place: the end of its chain of superseded_by and merged_into.

        Raises:
            NotFoundError: no such memory in this organization, or the end of the chain was forgotten, or
                raw SQL has made a circle of the chain.

        Example:
            >>> old = (await memories.remember(agent_id=agent.id, content="Lives in Rome.", category="factual")).memory
            >>> new = await memories.supersede(old.id, by={
            ...     "agent_id": agent.id, "content": "Lives in Oslo.", "category": "factual"})
            >>> (await memories.current(old.id)).id == new.id
            True
        """
        ident = validation.uuid("id", ident)
        tip = (await self._execute(_TIP, {"org_id": self._tenant, "start": ident})).scalar_one_or_none()
        if tip is None:
            raise NotFoundError(Memory.__name__, ident)
        return await self.get(tip)
