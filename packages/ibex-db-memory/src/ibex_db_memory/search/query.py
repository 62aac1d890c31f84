"""The one statement of a vector search, and what it returns."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast, overload

from sqlalchemy import Integer, Select, Uuid, bindparam, func, literal_column, select
from sqlalchemy.orm import aliased, defer

from ibex_db_core.frozen import opened
from ibex_db_memory.models import Memory
from ibex_db_memory.search import spaces
from ibex_db_memory.search.filters import conditions
from ibex_db_memory.search.plan import EXACT_UP_TO, Plan
from ibex_db_memory.search.ranking import ScoreParts


@dataclass(frozen=True, slots=True)
class Hit:
    """One memory that a search found.

    Attributes:
        memory: without its embedding, which is read only when asked for.
        score: what the hits are ordered by, best first; a vector search's is the similarity,
            a text search's the lexical score, and a hybrid one's lies in [0, 1] and compares
            within that search only (ibex_db_memory.search.fusion).
        similarity: cosine similarity in [-1, 1]; None where the search or the memory had no vector.
        lexical: BM25 score, 0 where no word of the text is said; None where the search had no text.
        parts: how each leg judged it; None unless explain=True.
        version_num: of a search of the past, which version it is; None: the memory as it is.
    """

    memory: Memory
    score: float
    similarity: float | None
    lexical: float | None = None
    parts: "HitParts | None" = None
    version_num: int | None = None


_Open = opened(Hit)


def nearest_first(rows: Iterable[tuple[Memory, float]]) -> list[Hit]:
    """Return the hits of memories and their cosine distances."""
    hits: list[Hit] = []
    for memory, distance in rows:
        similarity = 1.0 - distance
        hit = _Open(memory, similarity, similarity)
        hit.__class__ = Hit
        hits.append(hit)
    return hits


@dataclass(frozen=True, slots=True)
class HitParts:
    """Where each leg of a search put a hit, and what that added to its score.

    Attributes:
        vector_rank: its place by similarity among the candidates, from 1; None: not judged by vector.
        vector_part: the similarity, normalised to [0, 1] over the candidates; None unless hybrid.
        lexical_rank: its place by BM25 among the candidates, from 1; None: no word of the text is said.
        lexical_part: the BM25 score, normalised to [0, 1] over the candidates; None unless hybrid.
        hot: the parts of its score, where the search was told to rank by it; ranks are those of before then.
    """

    vector_rank: int | None = None
    vector_part: float | None = None
    lexical_rank: int | None = None
    lexical_part: float | None = None
    hot: ScoreParts | None = None


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


_ORG = bindparam("org_id", type_=Uuid())
_LIMIT = bindparam("limit", type_=Integer())


@cache
def statement(
    shape: frozenset[str], *, exact: bool, beside: int | None = None, sharded: bool = False
) -> Select[Memory, float]:
    """Return the nearest rows and their cosine distance in [0, 2], nearest first.

    One statement for each shape of filters, so that it is built and compiled
    once; parameters: org_id, query, limit, and those of the filters and of the
    space (ibex_db_memory.search.spaces), whose dimensions are ``beside`` where
    its vectors lie beside the memories.
    """
    distance = spaces.distance(beside)
    # "+ 0" is no index's expression: the planner has to scan and sort.
    rank = (distance + literal_column("0")) if exact else distance
    inner = (
        select(Memory, rank.label("distance"))
        .where(
            Memory.org_id == _ORG,
            *spaces.present(beside),
            spaces.holds(beside, sharded=sharded),
            *conditions(shape),
        )
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
    """Count the rows of a scope, up to EXACT_UP_TO + 1, on an index alone: the primary key, or that of agents."""
    rows = select(literal_column("1", Integer())).where(Memory.org_id == _ORG)
    if by_agent:
        rows = rows.where(Memory.agent_id == func.any(bindparam("agents")))
    return select(func.count()).select_from(rows.limit(EXACT_UP_TO + 1).subquery("scope"))
