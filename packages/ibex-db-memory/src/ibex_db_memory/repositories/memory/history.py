"""What a memory said before: the versions that the database writes."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select

from ibex_db_core import validation
from ibex_db_core.errors import NotFoundError
from ibex_db_core.repository import BaseRepository
from ibex_db_memory.models import Memory, MemoryVersion


class History(BaseRepository[Memory]):
    """Versions of one memory."""

    model = Memory

    async def history(self, ident: UUID) -> Sequence[MemoryVersion]:
        """Return every version of a memory, oldest first; each is the state after a change.

        Raises:
            NotFoundError: no such memory in this organization; one that was soft-deleted has its history.
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
