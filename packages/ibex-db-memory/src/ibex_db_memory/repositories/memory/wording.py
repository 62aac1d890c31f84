"""Finding memories by their words, alone or together with a vector."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import cast

from pgvector import Vector

from ibex_db_core.errors import InvalidInputError, TenantMissingError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory.repositories.memory.spaces import Spaces
from ibex_db_memory.search import fusion, lexical
from ibex_db_memory.search.filters import Filters
from ibex_db_memory.search.lexical import Corpus
from ibex_db_memory.search.plan import Plan, decide
from ibex_db_memory.search.query import Hit, HitParts, Hits
from ibex_db_memory.search.spaces import Space


class Wording(Spaces):
    """The legs of a search that has a text."""

    async def _searched(
        self, query: Vector, filters: Filters, find: Callable[[Space, Filters], Awaitable[Hits]]
    ) -> Hits:
        """Search the space that is believed to be the organization's, and the right one where it was not.

        A statement that assumed the wrong space returns nothing, whatever there is.
        """
        space = await self._space_to_search(query, filters.embedding_model)
        while True:
            hits = await find(space, _narrowed(filters, space))
            if space.id is None:
                _refuse_mixed_models(hits)
            if hits or (now := await self._space_now()).id == space.id:
                return hits
            now.check(query, filters.embedding_model)
            space = now

    async def _worded(self, text: str, filters: Filters, limit: int, *, fresh: bool, explain: bool) -> Hits:
        corpus = await self._corpus(filters, fresh=fresh)
        parameters = {**self._words(text, filters, corpus), "limit": limit}
        statement = lexical.statement(filters.shape, sharded=await self._is_sharded())
        rows = await self._rows(statement, parameters)
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
        async def find(space: Space, narrowed: Filters) -> Hits:
            return await self._fused_in(
                space, vector, text, narrowed, limit=limit, least=least, exact=exact, explain=explain
            )

        return await self._searched(vector, filters, find)

    async def _fused_in(
        self,
        space: Space,
        vector: Vector,
        text: str,
        filters: Filters,
        *,
        limit: int,
        least: float | None,
        exact: bool,
        explain: bool,
    ) -> Hits:
        if space.id is not None and await self._is_sharded():
            raise InvalidInputError(
                "text",
                text,
                "cannot be searched for together with a vector here: the database is distributed, and the "
                "organization's vectors lie beside its memories since it moved to another model; "
                "ask for one of the two",
            )
        corpus = await self._corpus(filters, fresh=exact)
        plan = Plan(exact=True, reason="asked for") if exact else decide(corpus.rows, space)
        parameters = {
            **self._words(text, filters, corpus),
            **space.parameters,
            "query": vector,
            "limit": limit,
            **fusion.candidates_for(limit),
            "vector_weight": fusion.VECTOR_WEIGHT,
        }
        if least is not None:
            parameters["min_similarity"] = least
        hits, nearest = await self._fuse(space, filters, parameters, exact=plan.exact, explain=explain)
        if not plan.exact and nearest < limit:
            # The index gave up (hnsw.max_scan_tuples) before the filters had let enough through.
            hits, _ = await self._fuse(space, filters, parameters, exact=True, explain=explain)
            plan = replace(plan, exact=True, rescanned=True, reason=f"{plan.reason}, but the index found too few")
        return Hits(hits, plan)

    async def _fuse(
        self, space: Space, filters: Filters, parameters: dict[str, object], *, exact: bool, explain: bool
    ) -> tuple[list[Hit], int]:
        """Return the hits, and how many candidates the vector leg brought: at least as many as there are, if any."""
        floor = "min_similarity" in parameters
        is_sharded = await self._is_sharded()
        statement = fusion.statement(filters.shape, exact=exact, floor=floor, beside=space.beside, sharded=is_sharded)
        rows = await self._rows(statement, parameters)
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
            ((rows, mean_length),) = await self._rows(statement, parameters)
            return Corpus(rows, mean_length)

        if fresh:
            return await count()
        return await lexical.corpora_for(self._server).get((self._tenant, filters.agents), count)


def _narrowed(filters: Filters, space: Space) -> Filters:
    """Take the name of the model from the filters where there is one model only."""
    return filters if space.id is None else replace(filters, embedding_model=None, unnamed_model=False)


def _refuse_mixed_models(hits: Hits) -> None:
    """Similarities of two models do not compare; silence would only look like an answer."""
    # Of what was just loaded: asking each attribute as the mapper has it costs a hundredth of the search.
    models = {vars(hit.memory).get("embedding_model") for hit in hits if hit.similarity is not None}
    if len(models) > 1:
        named = ", ".join(sorted(str(model) for model in models))
        raise InvalidInputError(
            "embedding_model", None, f"must name one model: the nearest memories have vectors of {named}"
        )
