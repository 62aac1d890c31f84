"""The checkpoints of a session: saved, read back, pruned."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, cast
from uuid import UUID

from sqlalchemy import Column, Text, Uuid, bindparam, delete, func, select, text
from sqlalchemy.dialects.postgresql import JSONB

from ibex_db_core import validation
from ibex_db_core.errors import IllegalTransitionError, NotFoundError
from ibex_db_core.savepoints import note_rows
from ibex_db_core.steps import SteppedRepository
from ibex_db_core.types import JsonObject
from ibex_db_memory.errors import CheckpointDamagedError
from ibex_db_memory.models import SESSION_STEPS, Checkpoint, Session, SessionStatus
from ibex_db_memory.search.filters import limit_of
from ibex_db_memory.state import canonical_state, state_hash

_CHECKPOINT = select(Checkpoint).from_statement(
    text(
        """
    WITH numbered AS (
        UPDATE ibex_core.sessions SET checkpoint_sequence = 1 + GREATEST(
            checkpoint_sequence,
            (SELECT max(sequence_number) FROM ibex_core.checkpoints WHERE org_id = :org_id AND session_id = :session_id)
        )
        WHERE org_id = :org_id AND id = :session_id AND status NOT IN ('completed', 'failed', 'abandoned')
        RETURNING id, checkpoint_sequence
    )
    INSERT INTO ibex_core.checkpoints (org_id, session_id, sequence_number, state, state_hash, state_size_bytes)
    SELECT :org_id, id, checkpoint_sequence, :state, :hash, :size FROM numbered
    RETURNING *
    """
    )
    .bindparams(
        bindparam("org_id", type_=Uuid()),
        bindparam("session_id", type_=Uuid()),
        bindparam("state", type_=JSONB()),
        bindparam("hash", type_=Text()),
    )
    .columns(*cast("tuple[Column[Any], ...]", tuple(Checkpoint.__table__.columns)))
)

_log = logging.getLogger("ibex_db.sessions")

_ENDED = (SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.ABANDONED)

# Checkpoints that are looked through for an intact one, newest first, before giving up.
_LOOKED_THROUGH = 100


class Checkpoints(SteppedRepository[Session]):
    """What SessionRepository does with checkpoints."""

    model = Session
    steps: ClassVar = SESSION_STEPS

    async def checkpoint(self, session_id: UUID, state: JsonObject) -> Checkpoint:
        """Save a session's state under the next number; one statement, safe beside other writers.

        Raises:
            InvalidInputError: the state is no JSON object.
            IllegalTransitionError: the run has ended: nobody should be running it.
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> (await sessions.checkpoint(run.id, {"step": 1})).sequence_number
            1
        """
        validation.json_object("state", state)
        parameters: dict[str, Any] = {
            "org_id": self._tenant,
            "session_id": validation.uuid("session_id", session_id),
            "state": state,
            "hash": state_hash(state),
            "size": len(canonical_state(state)),
        }
        while True:
            checkpoint = (await self._execute(_CHECKPOINT, parameters)).scalars().one_or_none()
            if checkpoint is not None:
                note_rows(self._session, [[checkpoint]], made=True)
                return cast("Checkpoint", checkpoint)
            status = await self._status(parameters["session_id"])
            if status in _ENDED:  # otherwise it has been resumed this very moment
                way_out = "its run is over" if status is SessionStatus.COMPLETED else "resume() it first"
                raise IllegalTransitionError(f"session {session_id}", status.value, "checkpointed", way_out)

    async def latest_checkpoint(self, session_id: UUID) -> Checkpoint | None:
        """Return the newest checkpoint, or None before the first; one index probe.

        Raises:
            CheckpointDamagedError: its state is not the one that was saved.
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> _ = await sessions.checkpoint(run.id, {"step": 1})
            >>> (await sessions.latest_checkpoint(run.id)).state
            {'step': 1}
        """
        found = await self._newest_checkpoint(session_id)
        if found is None:
            await self._status(session_id)
        elif not found.is_intact():
            raise CheckpointDamagedError(session_id, found.sequence_number, found.state_hash, state_hash(found.state))
        return found

    async def checkpoints(self, session_id: UUID, *, limit: int = 100) -> Sequence[Checkpoint]:
        """Return a session's checkpoints, the newest first; ``is_intact()`` tells of each whether it may be trusted.

        Args:
            session_id: the run.
            limit: how many, 1 to 1000.

        Raises:
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> _ = await sessions.checkpoint(run.id, {"step": 1})
            >>> _ = await sessions.checkpoint(run.id, {"step": 2})
            >>> [checkpoint.sequence_number for checkpoint in await sessions.checkpoints(run.id)]
            [2, 1]
        """
        statement = (
            select(Checkpoint)
            .where(
                Checkpoint.org_id == self._tenant,
                Checkpoint.session_id == validation.uuid("session_id", session_id),
            )
            .order_by(Checkpoint.sequence_number.desc())
            .limit(limit_of(limit))
        )
        found = (await self._execute(statement, populate_existing=True)).scalars().all()
        if not found:
            await self._status(session_id)
        return found

    async def prune_checkpoints(self, session_id: UUID, *, keep: int = 10) -> int:
        """Remove a session's old checkpoints, and return how many.

        The ``keep`` newest stay, and with them the newest intact one and all
        that are newer: resume() finds what it would have found.  Where none of the hundred
        newest is intact, none is removed.  Safe beside other writers and pruners: they take turns.

        Args:
            session_id: the run, whatever its status.
            keep: how many of the newest stay, 1 to 10,000.

        Raises:
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> for step in range(5):
            ...     _ = await sessions.checkpoint(run.id, {"step": step})
            >>> await sessions.prune_checkpoints(run.id, keep=2)
            3
            >>> [checkpoint.sequence_number for checkpoint in await sessions.checkpoints(run.id)]
            [5, 4]
        """
        ident = validation.uuid("session_id", session_id)
        validation.integer("keep", keep, 1, 10_000)
        held = select(Session.id).where(*self._scope(), Session.id == ident).with_for_update(key_share=True)
        if (await self._execute(held)).scalar_one_or_none() is None:
            raise NotFoundError(Session.__name__, ident)
        intact = await self._newest_intact(ident)
        if intact is None:
            return 0
        of_session = (Checkpoint.org_id == self._tenant, Checkpoint.session_id == ident)
        number = Checkpoint.sequence_number
        kept = select(number).where(*of_session).order_by(number.desc()).offset(keep - 1).limit(1).scalar_subquery()
        statement = (
            delete(Checkpoint)
            .where(*of_session, number < func.least(kept, intact.sequence_number), kept.is_not(None))
            .returning(Checkpoint.id)
            .execution_options(synchronize_session=False)
        )
        return len((await self._execute(statement)).all())

    async def _newest_intact(self, session_id: UUID) -> Checkpoint | None:
        # One by one: states may be large, and the newest is as good as always intact.
        below = None
        for _ in range(_LOOKED_THROUGH):
            checkpoint = await self._newest_checkpoint(session_id, below=below)
            if checkpoint is None or checkpoint.is_intact():
                return checkpoint
            below = checkpoint.sequence_number
            facts = {"session_id": str(session_id), "sequence_number": below}
            _log.error("checkpoint %s of session %s is damaged", below, session_id, extra=facts)
        return None

    async def _newest_checkpoint(self, session_id: UUID, *, below: int | None = None) -> Checkpoint | None:
        statement = (
            select(Checkpoint)
            .where(
                Checkpoint.org_id == self._tenant,
                Checkpoint.session_id == validation.uuid("session_id", session_id),
            )
            .order_by(Checkpoint.sequence_number.desc())
            .limit(1)
        )
        if below is not None:
            statement = statement.where(Checkpoint.sequence_number < below)
        found = (await self._execute(statement, populate_existing=True)).scalars().one_or_none()
        return cast("Checkpoint | None", found)

    async def _status(self, ident: UUID) -> SessionStatus:
        statement = select(Session.status).where(*self._scope(), Session.id == validation.uuid("session_id", ident))
        found = (await self._execute(statement)).scalar_one_or_none()
        if found is None:
            raise NotFoundError(Session.__name__, ident)
        return cast("SessionStatus", found)
