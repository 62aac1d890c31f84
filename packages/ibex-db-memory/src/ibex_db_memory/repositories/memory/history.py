"""What a memory said before: the versions that the database writes, and the way back."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_core.types import VectorLike
from ibex_db_memory.content import content_hash
from ibex_db_memory.drafts import check_embedding
from ibex_db_memory.models import Memory, MemoryVersion, VersionOperation
from ibex_db_memory.repositories.memory.changes import Changes
from ibex_db_memory.repositories.memory.spaces import Spaces


class History(Spaces, Changes):
    """Versions of one memory."""

    async def history(self, ident: UUID) -> Sequence[MemoryVersion]:
        """Return every version of a memory, oldest first; each is the state after a change.

        Raises:
            NotFoundError: no such memory in this organization; one that was soft-deleted has its history.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Has a cat.", category="factual")
            >>> [version.operation.value for version in await memories.history(kept.memory.id)]
            ['created']
        """
        ident = validation.uuid("id", ident)
        statement = (
            select(MemoryVersion)
            .where(MemoryVersion.org_id == self._tenant, MemoryVersion.memory_id == ident)
            .order_by(MemoryVersion.version_num)
        )
        versions = (await self._execute(statement)).scalars().all()
        if not versions:
            raise NotFoundError(Memory.__name__, ident)
        return versions

    async def as_of(self, ident: UUID, moment: datetime) -> MemoryVersion:
        """Return what a memory said at a moment: its newest version that is no younger.

        A change counts from the start of its transaction.

        Args:
            ident: the memory.
            moment: aware.

        Raises:
            NotFoundError: no such memory in this organization, or it was learned later.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Has a cat.", category="factual")
            >>> (await memories.as_of(kept.memory.id, kept.memory.created_at)).content
            'Has a cat.'
        """
        ident, moment = validation.uuid("id", ident), validation.moment("moment", moment)
        statement = (
            select(MemoryVersion)
            .where(
                MemoryVersion.org_id == self._tenant,
                MemoryVersion.memory_id == ident,
                MemoryVersion.created_at <= moment,
            )
            .order_by(MemoryVersion.version_num.desc())
            .limit(1)
        )
        version: MemoryVersion | None = (await self._execute(statement)).scalars().one_or_none()
        if version is None:
            raise NotFoundError(Memory.__name__, f"{ident} as of {moment}")
        return version

    async def revert(
        self,
        ident: UUID,
        version_num: int,
        *,
        embedding: VectorLike | None = None,
        embedding_model: str | None = None,
        reason: str | None = None,
        actor: UUID | None = None,
    ) -> Memory:
        """Have a memory say what a version said: content, category, confidence and metadata; its status stays.

        Versions keep no vectors.  Where the content changes, the memory has the
        vector given here, or none until it gets one.

        Args:
            ident: the memory.
            version_num: from 1.
            embedding: the vector of that version's content, of the organization's model, shape (384,) unless it moved.
            embedding_model: what made it, up to 255 characters; required where the organization moved to another
                model of 384 dimensions, for nothing else tells its vectors from those before.
            reason: for the version history; the step itself is a version, too, unless it changes nothing.
            actor: who decided, for the version history.

        Raises:
            InvalidInputError: a vector of another model than the organization's, or where the content stays the same.
            NotFoundError: no such memory, or no such version of it.
            ConflictError: the agent has another active memory of that content.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Has a cat.", category="factual")
            >>> changed = await memories.update(kept.memory.id, content="Has a dog.", embedding=None)
            >>> (await memories.revert(kept.memory.id, 1)).content
            'Has a cat.'
        """
        validation.integer("version_num", version_num, 1, 2**31 - 1)
        vector = check_embedding(embedding)
        if embedding_model is not None:
            validation.text("embedding_model", embedding_model, shortest=1, longest=255)
            if vector is None:
                raise InvalidInputError("embedding_model", embedding_model, "must come with its embedding")
        space = await self._space_now(hold=True)
        if vector is not None:
            space.check_written(vector, embedding_model)
        async with self._change_recorded(reason=reason, actor=actor, operation=VersionOperation.REVERTED):
            memory = (await self._locked([ident]))[validation.uuid("id", ident)]
            version = await self._version(memory.id, version_num)
            changed = memory.content != version.content
            if vector is not None and not changed:
                raise InvalidInputError("embedding", "given", "must be left out where the content stays the same")
            if changed:
                await self._retire_twin(memory.id, content_hash=content_hash(version.content))
            # Before the content, whose flush must be the only one: each is a version.
            memory.category = version.category
            memory.confidence = version.confidence
            memory.metadata_ = dict(version.metadata_)
            if changed:
                memory.content = version.content
                memory.embedding = None if vector is None or space.id is not None else vector.to_list()
                if embedding_model is not None:
                    memory.embedding_model = embedding_model
                await self._flush()
                await self._put(space, memory.id, vector)
        return memory

    async def _version(self, ident: UUID, number: int) -> MemoryVersion:
        statement = select(MemoryVersion).where(
            MemoryVersion.org_id == self._tenant,
            MemoryVersion.memory_id == ident,
            MemoryVersion.version_num == number,
        )
        version: MemoryVersion | None = (await self._execute(statement)).scalars().one_or_none()
        if version is None:
            raise NotFoundError(MemoryVersion.__name__, f"{number} of memory {ident}")
        return version
