"""What every change of a memory has in common: the rows locked in one order, and why and by whom it was made."""

from collections.abc import AsyncGenerator, Container, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, cast
from uuid import UUID

from sqlalchemy import Boolean, Text, Uuid, bindparam, func, select, text

from ibex_db_core import validation
from ibex_db_core.errors import IllegalTransitionError, InvalidInputError, NotFoundError
from ibex_db_core.sharding import set_local
from ibex_db_core.steps import SteppedRepository
from ibex_db_memory.models import MEMORY_STEPS, Memory, MemoryStatus, VersionOperation
from ibex_db_memory.models.standing import POINTERS, WAYS_OUT

# The triggers of memory_0001 read these; they hold until the transaction ends,
# hence the second call, which gives them back what they said before: nothing,
# or what raw SQL of the caller's has set.
_TELL = text(
    """
    SELECT current_setting('app.change_reason', true), current_setting('app.changed_by', true),
        current_setting('app.change_operation', true), set_config('app.change_reason', :reason, true),
        set_config('app.changed_by', :actor, true), set_config('app.change_operation', :operation, true)
    """
)

# An expired memory counts as gone for whoever says the same: it must not stand in the way of the unique index until
# a sweep comes by.  Never the memory itself, which may be given a longer life.
_RETIRE_TWIN = text(
    """
    UPDATE ibex_core.memories m SET deleted_at = now() FROM ibex_core.memories o
    WHERE o.org_id = :org_id AND o.id = :id AND (:becomes OR o.status = 'active' AND o.deleted_at IS NULL)
        AND m.org_id = :org_id AND m.agent_id = o.agent_id AND m.content_hash = COALESCE(:hash, o.content_hash)
        AND m.status = 'active' AND m.deleted_at IS NULL AND m.expires_at <= now() AND m.id <> o.id
    """
).bindparams(
    bindparam("org_id", type_=Uuid()),
    bindparam("id", type_=Uuid()),
    bindparam("becomes", type_=Boolean()),
    bindparam("hash", type_=Text()),
)
_TOLD = ("reason", "actor", "operation")
_SETTINGS = {"reason": "app.change_reason", "actor": "app.changed_by", "operation": "app.change_operation"}
_TOLD_BEFORE = text("SELECT " + ", ".join(f"current_setting('{_SETTINGS[name]}', true)" for name in _TOLD))

# What may be done by naming the new status alone: where a memory points elsewhere, pointer and edge go with it.
_BY_HAND = {
    status: frozenset[MemoryStatus]() if status in POINTERS else MEMORY_STEPS[status] - POINTERS.keys()
    for status in MemoryStatus
}


