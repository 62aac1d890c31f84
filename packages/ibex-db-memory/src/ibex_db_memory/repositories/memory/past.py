"""Finding what was known at a moment."""

from datetime import datetime

from pgvector import Vector

from ibex_db_memory.repositories.memory.wording import Wording
from ibex_db_memory.search import fusion, lexical, past
from ibex_db_memory.search.filters import Filters
from ibex_db_memory.search.plan import Plan
from ibex_db_memory.search.query import Hit, HitParts, Hits
from ibex_db_memory.search.spaces import AT_HOME, Space


class Past(Wording):
    """The search of the past."""

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
        async def find(space: Space, narrowed: Filters) -> Hits:
            return await self._recalled_in(
                space, moment, narrowed, limit, vector=vector, text=text, least=least, explain=explain
            )

        return await (find(AT_HOME, filters) if vector is None else self._searched(vector, filters, find))

    async def _recalled_in(
        self,
        space: Space,
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
            parameters |= {"query": vector, **space.parameters}
        if text is not None:
            parameters |= {"text": text, "k1": lexical.K1, "b": lexical.B}
        if vector is not None and text is not None:
            parameters |= {**fusion.candidates_for(limit), "vector_weight": fusion.VECTOR_WEIGHT}
        if least is not None:
            parameters["min_similarity"] = least
        statement = past.statement(
            filters.shape,
            vector=vector is not None,
            words=text is not None,
            floor=least is not None,
            beside=space.beside,
            sharded=await self._is_sharded(),
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
