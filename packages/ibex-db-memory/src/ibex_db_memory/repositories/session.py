"""Sessions of agents, and the checkpoints to resume them from."""

from typing import Any, cast
from uuid import UUID

from sqlalchemy import Column, Text, Uuid, bindparam, select, text
from sqlalchemy.dialects.postgresql import JSONB

from ibex_db_core import validation
from ibex_db_core.errors import NotFoundError
from ibex_db_core.repository import BaseRepository
from ibex_db_core.types import JsonObject
from ibex_db_memory.errors import CheckpointDamagedError
from ibex_db_memory.models import Checkpoint, Session, SessionStatus
from ibex_db_memory.state import canonical_state, state_hash

_CHECKPOINT = select(Checkpoint).from_statement(
    text(
        """
    WITH numbered AS (
        UPDATE ibex_core.sessions SET checkpoint_sequence = checkpoint_sequence + 1
        WHERE org_id = :org_id AND id = :session_id
        RETURNING org_id, id, checkpoint_sequence
    )
    INSERT INTO ibex_core.checkpoints (org_id, session_id, sequence_number, state, state_hash, state_size_bytes)
    SELECT org_id, id, checkpoint_sequence, :state, :hash, :size FROM numbered
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


class SessionRepository(BaseRepository[Session]):
    """The sessions of one organization."""

    model = Session

    async def start(
        self,
        *,
        agent_id: UUID,
        user_id: UUID | None = None,
        directive_version_id: UUID | None = None,
        external_id: str | None = None,
        metadata: JsonObject | None = None,
    ) -> Session:
        """Start a session; it is ACTIVE.

        Args:
            agent_id: who runs.
            user_id: for whom.
            directive_version_id: under which directive.
            external_id: the caller's own name for the run, unique for the agent.
            metadata: a JSON object.

        Raises:
            ConflictError: the agent has a session of this external_id.
            ForeignKeyError: no such agent, user or directive version in this organization.
        """
        return await self.add(
            Session(
                agent_id=agent_id,
                user_id=user_id,
                directive_version_id=directive_version_id,
                external_id=external_id,
                status=SessionStatus.ACTIVE,
                metadata_={} if metadata is None else metadata,
            )
        )

    async def checkpoint(self, session_id: UUID, state: JsonObject) -> Checkpoint:
        """Save a session's state under the next number; one statement, safe beside other writers.

        Raises:
            InvalidInputError: the state is no JSON object.
            NotFoundError: no such session in this organization.
        """
        validation.json_object("state", state)
        parameters = {
            "org_id": self._tenant,
            "session_id": validation.uuid("session_id", session_id),
            "state": state,
            "hash": state_hash(state),
            "size": len(canonical_state(state)),
        }
        result = await self._execute(_CHECKPOINT, parameters)
        checkpoint = result.scalars().one_or_none()
        if checkpoint is None:
            raise NotFoundError(Session.__name__, session_id)
        return cast("Checkpoint", checkpoint)

    async def latest_checkpoint(self, session_id: UUID) -> Checkpoint | None:
        """Return the newest checkpoint, or None before the first; one index probe.

        Raises:
            CheckpointDamagedError: its state is not the one that was saved.
        """
        statement = (
            select(Checkpoint)
            .where(
                Checkpoint.org_id == self._tenant,
                Checkpoint.session_id == validation.uuid("session_id", session_id),
            )
            .order_by(Checkpoint.sequence_number.desc())
            .limit(1)
        )
        found = cast(
            "Checkpoint | None", (await self._execute(statement, populate_existing=True)).scalars().one_or_none()
        )
        if found is not None and not found.is_intact():
            raise CheckpointDamagedError(session_id, found.sequence_number, found.state_hash, state_hash(found.state))
        return found
