"""Bookkeeping: what was retrieved, in one statement that never touches the vector index."""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import ARRAY, TextClause, Uuid, bindparam, text

from ibex_db_core import validation
from ibex_db_core.repository import BaseRepository
from ibex_db_memory.models import Memory


def _bump(changes: str) -> TextClause:
    """Build the UPDATE that counts something for many memories.

    Rows are locked in the order of their ids first: two searches that found the
    same memories in another order would otherwise deadlock.
    """
    return text(
        f"""
        WITH locked AS (
            SELECT id FROM ibex_core.memories
            WHERE org_id = :org_id AND id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE
        )
        UPDATE ibex_core.memories m SET {changes}
        FROM locked WHERE m.org_id = :org_id AND m.id = locked.id
        RETURNING 1
        """
    ).bindparams(bindparam("org_id", type_=Uuid()), bindparam("ids", type_=ARRAY(Uuid())))


_RETRIEVED = _bump("retrieval_count = m.retrieval_count + 1, last_retrieved_at = now()")


class Usage(BaseRepository[Memory]):
    """Counting what memories are used for."""

    model = Memory

    async def record_retrieval(self, idents: Iterable[UUID]) -> int:
        """Count one retrieval of each memory and note the time, in one statement.

        A HOT update: no index is written, whatever the number of ids.  Ids that
        do not exist are passed over; a repeated id counts once.

        Returns:
            how many memories were found.
        """
        wanted = list({validation.uuid("id", ident) for ident in idents})
        if not wanted:
            return 0
        result = await self._execute(_RETRIEVED, {"org_id": self._tenant, "ids": wanted})
        return len(result.all())
