"""Finding memories by their words, alone or together with a vector."""

from dataclasses import replace
from typing import cast

from pgvector import Vector

from ibex_db_core.errors import TenantMissingError
from ibex_db_core.repository import BaseRepository
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory.models import Memory
from ibex_db_memory.search import fusion, lexical
from ibex_db_memory.search.filters import Filters
from ibex_db_memory.search.lexical import Corpus
from ibex_db_memory.search.plan import Plan, decide
from ibex_db_memory.search.query import Hit, HitParts, Hits


class Wording(BaseRepository[Memory]):
    """The legs of a search that has a text."""

    model = Memory

    async def _worded(self, text: str, filters: Filters, limit: int, *, fresh: bool, explain: bool) -> Hits:
        corpus = await self._corpus(filters, fresh=fresh)
        parameters = {**self._words(text, filters, corpus), "limit": limit}
        rows = (await self._execute(lexical.statement(filters.shape), parameters)).all()
        hits = [
            Hit(memory, score, None, score, HitParts(lexical_rank=place) if explain else None)
            for place, (memory, score) in enumerate(rows, 1)
        ]
        return Hits(hits, Plan(exact=True, reason="words alone, by their index", scope_rows=corpus.rows))

    async def _fused(
        self,
        vector: Vector,
        text: str,
        filters: Filters,
        limit: int,
        least: float | None,
        *,
        exact: bool,
        explain: bool,
    ) -> Hits:
        corpus = await self._corpus(filters, fresh=exact)
        plan = Plan(exact=True, reason="asked for") if exact else decide(corpus.rows)
        parameters = {
            **self._words(text, filters, corpus),
            "query": vector,
            "limit": limit,
            "candidates": fusion.candidates_for(limit),
            "vector_weight": fusion.VECTOR_WEIGHT,
        }
        if least is not None:
            parameters["min_similarity"] = least
        hits, nearest = await self._fuse(filters, parameters, exact=plan.exact, explain=explain)
        if not plan.exact and nearest < limit:
            # The index gave up (hnsw.max_scan_tuples) before the filters had let enough through.
            hits, _ = await self._fuse(filters, parameters, exact=True, explain=explain)
            plan = replace(plan, exact=True, rescanned=True, reason=f"{plan.reason}, but the index found too few")
        return Hits(hits, plan)

    async def _fuse(
        self, filters: Filters, parameters: dict[str, object], *, exact: bool, explain: bool
    ) -> tuple[list[Hit], int]:
        """Return the hits, and how many candidates the vector leg brought: at least as many as there are, if any."""
        statement = fusion.statement(filters.shape, exact=exact, floor="min_similarity" in parameters)
        rows = (await self._execute(statement, parameters)).all()
        hits = [
            Hit(memory, score, similarity, said, HitParts(*parts) if explain else None)
            for memory, score, similarity, said, *parts, _ in rows
        ]
        return hits, cast("int", rows[0][-1]) if rows else 0

    def _words(self, text: str, filters: Filters, corpus: Corpus) -> dict[str, object]:
        return {
            "org_id": self._tenant,
            "text": text,
            "agents": None if filters.agents is None else list(filters.agents),
            "corpus_rows": corpus.rows,
            "mean_length": corpus.mean_length,
            "k1": lexical.K1,
            "b": lexical.B,
            **filters.parameters,
        }

    async def _corpus(self, filters: Filters, *, fresh: bool) -> Corpus:
        if isinstance(self._session, ScopedSession) and self._session.org_id is None:
            raise TenantMissingError(
                "a platform session names no tenant, and words are found inside one tenant only: "
                "search for text in db.tenant(org_id)"
            )

        async def count() -> Corpus:
            parameters: dict[str, object] = {"org_id": self._tenant}
            if filters.agents is not None:
                parameters["agents"] = list(filters.agents)
            statement = lexical.corpus(by_agent=filters.agents is not None)
            rows, mean_length = (await self._execute(statement, parameters)).one()
            return Corpus(rows, mean_length)

        if fresh:
            return await count()
        return await lexical.corpora_for(self._session.get_bind()).get((self._tenant, filters.agents), count)
