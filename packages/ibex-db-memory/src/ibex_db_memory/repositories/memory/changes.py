"""What every change of a memory has in common: the rows locked in one order, and why and by whom it was made."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy import func, select, text

from ibex_db_core import validation
from ibex_db_core.errors import IllegalTransitionError, NotFoundError
from ibex_db_core.repository import BaseRepository
from ibex_db_memory.models import Memory, MemoryStatus, VersionOperation

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
_TOLD = ("reason", "actor", "operation")


class Changes(BaseRepository[Memory]):
    """Locks, reasons and legal steps, for the mixins that change memories."""

    model = Memory

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
        async with self._session.begin_nested():
            before = (await self._execute(_TELL, told)).one()
            yield
            await self._flush()
            await self._execute(_TELL, {name: said or "" for name, said in zip(_TOLD, before, strict=False)})

    async def _locked(self, idents: Iterable[UUID], *, include_deleted: bool = False) -> Mapping[UUID, Memory]:
        """Lock memories in the order of their ids, and return them as they now are.

        Raises:
            NotFoundError: one is not there.
        """
        wanted = sorted({validation.uuid("id", ident) for ident in idents})
        statement = (
            select(Memory)
            .where(*self._scope(include_deleted=include_deleted), self._id == func.any(wanted))
            .order_by(self._id)
            .with_for_update(key_share=True)
        )
        rows = (await self._execute(statement, populate_existing=True)).scalars().all()
        found: dict[UUID, Memory] = {row.id: row for row in rows}
        for ident in wanted:
            if ident not in found:
                raise NotFoundError(Memory.__name__, ident)
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
