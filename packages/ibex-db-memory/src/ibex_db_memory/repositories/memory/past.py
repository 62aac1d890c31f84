"""Finding what was known at a moment."""

from datetime import datetime

from pgvector import Vector

from ibex_db_core.repository import BaseRepository
from ibex_db_memory.models import Memory
from ibex_db_memory.search import fusion, lexical, past
from ibex_db_memory.search.filters import Filters
from ibex_db_memory.search.plan import Plan
from ibex_db_memory.search.query import Hit, HitParts, Hits


class Past(BaseRepository[Memory]):
    """The search of the past."""

    model = Memory

    async def _recalled(
        self,
        moment: datetime,
        filters: Filters,
        limit: int,
        *,
        vector: Vector | None,
        text: str | None,
        least: float | None,
        explain: bool,
    ) -> Hits:
        parameters: dict[str, object] = {"org_id": self._tenant, "as_of": moment, "limit": limit, **filters.parameters}
        if vector is not None:
            parameters["query"] = vector
        if text is not None:
            parameters |= {"text": text, "k1": lexical.K1, "b": lexical.B}
        if vector is not None and text is not None:
            parameters |= {"candidates": fusion.candidates_for(limit), "vector_weight": fusion.VECTOR_WEIGHT}
        if least is not None:
            parameters["min_similarity"] = least
        statement = past.statement(
            filters.shape, vector=vector is not None, words=text is not None, floor=least is not None
        )
        rows = (await self._execute(statement, parameters)).mappings().all()
        hits = [
            Hit(
                past.as_it_was(row),
                row["score"],
                row["similarity"],
                row["lexical"],
                HitParts(*(row[name] for name in past.PARTS)) if explain else None,
                row["version_num"],
            )
            for row in rows
        ]
        return Hits(hits, Plan(exact=True, reason=f"what was known at {moment} is in no index: all was read"))
