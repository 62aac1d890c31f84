"""Where an organization's vectors are: which model it searches, and the parts of a statement that say so.

A process believes what it last heard, and an organization that it never heard
of has never moved.  Belief costs nothing and is never trusted: each statement
carries what it assumes as a condition that is evaluated once, and returns
nothing where it no longer holds.  Then, and only then, the space is asked for.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast
from uuid import UUID
from weakref import WeakKeyDictionary

import pgvector
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Integer,
    Select,
    Uuid,
    bindparam,
    cast as sql_cast,
    exists,
    false,
    func,
    literal_column,
    null,
    select,
)

from ibex_db_core.errors import InvalidInputError, Shown
from ibex_db_core.types import Vector
from ibex_db_memory.models import (
    EMBEDDING_DIMENSIONS,
    INDEXED_DIMENSIONS,
    EmbeddingSpace,
    Memory,
    MemoryVector,
    SpaceStatus,
)


@dataclass(frozen=True, slots=True)
class Space:
    """The vectors that an organization's searches read.

    Attributes:
        id: None: they lie in Memory.embedding, where every organization begins.
        embedding_model: None where no move has told.
        moving: there are vectors in other spaces, too: a move is under way, or has a way back.
    """

    id: UUID | None = None
    embedding_model: str | None = None
    dimensions: int = EMBEDDING_DIMENSIONS
    moving: bool = False

    @property
    def beside(self) -> int | None:
        """The dimensions where the vectors lie beside the memories; None where they lie in Memory.embedding."""
        return None if self.id is None else self.dimensions

    @property
    def indexed(self) -> bool:
        """Whether large scopes can be answered by a vector index."""
        return self.id is None or self.dimensions in INDEXED_DIMENSIONS

    @property
    def parameters(self) -> dict[str, object]:
        """What the conditions below take."""
        return {} if self.id is None else {"space_id": self.id}

    def check(self, embedding: pgvector.Vector, model: str | None) -> None:
        """Refuse a vector that is not of this space.

        Raises:
            InvalidInputError: another length, or another model by name; naming the right one.
        """
        if (given := embedding.dimensions()) != self.dimensions:
            raise InvalidInputError("embedding", Shown(f"{given} numbers"), f"must have exactly {self}")
        if self.id is not None and model is not None and model != self.embedding_model:
            raise InvalidInputError("embedding_model", model, f"must be another: vectors have {self}")

    def check_written(self, embedding: pgvector.Vector, model: str | None) -> None:
        """Refuse a vector that is not of this space, or that only its name can tell from one of the model before.

        Raises:
            InvalidInputError: as check(), or no model is named.
        """
        self.check(embedding, model)
        if self.id is not None and model is None and self.dimensions == EMBEDDING_DIMENSIONS:
            raise InvalidInputError("embedding_model", None, f"is required: vectors have {self}")

    def __str__(self) -> str:
        """Say the rule that a vector breaks."""
        if self.id is None:
            return f"{self.dimensions} dimensions"
        return f"{self.dimensions} dimensions, of {self.embedding_model}: the organization moved to that model"


AT_HOME: Final = Space()


# Organizations that a process remembers; what is forgotten is asked for again.
_REMEMBERED = 10_000


class Beliefs:
    """What one engine's process has heard of organizations; the rest have never moved, as far as it knows."""

    def __init__(self) -> None:
        self._heard: OrderedDict[UUID, Space] = OrderedDict()

    def of(self, org_id: UUID) -> Space:
        """Return what is believed."""
        return self._heard.get(org_id, AT_HOME)

    def heard(self, org_id: UUID) -> bool:
        """Tell whether the organization was ever asked about."""
        return org_id in self._heard

    def hear(self, org_id: UUID, space: Space) -> None:
        """Believe something else."""
        self._heard[org_id] = space
        self._heard.move_to_end(org_id)
        while len(self._heard) > _REMEMBERED:
            self._heard.popitem(last=False)

    def forget(self, org_id: UUID) -> None:
        """Believe nothing."""
        self._heard.pop(org_id, None)


