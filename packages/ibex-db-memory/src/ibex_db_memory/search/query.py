"""The one statement of a vector search, and what it returns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast, overload

from sqlalchemy import Integer, Select, Uuid, bindparam, func, literal_column, select
from sqlalchemy.orm import aliased, defer

from ibex_db_core.types import Vector
from ibex_db_memory.models import EMBEDDING_DIMENSIONS, Memory
from ibex_db_memory.search.filters import conditions
from ibex_db_memory.search.plan import EXACT_UP_TO, Plan


@dataclass(frozen=True, slots=True)
class Hit:
    """One memory that a search found.

    Attributes:
        memory: without its embedding, which is read only when asked for.
        score: what the hits are ordered by, best first; a vector search's is the similarity.
        similarity: cosine similarity in [-1, 1]; None where the search had no vector.
    """

    memory: Memory
    score: float
    similarity: float | None


class Hits(Sequence[Hit]):
    """Hits, best first, and how they were found.

    Attributes:
        plan: index or full scan, and why.
    """

    def __init__(self, hits: Sequence[Hit], plan: Plan) -> None:
        self._hits = hits
        self.plan = plan

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        """Return a hit, or a slice of them."""
        return self._hits[index]

    def __len__(self) -> int:
        """Count the hits."""
        return len(self._hits)

    def __iter__(self) -> Iterator[Hit]:
        """Yield the hits, best first."""
        return iter(self._hits)

    def __repr__(self) -> str:
        """Show how many, and how."""
        return f"<Hits {len(self)}, {'exact' if self.plan.exact else 'by index'}: {self.plan.reason}>"


_QUERY = bindparam("query", type_=Vector(EMBEDDING_DIMENSIONS))
_ORG = bindparam("org_id", type_=Uuid())
_LIMIT = bindparam("limit", type_=Integer())


@cache
def statement(shape: frozenset[str], *, exact: bool) -> Select[Memory, float]:
    """Return the nearest rows and their cosine distance in [0, 2], nearest first.

    One statement for each shape of filters, so that it is built and compiled
    once; parameters: org_id, query, limit, and those of the filters.
    """
    distance = cast("Any", Memory.embedding).cosine_distance(_QUERY)
    # "+ 0" is no index's expression: the planner has to scan and sort.
    rank = (distance + literal_column("0")) if exact else distance
    inner = (
        select(Memory, rank.label("distance"))
        .where(Memory.org_id == _ORG, Memory.embedding.is_not(None), *conditions(shape))
        .order_by(rank)
        .limit(_LIMIT)
        .options(defer(Memory.search_vector, raiseload=True))
        .subquery("nearest")
    )
    nearest = aliased(Memory, inner)
    found = cast("Any", inner.c.distance)
    # The index returns its rows in relaxed order; the id makes ties stable.
    return cast("Select[Memory, float]", select(nearest, found).order_by(found, nearest.id))


@cache
def scope_size(*, by_agent: bool) -> Select[int]:
    """Count the rows of a scope, up to EXACT_UP_TO + 1, on the index over (org_id, agent_id) alone."""
    rows = select(literal_column("1", Integer())).where(Memory.org_id == _ORG)
    if by_agent:
        rows = rows.where(Memory.agent_id == func.any(bindparam("agents")))
    return select(func.count()).select_from(rows.limit(EXACT_UP_TO + 1).subquery("scope"))
