"""Finding memories: by vector, by words or both, near duplicates, and the hot ones."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

from pgvector import Vector

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError
from ibex_db_core.types import JsonObject, VectorLike
from ibex_db_memory.drafts import check_embedding
from ibex_db_memory.models import MemoryCategory, MemorySource, MemoryStatus
from ibex_db_memory.repositories.memory.past import Past
from ibex_db_memory.search import query, ranking, rerank
from ibex_db_memory.search.filters import Filters, OneOrMany, limit_of
from ibex_db_memory.search.lexical import check_text
from ibex_db_memory.search.plan import Plan, decide, sizes_for
from ibex_db_memory.search.query import Hit, HitParts, Hits
from ibex_db_memory.search.ranking import HotMemory, HotWeights, ScoreParts
from ibex_db_memory.search.spaces import Space


class Finding(Past):
    """Searching an organization's memories."""

    async def search(
        self,
        *,
        embedding: VectorLike | None = None,
        text: str | None = None,
        agent_id: OneOrMany | None = None,
        limit: int = 10,
        session_id: UUID | None = None,
        categories: Iterable[MemoryCategory | str] | None = None,
        sources: Iterable[MemorySource | str] | None = None,
        statuses: Iterable[MemoryStatus | str] | None = None,
        tags_any: Iterable[str] | None = None,
        tags_all: Iterable[str] | None = None,
        metadata: JsonObject | None = None,
        min_confidence: float | None = None,
        min_similarity: float | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        valid_at: datetime | None = None,
        as_of: datetime | None = None,
        embedding_model: str | None = None,
        include_expired: bool = False,
        include_deleted: bool = False,
        rank: HotWeights | None = None,
        exact: bool = False,
        explain: bool = False,
    ) -> Hits:
        """Return the memories that are most like a vector, say the words of a text, or both; best first.

        A scope of at most 5,000 rows (the organization's, or the agents' that are
        named) is scanned in full; a larger one is answered by the HNSW index, and
        scanned where a filter left the index too few rows: a search returns
        ``limit`` hits whenever that many match.

        A text is searched for by its English lexemes, any of them, scored by BM25
        (ibex_db_memory.search.lexical); one of stop words alone matches nothing.
        With both, one statement asks both and fuses the answers
        (ibex_db_memory.search.fusion).

        ``as_of`` searches what was known at a moment: contents, categories,
        statuses, confidences, metadata and validity as they were; what was deleted
        or superseded since is back, what was learned later is not there, and
        what was erased is gone.  Hits hold detached copies: nothing that is
        assigned to one is saved.  Their counters, feedback, source, session and expires_at are
        today's; tags are those of then that it still has; one that was
        forgotten and brought back since counts as never forgotten.  A memory
        whose content has changed since is compared by the vector it had then.
        The whole scope is read.

        Args:
            embedding: the query, of the model that made the memories' vectors; shape (384,) unless the
                organization moved to another (ibex_db_memory.reembedding).
            text: the query in words, 1 to 4096 characters; quotes and operators are words like others.
            agent_id: one agent or several; None: all of the organization.
            limit: how many hits, 1 to 1000.
            session_id: learned in this session.
            categories: any of these.
            sources: any of these.
            statuses: any of these; None: active only.
            tags_any: at least one of these tags.
            tags_all: every one of these tags.
            metadata: contained in the memory's metadata (jsonb @>).
            min_confidence: in [0, 1].
            min_similarity: cosine similarity, in [-1, 1]; needs an embedding.
            created_after: made at or after, aware.
            created_before: made before, aware.
            valid_at: holds in the world at this moment: valid_from <= moment < valid_until; aware.
            as_of: search what was known at this moment, aware; a change counts from the start of its transaction.
            embedding_model: vectors of this model only.
            include_expired: also memories past their expires_at.
            include_deleted: also soft-deleted memories.
            rank: put the best of the search, five times limit and at least 50, in the order of the hot
                score with these weights (ibex_db_memory.search.rerank); the score is then that one.
            exact: scan the whole scope whatever its size, and count it anew for BM25.
            explain: also return how each leg judged each hit.

        Raises:
            InvalidInputError: neither embedding nor text; a value that breaks its rule; a vector of another model
                than the organization's, naming that; or hits whose vectors come from several models.
            TenantMissingError: a text or as_of on a platform session: both are found inside one tenant only.

        Example:
            >>> kept = await memories.remember(
            ...     agent_id=agent.id, content="Prefers tea over coffee.", category="preference", tags=["drinks"])
            >>> hits = await memories.search(agent_id=agent.id, text="what tea?", tags_any=["drinks"])
            >>> hits[0].memory.content
            'Prefers tea over coffee.'
        """
        filters = Filters.of(
            agent_id=agent_id,
            session_id=session_id,
            categories=categories,
            sources=sources,
            statuses=statuses,
            tags_any=tags_any,
            tags_all=tags_all,
            metadata=metadata,
            min_confidence=min_confidence,
            created_after=created_after,
            created_before=created_before,
            valid_at=valid_at,
            embedding_model=embedding_model,
            include_expired=include_expired,
            include_deleted=include_deleted,
        )
        least = None if min_similarity is None else validation.number("min_similarity", min_similarity, -1, 1)
        vector = check_embedding(embedding)
        if text is None and vector is None:
            raise InvalidInputError("embedding", None, "or text is required")
        if vector is None and least is not None:
            raise InvalidInputError("min_similarity", least, "needs an embedding to compare with")
        text = None if text is None else check_text(text)
        if as_of is not None:
            validation.moment("as_of", as_of)
        if rank is not None and not isinstance(cast("object", rank), HotWeights):
            raise InvalidInputError("rank", rank, "must be HotWeights")
        asked = limit_of(limit)
        wanted = asked if rank is None else rerank.candidates_for(asked)
        if as_of is not None:
            hits = await self._recalled(as_of, filters, wanted, vector=vector, text=text, least=least, explain=explain)
        elif vector is None:
            hits = await self._worded(cast("str", text), filters, wanted, fresh=exact, explain=explain)
        elif text is None:
            hits = await self._nearest(vector, filters, wanted, exact=exact)
            if explain:
                ranked = [replace(hit, parts=HitParts(vector_rank=place)) for place, hit in enumerate(hits, 1)]
                hits = Hits(ranked, hits.plan)
        else:
            hits = await self._fused(vector, text, filters, wanted, least, exact=exact, explain=explain)
        if least is not None:
            hits = Hits([hit for hit in hits if cast("float", hit.similarity) >= least], hits.plan)
        if rank is None:
            return hits
        fused = vector is not None and text is not None
        now = as_of or datetime.now(UTC)
        return Hits(rerank.reranked(hits, rank, now=now, limit=asked, fused=fused, explain=explain), hits.plan)

    async def find_similar(
        self,
        embedding: VectorLike,
        *,
        threshold: float = 0.9,
        agent_id: OneOrMany | None = None,
        limit: int = 10,
        valid_at: datetime | None = None,
        embedding_model: str | None = None,
    ) -> Hits:
        """Return the near duplicates of a vector: active memories at or above a cosine similarity, best first.

        Args:
            embedding: shape (384,) unless the organization moved to another model.
            threshold: cosine similarity, in [-1, 1].
            agent_id: one agent or several; None: all of the organization.
            limit: how many at most, 1 to 1000.
            valid_at: holds in the world at this moment, aware.
            embedding_model: vectors of this model only.

        Example:
            >>> vector = [1.0] + [0.0] * 383
            >>> kept = await memories.remember(
            ...     agent_id=agent.id, content="Likes tea.", category="preference", embedding=vector)
            >>> [round(hit.similarity, 3) for hit in await memories.find_similar(vector, threshold=0.95)]
            [1.0]
        """
        validation.number("threshold", threshold, -1, 1)
        return await self.search(
            embedding=embedding,
            agent_id=agent_id,
            limit=limit,
            min_similarity=threshold,
            valid_at=valid_at,
            embedding_model=embedding_model,
        )

    async def hot(
        self,
        agent_id: OneOrMany,
        *,
        limit: int = 10,
        categories: Iterable[MemoryCategory | str] | None = None,
        valid_at: datetime | None = None,
        weights: HotWeights | None = None,
        explain: bool = False,
    ) -> Sequence[HotMemory]:
        """Return what an agent should have at hand, hottest first; ibex_db_memory.search.ranking has the score.

        Args:
            agent_id: one agent or several.
            limit: how many, 1 to 1000.
            categories: any of these.
            valid_at: holds in the world at this moment, aware.
            weights: other weights and half-lives than the documented ones.
            explain: also return the parts of each score.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Is allergic to nuts.", category="factual")
            >>> _ = await memories.give_feedback(helpful=[kept.memory.id])
            >>> [found.memory.content for found in await memories.hot(agent.id, limit=5)]
            ['Is allergic to nuts.']
        """
        if weights is not None and not isinstance(cast("object", weights), HotWeights):
            raise InvalidInputError("weights", weights, "must be HotWeights")
        filters = Filters.of(agent_id=agent_id, categories=categories, valid_at=valid_at)
        parameters = {
            "org_id": self._tenant,
            "limit": limit_of(limit),
            **filters.parameters,
            **(weights or HotWeights()).parameters,
        }
        rows = await self._rows(ranking.statement(filters.shape, explain=explain), parameters)
        return [HotMemory(memory, score, ScoreParts(*parts) if explain else None) for memory, score, *parts in rows]

    async def _nearest(self, embedding: Vector, filters: Filters, limit: int, *, exact: bool) -> Hits:
        async def find(space: Space, narrowed: Filters) -> Hits:
            return await self._nearest_in(space, embedding, narrowed, limit, exact=exact)

        return await self._searched(embedding, filters, find)

    async def _nearest_in(self, space: Space, embedding: Vector, filters: Filters, limit: int, *, exact: bool) -> Hits:
        plan = Plan(exact=True, reason="asked for") if exact else decide(await self._scope_size(filters), space)
        hits = await self._scan(space, embedding, filters, limit, exact=plan.exact)
        if not plan.exact and len(hits) < limit:
            # The index gave up (hnsw.max_scan_tuples) before the filters had let enough through.
            hits = await self._scan(space, embedding, filters, limit, exact=True)
            plan = replace(plan, exact=True, rescanned=True, reason=f"{plan.reason}, but the index found too few")
        return Hits(hits, plan)

    async def _scan(
        self, space: Space, embedding: Vector, filters: Filters, limit: int, *, exact: bool
    ) -> Sequence[Hit]:
        parameters = {"org_id": self._tenant, "query": embedding, "limit": limit}
        parameters |= filters.parameters | space.parameters
        sharded = await self._is_sharded()
        statement = query.statement(filters.shape, exact=exact, beside=space.beside, sharded=sharded)
        return query.nearest_first(await self._rows(statement, parameters))

    async def _scope_size(self, filters: Filters) -> int:
        async def count() -> int:
            parameters: dict[str, object] = {"org_id": self._tenant}
            if filters.agents is not None:
                parameters["agents"] = list(filters.agents)
            statement = query.scope_size(by_agent=filters.agents is not None)
            return cast("int", (await self._rows(statement, parameters))[0][0])

        return await sizes_for(self._server).get((self._tenant, filters.agents), count)