_by_engine: "WeakKeyDictionary[object, Beliefs]" = WeakKeyDictionary()


def beliefs_of(bind: object) -> Beliefs:
    """Return what is believed of an engine's organizations; it goes when the engine goes."""
    if (found := _by_engine.get(bind)) is None:
        found = _by_engine[bind] = Beliefs()
    return found


ORG = bindparam("org_id", type_=Uuid())
_SPACE = bindparam("space_id", type_=Uuid())
_ACTIVE = EmbeddingSpace.status == literal_column(f"'{SpaceStatus.ACTIVE.value}'")


@cache
def now_active() -> Select[UUID, bool, str | None, int, bool]:
    """Return an organization's active space, and whether there are others; no row where it never moved."""
    other = exists().where(EmbeddingSpace.org_id == ORG, ~_ACTIVE).correlate(None)
    found: Any = select(
        EmbeddingSpace.id, EmbeddingSpace.in_memories, EmbeddingSpace.embedding_model, EmbeddingSpace.dimensions, other
    )
    return cast("Select[UUID, bool, str | None, int, bool]", found.where(EmbeddingSpace.org_id == ORG, _ACTIVE))


def holds(beside: int | None, *, sharded: bool = False) -> ColumnElement[bool]:
    """Return the condition that what is believed is so; parameters: org_id, and space_id where ``beside``.

    No column of the query's own tables is in it: it is evaluated once, before any row is read.  A function asks
    (memory_0013), whose plan is kept; on a shard none may, and the condition is written out.
    """
    if not sharded:
        believed = null().cast(Uuid()) if beside is None else _SPACE
        return cast("ColumnElement[bool]", func.ibex_core.embedding_spaces_is_active(ORG, believed, type_=Boolean()))
    space: Any = select(literal_column("1", Integer())).where(EmbeddingSpace.org_id == ORG, _ACTIVE)
    if beside is None:
        return cast("ColumnElement[bool]", ~space.where(EmbeddingSpace.in_memories.is_(False)).correlate(None).exists())
    return cast("ColumnElement[bool]", space.where(EmbeddingSpace.id == _SPACE).correlate(None).exists())


def query(beside: int | None) -> Any:
    """Return the parameter that is the query's vector."""
    return bindparam("query", type_=Vector(EMBEDDING_DIMENSIONS if beside is None else beside))


def distance(beside: int | None) -> Any:
    """Return the cosine distance in [0, 2] between a memory and the query, as the index has it."""
    if beside is None:
        return cast("Any", Memory.embedding).cosine_distance(query(None))
    typed: Any = MemoryVector.embedding
    if beside in INDEXED_DIMENSIONS:
        typed = sql_cast(typed, Vector(beside))
    return typed.op("<=>", return_type=_FLOAT)(query(beside))


_FLOAT = cast("Any", Memory.embedding).cosine_distance(query(None)).type


def present(beside: int | None) -> list[ColumnElement[bool]]:
    """Return the conditions that tie a vector to its memory, and that there is one.

    It speaks for the content that it was made of: one of an older content is none.
    """
    if beside is None:
        return [Memory.embedding.is_not(None)]
    return [
        MemoryVector.org_id == ORG,
        MemoryVector.space_id == _SPACE,
        # Written out, not a parameter: the partial index of these dimensions is found by it.
        MemoryVector.dimensions == literal_column(str(beside), Integer()),
        MemoryVector.embedding.is_not(None),
        MemoryVector.id == Memory.id,
        # Inside COALESCE the planner takes it for what it is, true of most rows: as one more key of the join it
        # made it expect a single row, and sort the whole scope rather than ask the vector index.
        func.coalesce(MemoryVector.content_hash == Memory.content_hash, false()),
    ]


def distance_of_one(beside: int | None) -> Any:
    """Return the distance of the memory at hand, NULL where it has no vector: for rows found by other means."""
    if beside is None:
        return distance(None)
    return select(distance(beside)).where(*present(beside)).correlate(Memory).scalar_subquery()
