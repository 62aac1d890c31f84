"""The hot score over the hits of a search: relevance beside recency, usefulness, confidence and frequency.

    score = 0.40 relevance + 0.25 recency + 0.20 usefulness + 0.10 confidence + 0.05 frequency

relevance is what the search found, in [0, 1]: the similarity where there was a
vector alone, nothing below 0; the fused score of both; the BM25 score over the
greatest where there were words alone.  The others, and the weights, are
:mod:`ibex_db_memory.search.ranking`'s.

The search is asked for more hits than are wanted, and these are put in their new
order: a memory that it would not have found among them cannot come up.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from ibex_db_memory.models import Memory
from ibex_db_memory.search.filters import MAX_LIMIT
from ibex_db_memory.search.query import Hit, HitParts
from ibex_db_memory.search.ranking import FREQUENT, HALF_LIFE_DAYS, HotWeights, ScoreParts

_TIMES: Final = 5
_LEAST: Final = 50


def candidates_for(limit: int) -> int:
    """Return how many hits are put in their new order: five times as many as are wanted, from 50 to 1,000."""
    return min(max(_TIMES * limit, _LEAST), MAX_LIMIT)


def reranked(
    hits: Sequence[Hit], weights: HotWeights, *, now: datetime, limit: int, fused: bool, explain: bool
) -> list[Hit]:
    """Return the best by the hot score, best first; ties by the memory's id.

    Args:
        hits: of one search.
        weights: of the parts of the score.
        now: when ages are reckoned: the moment of a search of the past, or this one.
        limit: how many.
        fused: the scores of the search lie in [0, 1] already.
        explain: also tell the parts.
    """
    most = max((hit.score for hit in hits), default=0.0)

    def relevance(hit: Hit) -> float:
        if hit.similarity is None or fused:
            return hit.score if fused else hit.score / most if most > 0 else 0.0
        return max(0.0, hit.similarity)

    found: list[Hit] = []
    for hit in hits:
        parts = _parts(hit.memory, relevance(hit), weights, now)
        score = (
            weights.relevance * parts.relevance
            + weights.recency * parts.recency
            + weights.usefulness * parts.usefulness
            + weights.confidence * parts.confidence
            + weights.frequency * parts.frequency
        )
        told = replace(hit.parts or HitParts(), hot=parts) if explain else None
        found.append(replace(hit, score=score, parts=told))
    return sorted(found, key=lambda hit: (-hit.score, hit.memory.id))[:limit]


def _parts(memory: Memory, relevance: float, weights: HotWeights, now: datetime) -> ScoreParts:
    used = max(memory.created_at, memory.last_retrieved_at or memory.created_at)
    age_days = max(0.0, (now - used).total_seconds()) / 86400.0
    half_life = {**HALF_LIFE_DAYS, **(weights.half_life_days or {})}[memory.category]
    return ScoreParts(
        relevance=min(1.0, relevance),
        # Not below e^-100, as hot() has it.
        recency=math.exp(max(-math.log(2) * age_days / half_life, -100.0)),
        usefulness=float(memory.usefulness_score),
        confidence=float(memory.confidence),
        frequency=min(memory.retrieval_count / FREQUENT, 1.0),
    )
