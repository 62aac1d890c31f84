"""Which space an organization's vectors are in: believed where that is enough, asked for where it is not."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast
from uuid import UUID

import pgvector
from sqlalchemy import ARRAY, Uuid, bindparam, text

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError, RuleViolationError
from ibex_db_core.repository import BaseRepository
from ibex_db_core.types import Vector
from ibex_db_memory.models import Memory
from ibex_db_memory.search.spaces import AT_HOME, Beliefs, Space, beliefs_of, now_active

# KEY SHARE, as every INSERT of a child takes it: cut_over() waits for whoever holds
# it, so what is read here holds until this transaction ends.
_HOLD = text("SELECT FROM ibex_core.organizations WHERE id = :org_id FOR KEY SHARE").bindparams(
    bindparam("org_id", type_=Uuid())
)

# What the vectors of memories outside of the active space are worth when one is given anew: nothing.
_DROP = text("DELETE FROM ibex_core.memory_vectors WHERE org_id = :org_id AND id = :id").bindparams(
    bindparam("org_id", type_=Uuid()), bindparam("id", type_=Uuid())
)
_PUT = text(
    """
    INSERT INTO ibex_core.memory_vectors (org_id, space_id, id, content_hash, dimensions, embedding)
    SELECT m.org_id, :space_id, m.id, m.content_hash,
        vector_dims(CAST(:embedding AS vector)), CAST(:embedding AS vector)
    FROM ibex_core.memories m WHERE m.org_id = :org_id AND m.id = :id
    """
).bindparams(
    *(bindparam(name, type_=Uuid()) for name in ("org_id", "space_id", "id")), bindparam("embedding", type_=Vector())
)
_AT_HOME = text(
    "SELECT id, embedding FROM ibex_core.memories WHERE org_id = :org_id AND id = ANY(:ids) AND embedding IS NOT NULL"
)
_BESIDE = text(
    """
    SELECT v.id, v.embedding FROM ibex_core.memory_vectors v
    JOIN ibex_core.memories m ON m.org_id = v.org_id AND m.id = v.id AND m.content_hash = v.content_hash
    WHERE v.org_id = :org_id AND v.space_id = :space_id AND v.id = ANY(:ids) AND v.embedding IS NOT NULL
    """
)
_READ = {
    beside: statement.bindparams(bindparam("org_id", type_=Uuid()), bindparam("ids", type_=ARRAY(Uuid()))).columns(
        id=Uuid(), embedding=Vector()
    )
    for beside, statement in ((False, _AT_HOME), (True, _BESIDE.bindparams(bindparam("space_id", type_=Uuid()))))
}

# The names under which the triggers of memory_0004 refuse a vector of a model that the organization has left.
_TOO_LATE = {"memories_embedding_space", "memory_vectors_embedding_space"}


class Spaces(BaseRepository[Memory]):
    """The space that vectors are read from and written to."""

    model = Memory

    async def embeddings(self, idents: Iterable[UUID]) -> Mapping[UUID, Sequence[float]]:
        """Return the vectors of memories, of the model that searches use; those without one are left out.

        ``undefer(Memory.embedding)`` reads a column that an organization leaves
        when it moves to another model; this reads the right one.

        Example:
            >>> kept = await memories.remember(
            ...     agent_id=agent.id, content="Likes tea.", category="factual", embedding=[1.0] + [0.0] * 383)
            >>> found = await memories.embeddings([kept.memory.id])
            >>> found[kept.memory.id][:2]
            [1.0, 0.0]
        """
        ids = validation.uuids("idents", idents)
        space = await self._space_now()
        parameters = {"org_id": self._tenant, "ids": ids, **space.parameters}
        rows = (await self._execute(_READ[space.id is not None], parameters)).all()
        return {ident: cast("Sequence[float]", embedding) for ident, embedding in rows}

    @property
    def _beliefs(self) -> Beliefs:
        return beliefs_of(self._server)

    async def _space_now(self, *, hold: bool = False) -> Space:
        """Ask for the space, and believe it from now on.

        Args:
            hold: it must stay so until this transaction ends, for vectors are written.
        """
        if hold:
            await self._execute(_HOLD, {"org_id": self._tenant})
        row = (await self._execute(now_active(), {"org_id": self._tenant})).one_or_none()
        space = AT_HOME
        if row is not None:
            ident, in_memories, model, dimensions, moving = row
            space = Space(None if in_memories else ident, model, dimensions, moving)
        self._beliefs.hear(self._tenant, space)
        return space

    async def _space_to_search(self, query: pgvector.Vector, model: str | None) -> Space:
        """Return the believed space where the query fits it, and ask where it does not.

        Raises:
            InvalidInputError: it does not fit; naming the model that does.
        """
        try:
            space = self._beliefs.of(self._tenant)
            space.check(query, model)
        except InvalidInputError:
            space = await self._space_now()
            space.check(query, model)
        return space

    async def _space_to_write(self, vectors: Sequence[tuple[pgvector.Vector, str | None]]) -> Space:
        """Return the believed space where the vectors fit it, and ask where they do not.

        That is enough: triggers refuse a vector that comes too late.  Only where a
        model is named is an organization asked about that was never heard of.

        Args:
            vectors: each with the name of its model, where that is known.

        Raises:
            InvalidInputError: one does not fit, with its ``index``.
        """
        space = self._beliefs.of(self._tenant)
        if self._beliefs.heard(self._tenant) or all(model is None for _, model in vectors):
            try:
                return _all_fit(space, vectors)
            except InvalidInputError:
                pass  # told below, of what is so and not of what was believed
        return _all_fit(await self._space_now(), vectors)

    async def _put(self, space: Space, ident: UUID, embedding: pgvector.Vector | None) -> None:
        """Let a memory have this vector beside it, or none, and no other; Memory.embedding is the caller's to set."""
        if space.id is None and not space.moving:
            return
        await self._execute(_DROP, {"org_id": self._tenant, "id": ident})
        if space.id is not None and embedding is not None:
            parameters = {"org_id": self._tenant, "id": ident, "space_id": space.id, "embedding": embedding}
            await self._execute(_PUT, parameters)

    def _raise_too_late(self, exc: RuleViolationError) -> None:
        """Say it as every other vector that does not fit is told; the next time the space is asked for."""
        if exc.constraint in _TOO_LATE:
            self._beliefs.forget(self._tenant)
            # What the trigger says, without the way out that is told of any CHECK.
            said = str(exc).rpartition("; ")[0]
            raise InvalidInputError("embedding", "a vector of the model before", f"comes too late: {said}") from exc


def _all_fit(space: Space, vectors: Sequence[tuple[pgvector.Vector, str | None]]) -> Space:
    for index, (vector, model) in enumerate(vectors):
        try:
            space.check_written(vector, model)
        except InvalidInputError as exc:
            raise InvalidInputError(exc.field, exc.value, exc.rule, index=index) from exc
    return space
