"""Moving an organization to another embedding model, of another dimension too, while searches go on.

fill() --> cut_over() --> finish()
               ^  |
               +--+ roll_back()

Where roll_back() gives a move up, or finish() ends one, the space is first marked
as CLEARING: no other verb touches it from then on, whatever comes at the same time.

fill() has the new model's vectors made, batch by batch, beside the memories:
no search reads them, and no row of memories is touched.  cut_over() changes one
row, from which on every search reads the new vectors, and roll_back() changes it
back for as long as finish() has not cleared the old ones away.

A batch is claimed in one short transaction, embedded outside of any, and
written in another.  A vector carries the hash of the content that it was made
of, so one of a content that was changed meanwhile counts as none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from uuid import UUID

import pgvector

from ibex_db_core import validation
from ibex_db_core.database import Database
from ibex_db_core.errors import IllegalTransitionError, InvalidInputError
from ibex_db_core.tenant import ScopedSession
from ibex_db_core.types import VectorLike, pack_vector
from ibex_db_memory.models import EmbeddingSpace, SpaceStatus
from ibex_db_memory.models.embedding_space import MAX_DIMENSIONS
from ibex_db_memory.repositories.memory.reembedding import Claim, Mover

Embed = Callable[[list[str]], Awaitable[Sequence[VectorLike]]]
"""What makes vectors: contents in, one vector each out, in the same order."""

BATCH_SIZE = 100
_MAX_BATCH = 10_000

# How often one looks again at what other workers have claimed.
_LOOK_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ReembeddingStatus:
    """What stands of an organization's move.

    Attributes:
        active: what searches read; None: Memory.embedding, for the organization never moved.
        filling: what is being filled.
        retired: what roll_back() goes back to, and finish() clears away.
        filled: memories with a vector of the model that is being filled, or else of the active one.
        lacking: memories that still lack it, though they have, or had, a vector of some model.
        clearing: what is being cleared away; finish() goes on with it where that was cut short.
    """

    active: EmbeddingSpace | None
    filling: EmbeddingSpace | None
    retired: EmbeddingSpace | None
    filled: int
    lacking: int
    clearing: EmbeddingSpace | None = None


class Reembedding:
    """One organization's move to another embedding model.

    Every verb runs its own transactions and may be called from any process, again after a crash.

    Args:
        database: open.
        org_id: the organization.

    Example:
        >>> async def embed(contents: list[str]) -> list[list[float]]:
        ...     return [[1.0, float(len(content))] + [0.0] * 766 for content in contents]
        >>> move = Reembedding(db, org.id)
        >>> await move.fill(embed, embedding_model="bge-base", dimensions=768)
        0
        >>> (await move.cut_over()).active.embedding_model
        'bge-base'
    """

    def __init__(self, database: Database, org_id: UUID) -> None:
        self._database = database
        self._org_id = validation.uuid("org_id", org_id)

    async def fill(
        self,
        embed: Embed,
        *,
        embedding_model: str | None,
        dimensions: int,
        batch_size: int = BATCH_SIZE,
        lease: float = 300.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Embed what lacks a vector of a model until nothing does; return how many this call embedded.

        Begins a move where none is under way.  Run it in as many workers as the
        model can take: each claims other memories.  What is written meanwhile,
        with vectors of the model before, is embedded as well.  After a cutover it
        also fills up the model before, so that roll_back() finds nothing missing.

        Args:
            embed: makes the vectors of contents; called outside of any transaction.
            embedding_model: the model's name; None only for the first model of an organization that never named it.
            dimensions: of its vectors, 1 to 16,000; 384, 512, 768, 1024 and 1536 have a vector index.
            batch_size: contents of one call of embed, 1 to 10,000.
            lease: seconds after which what a worker has claimed and not embedded is another's.
            progress: called after each batch with how many this call has embedded, and how many lacked a vector
                when it began.

        Raises:
            InvalidInputError: embed returned something else than one vector of these dimensions each.
            IllegalTransitionError: a move to another model is under way, or has not been finished; or this one was
                rolled back meanwhile.
            NotFoundError: no such organization.

        Example:
            >>> async def embed(contents: list[str]) -> list[list[float]]:
            ...     return [[1.0, float(len(content))] + [0.0] * 1022 for content in contents]
            >>> _ = await memories.remember(
            ...     agent_id=agent.id, content="Likes tea.", category="factual", embedding=[1.0] + [0.0] * 383)
            >>> await session.commit()
            >>> await Reembedding(db, org.id).fill(embed, embedding_model="e5-large", dimensions=1024)
            1
        """
        if embedding_model is not None:
            validation.text("embedding_model", embedding_model, shortest=1, longest=255)
        validation.integer("dimensions", dimensions, 1, MAX_DIMENSIONS)
        validation.integer("batch_size", batch_size, 1, _MAX_BATCH)
        validation.number("lease", lease, 0, 86_400)
        space = await self._database.run(
            self._org_id, lambda session: Mover(session).begin(embedding_model, dimensions)
        )
        total = await self._database.run(self._org_id, lambda session: Mover(session).lacking(space))
        done, after = 0, None
        while True:
            claims = await self._claim(space, batch_size, lease, after)
            if claims:
                done += await self._embed(space, claims, embed)
                after = claims[-1].id
                if progress is not None:
                    progress(done, total)
            elif after is not None:
                after = None  # once more from the start: what was written behind us, or given back
            elif await self._database.run(self._org_id, lambda session: Mover(session).lacking(space)):
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)  # others are at it; what they lose is ours when the lease ends
            else:
                return done

    async def cut_over(self) -> ReembeddingStatus:
        """Have every search read the new vectors from now on, and every writer bring them.

        Waits for transactions that are writing memories of the organization, and
        keeps others waiting while it counts.  The model before is retired: its
        vectors stay for the way back.

        Raises:
            IllegalTransitionError: nothing is being filled, or memories still lack a new vector.
            NotFoundError: no such organization.

        Example:
            >>> async def embed(contents: list[str]) -> list[list[float]]:
            ...     return [[1.0, float(len(content))] + [0.0] * 1022 for content in contents]
            >>> move = Reembedding(db, org.id)
            >>> _ = await move.fill(embed, embedding_model="e5-large", dimensions=1024)
            >>> status = await move.cut_over()
            >>> status.active.embedding_model, status.retired.dimensions
            ('e5-large', 384)
        """
        return await self._database.run(self._org_id, self._switch, SpaceStatus.FILLING)

    async def roll_back(self) -> ReembeddingStatus:
        """Go back: after a cutover to the model before, before it to having no move under way.

        Memories that were written since the cutover have no vector of the model
        before: fill(embed, embedding_model=..., dimensions=...) with that model makes them.

        Raises:
            IllegalTransitionError: there is nothing to go back to, or memories lack a vector of the model before.
            NotFoundError: no such organization.

        Example:
            >>> async def embed(contents: list[str]) -> list[list[float]]:
            ...     return [[1.0, float(len(content))] + [0.0] * 1022 for content in contents]
            >>> move = Reembedding(db, org.id)
            >>> _ = await move.fill(embed, embedding_model="e5-large", dimensions=1024)
            >>> (await move.roll_back()).filling is None
            True
        """
        back = await self._database.run(self._org_id, self._go_back)
        if isinstance(back, ReembeddingStatus):
            return back
        await self._clear(back, 1000)
        return await self.status()

    async def finish(self, *, batch_size: int = 1000) -> int:
        """Clear the vectors of the model before away, in batches; return how many.  There is no way back from then on.

        It also goes on where an earlier call, or a roll_back(), was cut short while it cleared.

        Args:
            batch_size: vectors of one transaction, 1 to 10,000.

        Raises:
            IllegalTransitionError: nothing is retired, or memories lack a vector of the active model.
            NotFoundError: no such organization.

        Example:
            >>> async def embed(contents: list[str]) -> list[list[float]]:
            ...     return [[1.0, float(len(content))] + [0.0] * 1022 for content in contents]
            >>> move = Reembedding(db, org.id)
            >>> _ = await move.fill(embed, embedding_model="e5-large", dimensions=1024)
            >>> _ = await move.cut_over()
            >>> await move.finish()
            0
            >>> (await move.status()).retired is None
            True
        """
        validation.integer("batch_size", batch_size, 1, _MAX_BATCH)
        return await self._clear(await self._database.run(self._org_id, self._doom), batch_size)

    async def status(self) -> ReembeddingStatus:
        """Return what stands of the move.

        Raises:
            NotFoundError: no such organization.

        Example:
            >>> status = await Reembedding(db, org.id).status()
            >>> status.active, status.filled, status.lacking
            (None, 0, 0)
        """
        return await self._database.run(self._org_id, self._status)

    async def _status(self, session: ScopedSession) -> ReembeddingStatus:
        mover = Mover(session)
        spaces = await mover.spaces()
        active, filling, retired, clearing = (spaces.get(status) for status in _ORDER)
        looked_at = filling or active
        if looked_at is None:
            return ReembeddingStatus(None, None, retired, await mover.filled(None), 0, clearing)
        return ReembeddingStatus(
            active, filling, retired, await mover.filled(looked_at), await mover.lacking(looked_at), clearing
        )

    async def _go_back(self, session: ScopedSession) -> ReembeddingStatus | EmbeddingSpace:
        """Decide which way back leads, and go; return what is to be cleared where a move is given up."""
        mover = Mover(session)
        spaces = await mover.spaces(lock=True)
        if (filling := spaces.get(SpaceStatus.FILLING)) is None:
            return await self._switch(session, SpaceStatus.RETIRED)
        await mover.doom(filling)
        return filling

    async def _doom(self, session: ScopedSession) -> EmbeddingSpace:
        """Mark what finish() clears; return it."""
        mover = Mover(session)
        spaces = await mover.spaces(lock=True)
        if (clearing := spaces.get(SpaceStatus.CLEARING)) is not None:
            return clearing
        status = await self._status(session)
        if status.retired is None:
            raise IllegalTransitionError("the move", _stands(status), "finished", "cut_over() comes first")
        if status.active is None:
            raise _nothing_active()
        if status.lacking:
            raise _still_lacking(status.active, "the only one", status.lacking)
        await mover.doom(status.retired)
        return status.retired

    async def _switch(self, session: ScopedSession, to: SpaceStatus) -> ReembeddingStatus:
        mover = Mover(session)
        await mover.alone()
        spaces = await mover.spaces()
        target = spaces.get(to)
        if target is None:
            way_out = "finish() ends that" if SpaceStatus.CLEARING in spaces else "fill() first"
            raise IllegalTransitionError("the move", _stands(await self._status(session)), "switched", way_out)
        if SpaceStatus.ACTIVE not in spaces:
            raise _nothing_active()
        if lacking := await mover.lacking(target):
            raise _still_lacking(target, "active", lacking)
        await mover.switch(spaces[SpaceStatus.ACTIVE], target)
        return await self._status(session)

    async def _claim(self, space: EmbeddingSpace, size: int, lease: float, after: UUID | None) -> Sequence[Claim]:
        return await self._database.run(
            self._org_id, lambda session: Mover(session).claim(space, size, lease=lease, after=after)
        )

    async def _embed(self, space: EmbeddingSpace, claims: Sequence[Claim], embed: Embed) -> int:
        try:
            vectors = await _embedded(embed, [claim.content for claim in claims], space.dimensions)
        except BaseException:
            # Nobody need wait for the lease to end; where the worker is killed instead, everybody does.
            await self._database.run(self._org_id, lambda session: Mover(session).give_back(space, claims))
            raise
        return await self._database.run(self._org_id, lambda session: Mover(session).put(space, claims, vectors))

    async def _clear(self, space: EmbeddingSpace, size: int) -> int:
        cleared = 0
        while count := await self._database.run(self._org_id, lambda session: Mover(session).clear(space, size)):
            cleared += count
        await self._database.run(self._org_id, lambda session: Mover(session).forget(space))
        return cleared