class Changes(SteppedRepository[Memory]):
    """Locks, reasons and legal steps, for the mixins that change memories."""

    model = Memory
    steps: ClassVar = _BY_HAND

    async def update(self, ident: UUID, **changes: object) -> Memory:
        """Change fields of a memory, and return it.

        ``metadata`` is the column of that name, as in remember().  Its status moves as archive(), approve() and
        restore() would have it; what needs a pointer and a relationship beside is supersede()'s, merge()'s and
        restore()'s alone, and counters are those of the verbs that count.

        Raises:
            InvalidInputError: no such field, one that a verb keeps, or a value that breaks its rule; content without
                its embedding.
            IllegalTransitionError: its status does not lead to the new one.
            ConflictError: the agent has an active memory of the same content.
            NotFoundError: no such memory in this organization.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Has a cat.", category="factual")
            >>> (await memories.update(kept.memory.id, content="Has two cats.", embedding=None)).content
            'Has two cats.'
        """
        changes = _as_columns(changes)
        hashed = self._checked(changes).get("content_hash")
        becomes = changes.get("status") == MemoryStatus.ACTIVE
        if hashed is not None or becomes:
            await self._retire_twin(ident, content_hash=cast("str | None", hashed), becomes=becomes)
        try:
            return await super().update(ident, **changes)
        except IllegalTransitionError as exc:
            raise IllegalTransitionError(
                exc.entity, exc.from_state, exc.to_state, _way_out(exc.from_state, exc.to_state) or exc.way_out
            ) from None

    async def _retire_twin(self, ident: UUID, *, content_hash: str | None = None, becomes: bool = False) -> None:
        """Soft-delete the expired memory that says what a memory says, or will say.

        Args:
            ident: the memory; one that is not active has no twin.
            content_hash: of what it will say; None: what it says.
            becomes: it is about to become active, or live.
        """
        parameters = {
            "org_id": self._tenant,
            "id": validation.uuid("id", ident),
            "hash": content_hash,
            "becomes": becomes,
        }
        await self._execute(_RETIRE_TWIN, parameters)

    @asynccontextmanager
    async def _change_recorded(
        self, *, reason: str | None, actor: UUID | None, operation: VersionOperation | None = None
    ) -> AsyncGenerator[None]:
        """Make the changes inside one whole, and have the database's versions say why and by whom.

        A savepoint: whoever catches an error and goes on finds nothing half changed.
        """
        if reason is not None:
            validation.text("reason", reason, shortest=1)
        told = {
            "reason": reason or "",
            "actor": "" if actor is None else str(validation.uuid("actor", actor)),
            "operation": "" if operation is None else operation.value,
        }
        await self._ready()
        async with self._savepoint():
            before = await self._tell(told)
            yield
            await self._flush()
            await self._tell({name: said or "" for name, said in zip(_TOLD, before, strict=False)})

    async def _tell(self, told: Mapping[str, str]) -> Sequence[str | None]:
        """Tell the triggers why, by whom and what; return what they were told before."""
        if not await self._is_sharded():
            return cast("Sequence[str | None]", (await self._execute(_TELL, told)).one())
        before = cast("Sequence[str | None]", (await self._execute(_TOLD_BEFORE)).one())
        for name, said in told.items():
            # To text() a colon would be a parameter.
            await self._execute(text(set_local(_SETTINGS[name], said).replace(":", r"\:")))
        return before

    async def _locked(
        self, idents: Iterable[UUID], *, include_deleted: bool = False, missing_ok: Container[UUID] = ()
    ) -> Mapping[UUID, Memory]:
        """Lock memories in the order of their ids, and return them as they now are.

        Raises:
            NotFoundError: one is not there that is not in ``missing_ok``.
        """
        wanted = sorted({validation.uuid("id", ident) for ident in idents})
        # One alone is asked for as such: before PostgreSQL 17 the planner may read a whole organization for an array.
        these = self._id == (wanted[0] if len(wanted) == 1 else func.any(wanted))
        statement = (
            select(Memory)
            .where(*self._scope(include_deleted=include_deleted), these)
            .order_by(self._id)
            .with_for_update(key_share=True)
        )
        rows = (await self._execute(statement, populate_existing=True)).scalars().all()
        found: dict[UUID, Memory] = {row.id: row for row in rows}
        for ident in wanted:
            if ident not in found and ident not in missing_ok:
                raise NotFoundError(Memory.__name__, ident)
        return found


def _as_columns(changes: Mapping[str, object]) -> dict[str, object]:
    """Refuse what is a verb's to change, and name the column of metadata as the model does."""
    for name, way_out in WAYS_OUT.items():
        if name in changes:
            raise InvalidInputError(name, changes[name], way_out)
    if "tags" in changes:
        raise InvalidInputError("tags", changes["tags"], "are no field: tag() puts them on, untag() takes them off")
    found = dict(changes)
    if "metadata" in found:
        if "metadata_" in found:
            raise InvalidInputError("metadata_", found["metadata_"], "is metadata by its other name: give one of them")
        found["metadata_"] = validation.json_object("metadata", found.pop("metadata"))
    return found


def require(memory: Memory, allowed: Iterable[MemoryStatus], to: str) -> None:
    """Check that a step is legal.

    Raises:
        IllegalTransitionError: naming both states.
    """
    known = tuple(allowed)
    if memory.status not in known:
        raise IllegalTransitionError(
            f"memory {memory.id}", memory.status.value, to, f"only {' or '.join(s.value for s in known)} memories can"
        )


def _way_out(found: str, to: str) -> str:
    if to in POINTERS and found == MemoryStatus.ACTIVE:
        return "supersede() and merge() do that, with the pointer and the relationship"
    if found in POINTERS:
        return "restore() brings it back first, and takes the pointer and the relationship away"
    return ""
