"""From one standing to another: statuses, pointers, relationships and versions move together or not at all.

pending_review --approve--> active --archive--> archived --restore--> active
                            active --supersede--> superseded --restore--> active
                            active --merge--> merged --restore--> active
any --forget--> (deleted) --restore--> as it was
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import cast
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert

from ibex_db_core import validation
from ibex_db_core.errors import IllegalTransitionError, InvalidInputError, SerializationError
from ibex_db_memory.drafts import MemoryDraft
from ibex_db_memory.models import Memory, MemoryRelationship, MemoryStatus, RelationshipType, VersionOperation
from ibex_db_memory.models.standing import POINTERS
from ibex_db_memory.repositories.memory.changes import Changes, require
from ibex_db_memory.repositories.memory.writing import Writing

_Target = UUID | MemoryDraft | Mapping[str, object]

# Each time another transaction has taken the standing of the draft's twin between two statements of this one.
_TRIES = 20

_LINKS = (RelationshipType.SUPERSEDES, RelationshipType.MERGED_FROM)


class _TwinGoneError(Exception):
    """The active memory that said the same as a draft is active no more: the draft is to be made after all."""


class Lifecycle(Writing, Changes):
    """Steps of a memory's life."""

    async def supersede(
        self,
        ident: UUID,
        *,
        by: _Target,
        reason: str | None = None,
        actor: UUID | None = None,
    ) -> Memory:
        """Have a newer memory take a memory's place, and return the newer one.

        The old one becomes SUPERSEDED and points at its successor; the successor
        SUPERSEDES it in the graph.  Of two supersessions at once one wins and the
        other is told.

        Args:
            ident: the memory that no longer holds; ACTIVE.
            by: its successor: the id of an ACTIVE memory, or a draft of a new one; where an active memory of
                the agent says the same already, that one.
            reason: for the version history.
            actor: who decided, for the version history.

        Raises:
            NotFoundError: no such memory in this organization.
            IllegalTransitionError: one of the two is not active.
            InvalidInputError: a memory cannot supersede itself.

        Example:
            >>> old = (await memories.remember(agent_id=agent.id, content="Has a cat.", category="factual")).memory
            >>> new = await memories.supersede(old.id, by={
            ...     "agent_id": agent.id, "content": "Has a dog.", "category": "factual"})
            >>> (await memories.current(old.id)).content
            'Has a dog.'
        """
        ident = validation.uuid("id", ident)
        by = _target_of("by", by)
        return await self._into(by, lambda to: self._supersede(ident, to, reason=reason, actor=actor))

    async def _supersede(self, ident: UUID, by: _Target, *, reason: str | None, actor: UUID | None) -> Memory:
        async with self._change_recorded(reason=reason, actor=actor):
            successor_id, locked = await self._target(by, [ident])
            old, successor = locked[ident], locked[successor_id]
            require(old, [MemoryStatus.ACTIVE], MemoryStatus.SUPERSEDED.value)
            _require_active(successor, "a successor")
            if successor is old:
                raise InvalidInputError("by", successor_id, "must be another memory: none supersedes itself")
            old.status = MemoryStatus.SUPERSEDED
            old.superseded_by = successor.id
            await self._link(successor, [old], RelationshipType.SUPERSEDES)
        return successor

    async def merge(
        self,
        idents: Iterable[UUID],
        *,
        into: _Target,
        reason: str | None = None,
        actor: UUID | None = None,
    ) -> Memory:
        """Put one memory in the place of several, and return it.

        Each of the several becomes MERGED and points at it; it is MERGED_FROM
        each in the graph.

        Args:
            idents: the memories to merge; ACTIVE.  The target itself may be among them.
            into: the id of an ACTIVE memory, or a draft of a new one; where an active memory of the agent
                says the same already, that one.
            reason: for the version history.
            actor: who decided, for the version history.

        Raises:
            NotFoundError: one of them is not in this organization.
            IllegalTransitionError: one of them is not active.

        Example:
            >>> a = (await memories.remember(agent_id=agent.id, content="Likes tea.", category="factual")).memory
            >>> b = (await memories.remember(agent_id=agent.id, content="Tea, please.", category="factual")).memory
            >>> kept = await memories.merge([b.id], into=a.id, reason="said twice")
            >>> (await memories.get(b.id)).status
            <MemoryStatus.MERGED: 'merged'>
        """
        wanted = validation.uuids("idents", idents)
        if not wanted:
            raise InvalidInputError("idents", [], "must name at least one memory")
        into = _target_of("into", into)
        return await self._into(into, lambda to: self._merge(wanted, to, reason=reason, actor=actor))

    async def _merge(
        self,
        wanted: Sequence[UUID],
        into: _Target,
        *,
        reason: str | None,
        actor: UUID | None,
    ) -> Memory:
        async with self._change_recorded(reason=reason, actor=actor):
            target_id, locked = await self._target(into, wanted)
            sources = dict(locked)
            target = sources.pop(target_id)
            _require_active(target, "the target of a merge")
            for source in sources.values():
                require(source, [MemoryStatus.ACTIVE], MemoryStatus.MERGED.value)
            for source in sources.values():
                source.status = MemoryStatus.MERGED
                source.merged_into = target.id
            await self._link(target, sources.values(), RelationshipType.MERGED_FROM)
        return target

    async def archive(self, ident: UUID, *, reason: str | None = None, actor: UUID | None = None) -> Memory:
        """Set a memory aside: kept, but found only when archived ones are asked for.

        Raises:
            NotFoundError: no such memory in this organization.
            IllegalTransitionError: it is neither active nor pending review.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Old address.", category="factual")
            >>> (await memories.archive(kept.memory.id)).status
            <MemoryStatus.ARCHIVED: 'archived'>
        """
        allowed = [MemoryStatus.ACTIVE, MemoryStatus.PENDING_REVIEW]
        return await self._move(
            ident,
            allowed=allowed,
            to=MemoryStatus.ARCHIVED,
            operation=VersionOperation.ARCHIVED,
            reason=reason,
            actor=actor,
        )

    async def approve(self, ident: UUID, *, reason: str | None = None, actor: UUID | None = None) -> Memory:
        """Make a memory that was pending review an active one.

        Raises:
            NotFoundError: no such memory in this organization.
            IllegalTransitionError: it is not pending review.
            ConflictError: the agent has an active memory of the same content.

        Example:
            >>> kept = await memories.remember(
            ...     agent_id=agent.id, content="Allergic to nuts?", category="factual", status="pending_review")
            >>> (await memories.approve(kept.memory.id)).status
            <MemoryStatus.ACTIVE: 'active'>
        """
        allowed = [MemoryStatus.PENDING_REVIEW]
        return await self._move(
            ident,
            allowed=allowed,
            to=MemoryStatus.ACTIVE,
            operation=VersionOperation.APPROVED,
            reason=reason,
            actor=actor,
        )

    async def restore(self, ident: UUID, *, reason: str | None = None, actor: UUID | None = None) -> Memory:
        """Bring back a memory: a forgotten one as it was, an archived, superseded or merged one as active.

        The pointer to its successor and their relationship go; the successor itself stays.
        Forgetting and bringing back are no versions: what a memory says is the same before and after.

        Raises:
            NotFoundError: no such memory in this organization.
            IllegalTransitionError: it is active or pending review, so there is nothing to restore.
            ConflictError: the agent has an active memory of the same content.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Has a dog.", category="factual")
            >>> await memories.forget(kept.memory.id)
            >>> (await memories.restore(kept.memory.id)).deleted_at is None
            True
        """
        async with self._change_recorded(reason=reason, actor=actor, operation=VersionOperation.RESTORED):
            memory = (await self._locked([ident], include_deleted=True))[validation.uuid("id", ident)]
            if memory.deleted_at is not None:
                if memory.status is MemoryStatus.ACTIVE:
                    await self._retire_twin(memory.id, becomes=True)
                memory.deleted_at = None
            else:
                require(memory, [MemoryStatus.ARCHIVED, MemoryStatus.SUPERSEDED, MemoryStatus.MERGED], "active")
                await self._retire_twin(memory.id, becomes=True)
                for status, pointer in POINTERS.items():
                    if memory.status is status:
                        await self._unlink(getattr(memory, pointer), memory.id)
                        setattr(memory, pointer, None)
                memory.status = MemoryStatus.ACTIVE
        return memory

    async def forget(self, ident: UUID) -> None:
        """Delete a memory softly: nothing finds it, restore() brings it back, erase() ends it.

        Raises:
            NotFoundError: no such memory, or forgotten already.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Parked on P2.", category="episodic")
            >>> await memories.forget(kept.memory.id)
            >>> await memories.get_or_none(kept.memory.id) is None
            True
        """
        await self.delete(ident)

    async def _move(
        self,
        ident: UUID,
        *,
        allowed: Sequence[MemoryStatus],
        to: MemoryStatus,
        operation: VersionOperation,
        reason: str | None,
        actor: UUID | None,
    ) -> Memory:
        async with self._change_recorded(reason=reason, actor=actor, operation=operation):
            memory = (await self._locked([ident]))[validation.uuid("id", ident)]
            require(memory, allowed, to.value)
            if to is MemoryStatus.ACTIVE:
                await self._retire_twin(memory.id, becomes=True)
            memory.status = to
        return memory

    async def _into(self, to: _Target, work: Callable[[_Target], Awaitable[Memory]]) -> Memory:
        """Do a step towards a target, again where a twin that stood for a draft has just lost its standing."""
        for _ in range(_TRIES):
            try:
                return await work(to)
            except _TwinGoneError:
                continue
        raise SerializationError("other transactions kept superseding the memory that says the same; run it again")

    async def _target(self, to: _Target, others: Sequence[UUID]) -> tuple[UUID, Mapping[UUID, Memory]]:
        """Return the id of the target, which a draft may make, and lock it and the others.

        All are locked in one order, or A by B and B by A at once would wait for each other.

        Raises:
            _TwinGoneError: what stood for the draft was active a moment ago, and is no more.
        """
        if isinstance(to, UUID):
            return to, await self._locked([to, *others])
        try:
            outcome = (await self.remember_many([to])).outcomes[0]
        except InvalidInputError as exc:  # the draft is the only one: a position would only puzzle
            raise InvalidInputError(exc.field, exc.value, exc.rule) from exc
        locked = await self._locked([outcome.id, *others], missing_ok=() if outcome.created else {outcome.id})
        if not outcome.created and (outcome.id not in locked or locked[outcome.id].status is not MemoryStatus.ACTIVE):
            raise _TwinGoneError
        return outcome.id, locked

    async def _link(self, source: Memory, targets: Iterable[Memory], kind: RelationshipType) -> None:
        edges = [
            {
                "org_id": source.org_id,
                "source_memory_id": source.id,
                "target_memory_id": target.id,
                "relationship_type": kind,
            }
            for target in targets
        ]
        if edges:  # somebody may have drawn the same edge by hand
            await self._execute(insert(MemoryRelationship).on_conflict_do_nothing(), edges)

    async def _unlink(self, source: UUID | None, target: UUID) -> None:
        if source is not None:
            await self._execute(
                delete(MemoryRelationship).where(
                    MemoryRelationship.org_id == self._tenant,
                    MemoryRelationship.source_memory_id == source,
                    MemoryRelationship.target_memory_id == target,
                    MemoryRelationship.relationship_type.in_(_LINKS),
                )
            )


def _target_of(field: str, to: _Target) -> _Target:
    """Take an id's text for the id, as every verb does."""
    given = cast("object", to)
    return validation.uuid(field, given) if isinstance(given, str) else to


def _require_active(memory: Memory, role: str) -> None:
    if memory.status is not MemoryStatus.ACTIVE:
        raise IllegalTransitionError(f"memory {memory.id}", memory.status.value, role, "it must be active")
