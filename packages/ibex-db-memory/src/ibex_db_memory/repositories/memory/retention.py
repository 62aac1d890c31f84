"""Forgetting on time: expired memories are swept in batches, by as many workers as there are."""

from sqlalchemy import func, select, update

from ibex_db_core import validation
from ibex_db_core.repository import BaseRepository
from ibex_db_memory.models import Memory

_MAX_BATCH = 10_000


class Retention(BaseRepository[Memory]):
    """Sweeping an organization's expired memories, or on a platform session everybody's."""

    model = Memory

    async def expire_due(self, *, batch_size: int = 1000) -> int:
        """Forget up to a batch of the memories whose expires_at has come; return how many.

        Call it until it returns 0, each time in a transaction of its own.  Workers
        do not wait for each other: each passes over what another has locked.
        Searches hide an expired memory from the moment on, swept or not.

        Args:
            batch_size: memories in one statement, 1 to 10,000.

        Example:
            >>> from datetime import UTC, datetime, timedelta
            >>> kept = await memories.remember(agent_id=agent.id, content="In town until noon.", category="episodic",
            ...     expires_at=datetime.now(UTC) - timedelta(minutes=1))
            >>> await memories.expire_due()
            1
        """
        validation.integer("batch_size", batch_size, 1, _MAX_BATCH)
        due = (
            select(Memory.org_id, Memory.id)
            .where(*self._scope(), Memory.expires_at <= func.now())
            .order_by(Memory.expires_at)
            .limit(batch_size)
            .with_for_update(skip_locked=True, key_share=True)
            .cte("due")
        )
        # One organization's by their ids, as an array: joined, one that statistics do not know would be read once for
        # each of the batch.
        these = (
            (Memory.org_id == due.c.org_id, Memory.id == due.c.id)
            if self._org_id is None
            else (Memory.id == func.any(func.array(select(due.c.id).scalar_subquery())),)
        )
        statement = (
            update(Memory)
            .where(*self._scope(), *these)
            .values(deleted_at=func.now())
            .returning(Memory.id)
            .execution_options(synchronize_session=False)
        )
        return len((await self._execute(statement)).all())