_ORDER = (SpaceStatus.ACTIVE, SpaceStatus.FILLING, SpaceStatus.RETIRED, SpaceStatus.CLEARING)


def _stands(status: ReembeddingStatus) -> str:
    if status.filling is not None:
        return "being filled"
    if status.clearing is not None:
        return "being cleared away"
    return "cut over" if status.retired is not None else "not begun"


def _still_lacking(space: EmbeddingSpace, to: str, lacking: int) -> IllegalTransitionError:
    return IllegalTransitionError(
        f"embedding model {space.embedding_model}",
        space.status.value,
        to,
        f"{lacking} memories lack a vector of it: run fill() with that model until none does",
    )


def _nothing_active() -> IllegalTransitionError:
    return IllegalTransitionError(
        "the move", "without an active model", "switched", "rows of embedding_spaces were deleted by other means"
    )


async def _embedded(embed: Embed, contents: list[str], dimensions: int) -> Sequence[pgvector.Vector]:
    given = embed(contents)
    if not isawaitable(given):
        raise InvalidInputError("embed", given, "must be an async function")
    returned: Sequence[VectorLike] = await given
    try:
        vectors = list(returned)
    except TypeError as exc:
        raise InvalidInputError("embed", returned, "must return a list of vectors") from exc
    if len(vectors) != len(contents):
        raise InvalidInputError(
            "embed", f"{len(vectors)} vectors", f"must return one for each of {len(contents)} contents"
        )
    return [pack_vector(vector, dim=dimensions, field="embed") for vector in vectors]
