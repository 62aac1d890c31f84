"""Finding memories: filters, the choice between index and full scan, the statement, the score."""

from ibex_db_memory.search.filters import Filters
from ibex_db_memory.search.plan import Plan
from ibex_db_memory.search.query import Hit, HitParts, Hits
from ibex_db_memory.search.ranking import HALF_LIFE_DAYS, HotMemory, HotWeights, ScoreParts

__all__ = ["HALF_LIFE_DAYS", "Filters", "Hit", "HitParts", "Hits", "HotMemory", "HotWeights", "Plan", "ScoreParts"]
