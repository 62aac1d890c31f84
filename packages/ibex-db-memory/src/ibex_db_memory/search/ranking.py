"""How hot a memory is: one documented score.

    score = 0.40 relevance + 0.25 recency + 0.20 usefulness + 0.10 confidence + 0.05 frequency

relevance is 1 where there is no query; recency is exp(-ln 2 * age / half-life),
age being the time since the memory was last retrieved, or made, and the
half-life its category's; usefulness and confidence are the columns; frequency
is min(1, retrieval_count / 10).  Every part lies in [0, 1], and so does the
score where the weights sum to 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from sqlalchemy import ColumnElement, Float, Select, Uuid, bindparam, case, func, literal_column, select

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError
from ibex_db_memory.models import Memory, MemoryCategory
from ibex_db_memory.search.filters import conditions

HALF_LIFE_DAYS: Mapping[MemoryCategory, float] = {
    MemoryCategory.FACTUAL: 180.0,
    MemoryCategory.PROCEDURAL: 120.0,
    MemoryCategory.PREFERENCE: 45.0,
    MemoryCategory.BEHAVIORAL: 30.0,
    MemoryCategory.EPISODIC: 14.0,
}
"""After how many days unused a memory of each category counts half as recent."""

# A millisecond, in days: a positive bound keeps age / half-life within what a float8 holds.
_SHORTEST_HALF_LIFE = 1e-8

# Ten retrievals say "in constant use"; more add nothing.
FREQUENT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HotWeights:
    """What each part of the score weighs, each in [0, 1], and how fast each category fades.

    Attributes:
        half_life_days: days, for the categories that should differ from HALF_LIFE_DAYS.
    """

    relevance: float = 0.40
    recency: float = 0.25
    usefulness: float = 0.20
    confidence: float = 0.10
    frequency: float = 0.05
    half_life_days: Mapping[MemoryCategory, float] | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InvalidInputError: a weight outside [0, 1], or a half-life below 1e-8 days, a millisecond.
        """
        for name in _PARTS:
            validation.number(name, getattr(self, name), 0, 1)
        given = cast("object", self.half_life_days)
        if given is not None and not isinstance(given, Mapping):
            raise InvalidInputError("half_life_days", given, "must be a mapping of categories to days")
        for category, days in (self.half_life_days or {}).items():
            validation.enum_member("half_life_days", MemoryCategory, category)
            if validation.number("half_life_days", days, 0, math.inf) < _SHORTEST_HALF_LIFE:
                raise InvalidInputError("half_life_days", days, f"must be at least {_SHORTEST_HALF_LIFE} days")

    @property
    def parameters(self) -> Mapping[str, object]:
        """The values that :func:`statement` takes."""
        days = {**HALF_LIFE_DAYS, **(self.half_life_days or {})}
        return {f"w_{name}": getattr(self, name) for name in _PARTS} | {
            f"h_{category.value}": days[category] for category in MemoryCategory
        }


_PARTS = ("relevance", "recency", "usefulness", "confidence", "frequency")


@dataclass(frozen=True, slots=True)
class ScoreParts:
    """The parts of a score before they are weighed, each in [0, 1]."""

    relevance: float
    recency: float
    usefulness: float
    confidence: float
    frequency: float


@dataclass(frozen=True, slots=True)
class HotMemory:
    """One memory to have at hand.

    Attributes:
        memory: without its embedding.
        score: in [0, 1] where the weights sum to 1.
        parts: what the score was made of; None unless explain=True.
    """

    memory: Memory
    score: float
    parts: ScoreParts | None


def _parts() -> Mapping[str, ColumnElement[float]]:
    last_used = func.greatest(Memory.created_at, Memory.last_retrieved_at)
    # Not EXTRACT, which computes in numeric: a tenth of the whole statement's time.
    age_days = func.greatest(func.date_part("epoch", func.now() - last_used, type_=Float()), 0.0) / 86400.0
    half_life = case(
        *((Memory.category == category, bindparam(f"h_{category.value}", type_=Float())) for category in MemoryCategory)
    )
    parts: dict[str, Any] = {
        "relevance": literal_column("1.0", Float()),
        # Where Python gives 0, Postgres raises: exp() of a large negative number underflows, and so
        # does a small weight times what exp(-700) is.
        "recency": func.exp(func.greatest(-math.log(2) * age_days / half_life, -100.0)),
        "usefulness": Memory.usefulness_score.cast(Float()),
        "confidence": Memory.confidence.cast(Float()),
        "frequency": func.least(Memory.retrieval_count / float(FREQUENT), 1.0),
    }
    return cast("Mapping[str, ColumnElement[float]]", parts)


@cache
def statement(shape: frozenset[str], *, explain: bool = False) -> Select[*tuple[Any, ...]]:
    """Return the hottest rows and their score, where ``explain`` its five parts too; hottest first.

    Every row of the scope is scored: what a score is made of changes with every
    retrieval, and an index on that would end HOT updates.  The parts are
    computed for all of them as well, hence not unless they are asked for.

    Parameters: org_id, limit, those of the filters and of the weights.
    """
    parts = _parts()
    score = sum(
        (bindparam(f"w_{name}", type_=Float()) * part for name, part in parts.items()),
        start=literal_column("0.0", Float()),
    )
    label = cast("Any", score).label("score")
    return (
        select(Memory, label, *(part.label(f"part_{name}") for name, part in parts.items() if explain))
        .where(Memory.org_id == bindparam("org_id", type_=Uuid()), *conditions(shape))
        .order_by(label.desc(), Memory.id)
        .limit(bindparam("limit"))
    )
