"""The one statement of a hybrid search: two legs, one order.

Each leg brings its candidates, the vector's nearest and the text's best; each
candidate is then judged by both.  The score is the mean of the legs' scores,
each normalised over the candidates: similarities from the least to the
greatest, BM25 from 0 (no word said) to the greatest.

    score = 0.5 * (similarity - min) / (max - min) + 0.5 * lexical / max

It lies in [0, 1] and compares within one search only.  The mean of normalised
scores: Bruch, Gai and Ingber, An Analysis of Fusion Functions for Hybrid
Retrieval, 2023; the weights and the number of candidates: decision 0020.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, cast

from sqlalchemy import CTE, ColumnElement, Float, Select, bindparam, case, func, literal_column, select
from sqlalchemy.orm import InstrumentedAttribute

from ibex_db_memory.models import Memory
from ibex_db_memory.search import lexical, spaces
from ibex_db_memory.search.filters import conditions
from ibex_db_memory.search.lexical import LIMIT, ORG

VECTOR_WEIGHT: Final = 0.5

# Evidence recall@10 stayed within 0.005 from 30 to 1,000 candidates of both legs, and from 10 to 50 of the
# vector's alone; the fewer, the fewer rows to look up.  The vector index pays for more than rows: where neighbours fill
# the partition, fifty took three times what twenty did (decision 0020).
_LEAST_NEAREST: Final = 20
_LEAST_WORDED: Final = 50

_LEAST = bindparam("min_similarity", type_=Float())


def candidates_for(limit: int) -> Mapping[str, int]:
    """Return how many candidates each leg brings for so many hits: at least as many, so that none is missing.

    Parameters of the statement: near_limit of the vector's leg, word_limit of the words'.
    """
    return {"near_limit": max(limit, _LEAST_NEAREST), "word_limit": max(2 * limit, _LEAST_WORDED)}


@cache
def statement(
    shape: frozenset[str], *, exact: bool, floor: bool, beside: int | None = None, sharded: bool = False
) -> Select[*tuple[Any, ...]]:
    """Return the best memories and how each leg judged them, best first.

    Columns: Memory, score, similarity, lexical, the four of
    :class:`~ibex_db_memory.search.query.HitParts`, and how many candidates the
    vector leg brought.  Parameters: org_id, query, limit, near_limit, word_limit,
    vector_weight, min_similarity where ``floor``, those of the filters and of
    lexical.scores(), and of the space, as in query.statement().
    """
    distance = spaces.distance(beside)
    similar = (1.0 - distance).label("similarity")
    of_one = 1.0 - spaces.distance_of_one(beside)
    floored = [of_one >= _LEAST] if floor else []
    # "+ 0" is no index's expression: the planner has to scan and sort.
    rank = (distance + literal_column("0")) if exact else distance
    nearest = (
        select(Memory.id.label("id"), similar)
        .where(Memory.org_id == ORG, *spaces.present(beside), *conditions(shape))
        .order_by(rank)
        .limit(bindparam("near_limit", type_=LIMIT.type))
        .cte("nearest")
    )
    words = lexical.scores()
    up_to = bindparam("word_limit", type_=LIMIT.type)
    worded = lexical.best(words, shape, up_to, also=[of_one.label("similarity")], where=floored, sharded=sharded)
    ident = func.coalesce(nearest.c.id, worded.c.memory_id)
    judged = (
        select(
            ident.label("id"),
            func.coalesce(nearest.c.similarity, worded.c.similarity).label("similarity"),
            func.coalesce(worded.c.score, words.c.score, 0.0).label("lexical"),
        )
        .select_from(nearest.join(worded, nearest.c.id == worded.c.memory_id, full=True))
        # The nearest that are not among the best by words have a score all the same, or none.
        .outerjoin(words, words.c.memory_id == nearest.c.id)
        .where(*([func.coalesce(nearest.c.similarity, worded.c.similarity) >= _LEAST] if floor else []))
        .cte("judged")
        .prefix_with("MATERIALIZED")
    )
    parts = scored(judged)
    top = select(parts).order_by(parts.c.score.desc(), parts.c.id).limit(LIMIT).subquery("top")
    return (
        select(
            Memory,
            top.c.score,
            top.c.similarity,
            top.c.lexical,
            top.c.vector_rank,
            top.c.vector_part,
            top.c.lexical_rank,
            top.c.lexical_part,
            select(func.count()).select_from(nearest).scalar_subquery().label("nearest_found"),
        )
        .join(top, Memory.id == top.c.id)
        .where(Memory.org_id == ORG, spaces.holds(beside, sharded=sharded))
        .order_by(top.c.score.desc(), Memory.id)
    )


def scored(judged: CTE, *also: "ColumnElement[Any]") -> CTE:
    """Return each candidate with its score, its parts, and ``also``.

    Args:
        judged: id, similarity and lexical of each candidate; NULL and 0 where a leg says nothing.
        also: further columns of judged.
    """
    similarity, said = judged.c.similarity, judged.c.lexical
    low, high = func.min(similarity).over(), func.max(similarity).over()
    vector_part = func.coalesce(
        # All alike: the vector tells none from another, and takes nothing away from any.
        case((high > low, (similarity - low) / (high - low)), (similarity.is_not(None), 1.0)),
        0.0,
    )
    lexical_part = func.coalesce(said / func.nullif(func.max(said).over(), 0.0, type_=Float()), 0.0)
    weight: Any = bindparam("vector_weight", type_=Float())
    return select(
        judged.c.id,
        *also,
        similarity,
        said,
        vector_part.label("vector_part"),
        lexical_part.label("lexical_part"),
        (weight * vector_part + (1.0 - weight) * lexical_part).label("score"),
        _rank(similarity, judged.c.id).label("vector_rank"),
        _rank(func.nullif(said, 0.0, type_=Float()), judged.c.id).label("lexical_rank"),
    ).cte("parts")


def _rank(score: "ColumnElement[Any]", ident: "ColumnElement[Any] | InstrumentedAttribute[Any]") -> ColumnElement[Any]:
    """Return the place among the candidates, from 1; NULL where the leg has no score."""
    place = func.row_number().over(order_by=[score.desc().nulls_last(), ident])
    return cast("ColumnElement[Any]", case((score.is_not(None), place)))
