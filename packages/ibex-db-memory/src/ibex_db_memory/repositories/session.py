"""Sessions of agents, and the checkpoints to resume them from."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final, cast
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Text,
    Uuid,
    bindparam,
    cast as cast_sql,
    delete,
    func,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from ibex_db_core import validation
from ibex_db_core.errors import IllegalTransitionError, InvalidInputError, NotFoundError
from ibex_db_core.steps import SteppedRepository, illegal
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

# What the index sessions_live_heartbeat_idx holds: a session that ought to show signs of life.
_LIVE = (SessionStatus.INITIALIZING, SessionStatus.ACTIVE, SessionStatus.RESUMING)

_ENDED = (SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.ABANDONED)

# What no update() sets by itself, and which verb does.
_WAYS_OUT: Final[Mapping[str, str]] = {
    "status": "moves by activate(), suspend(), resume(), complete(), fail() and abandon_stale(), with what goes along",
    "agent_id": "stays what it is: start() another run for the other agent",
    "started_at": "is start()'s to note",
    "last_heartbeat_at": "is heartbeat()'s to note",
    "suspended_at": "is suspend()'s to note",
    "ended_at": "is complete()'s, fail()'s and abandon_stale()'s to note",
    "checkpoint_sequence": "is checkpoint()'s to count",
    "turn_count": "is heartbeat()'s to count",
    "last_error": "is fail()'s to note",
}

_MOST_TURNS = 2**31 - 1

# Farther back than any run; what lies before 4714 BC, Postgres has no timestamp for.
_LONGEST_STALE = timedelta(days=36_500)

# Checkpoints that are looked through for an intact one, newest first, before giving up.
_LOOKED_THROUGH = 100


@dataclass(frozen=True, slots=True)
class Resumed:
    """A session that goes on, and where from.

    Attributes:
        session: it is RESUMING; tell activate() when the run is up.
        checkpoint: the newest intact one; None where there is none.
    """

    session: Session
    checkpoint: Checkpoint | None


class SessionRepository(SteppedRepository[Session]):
    """The sessions of one organization: ``sessions = SessionRepository(session)``.

    Statuses move by SESSION_STEPS only, in raw SQL too:

        initializing -> active <-> suspended, resuming -> active
        any live one -> completed, failed, abandoned; the last two -> resuming
    """

    model = Session
    steps: ClassVar = SESSION_STEPS

    async def update(self, ident: UUID, **changes: object) -> Session:
        """Change fields of a session, in one statement, and return it; its status and its books are the verbs' alone.

        Args:
            ident: the session.
            changes: external_id, user_id, directive_version_id and metadata.

        Raises:
            InvalidInputError: no such field, one that a verb keeps, or a value that breaks its rule.
            ConflictError: the agent has a session of this external_id.
            ForeignKeyError: no such user or directive version in this organization.
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> (await sessions.update(run.id, metadata={"channel": "phone"})).metadata_
            {'channel': 'phone'}
        """
        for name, way_out in _WAYS_OUT.items():
            if name in changes:
                raise InvalidInputError(name, changes[name], way_out)
        found = dict(changes)
        if "metadata" in found:
            if "metadata_" in found:
                raise InvalidInputError("metadata_", found["metadata_"], "is metadata by its other name: give one")
            found["metadata_"] = validation.json_object("metadata", found.pop("metadata"))
        return await super().update(ident, **found)

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

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> run.status
            <SessionStatus.ACTIVE: 'active'>
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

    async def get_or_start(
        self,
        external_id: str,
        *,
        agent_id: UUID,
        user_id: UUID | None = None,
        metadata: JsonObject | None = None,
    ) -> Session:
        """Return the agent's session of this name, whatever its status, or start it; race-free.

        Raises:
            ForeignKeyError: no such agent or user in this organization.

        Example:
            >>> first = await sessions.get_or_start("call-17", agent_id=agent.id)
            >>> (await sessions.get_or_start("call-17", agent_id=agent.id)).id == first.id
            True
        """
        values = {
            "org_id": self._tenant,
            "agent_id": validation.uuid("agent_id", agent_id),
            "user_id": validation.check(Session, "user_id", user_id),
            "external_id": validation.check(Session, "external_id", external_id),
            "status": SessionStatus.ACTIVE,
            "metadata": validation.json_object("metadata", {} if metadata is None else metadata),
        }
        if values["external_id"] is None:
            raise InvalidInputError("external_id", None, "is required")
        elements, predicate = self._unique_key("sessions_external_id_key")
        statement = insert(self._table).values(values)
        statement = statement.on_conflict_do_nothing(index_elements=elements, index_where=predicate)
        same = (Session.agent_id == agent_id, Session.external_id == external_id)
        while True:
            # Most calls find it.  Where it is missing, whoever inserts first wins, and the others find it next time.
            found = (await self._execute(self._select().where(*same))).scalars().one_or_none()
            if found is not None:
                return cast("Session", found)
            await self._execute(statement)

    async def activate(self, session_id: UUID) -> Session:
        """Say that an initializing or resuming run is up; it is ACTIVE.

        Raises:
            IllegalTransitionError: it is neither.
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> _ = await sessions.suspend(run.id)
            >>> _ = await sessions.resume(run.id)
            >>> (await sessions.activate(run.id)).status
            <SessionStatus.ACTIVE: 'active'>
        """
        return await self._step(session_id, SessionStatus.ACTIVE, {"last_heartbeat_at": func.now()})

    async def heartbeat(self, session_id: UUID, *, turns: int = 0) -> Session:
        """Show that a run is alive, and count the turns that it has taken since.

        Args:
            session_id: the run; initializing, active or resuming.
            turns: to add to turn_count, 0 or more; the count stays at 2**31 - 1 once it is there.

        Raises:
            IllegalTransitionError: the run has ended or is suspended: nobody should be running it.
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> (await sessions.heartbeat(run.id, turns=2)).turn_count
            2
        """
        ident = validation.uuid("session_id", session_id)
        statement = (
            update(Session)
            .where(*self._scope(), Session.id == ident, Session.status.in_(_LIVE))
            .values(
                last_heartbeat_at=func.now(),
                turn_count=func.least(
                    cast_sql(Session.turn_count, BigInteger()) + validation.integer("turns", turns, 0, _MOST_TURNS),
                    _MOST_TURNS,
                ),
            )
        )
        try:
            return await self._change(statement, ident)
        except NotFoundError:
            status = await self._status(ident)
            if status in _LIVE:  # it has come alive this very moment
                return await self.heartbeat(ident, turns=turns)
            raise illegal(Session, ident, status, SessionStatus.ACTIVE, self.steps) from None

    async def suspend(self, session_id: UUID) -> Session:
        """Set a run aside; resume() takes it up again.

        Raises:
            IllegalTransitionError: it is neither active nor resuming.
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> (await sessions.suspend(run.id)).suspended_at is not None
            True
        """
        return await self._step(session_id, SessionStatus.SUSPENDED, {"suspended_at": func.now()})

    async def resume(self, session_id: UUID) -> Resumed:
        """Take up a suspended, failed or abandoned run, from its newest intact checkpoint.

        A damaged checkpoint is passed over and logged, to ``ibex_db.sessions``.
        Of two that resume one run at once, one wins and the other is told.

        Raises:
            IllegalTransitionError: the run is live, or completed.
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> _ = await sessions.checkpoint(run.id, {"step": 3})
            >>> _ = await sessions.fail(run.id, error="out of memory")
            >>> resumed = await sessions.resume(run.id)
            >>> resumed.checkpoint.state
            {'step': 3}
        """
        values = {"last_heartbeat_at": func.now(), "suspended_at": None, "ended_at": None}
        session = await self._step(session_id, SessionStatus.RESUMING, values)
        return Resumed(session, await self._newest_intact(session_id))

    async def complete(self, session_id: UUID) -> Session:
        """End a run that has done its work; nothing follows COMPLETED.

        Raises:
            IllegalTransitionError: it has ended already.
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> (await sessions.complete(run.id)).ended_at is not None
            True
        """
        return await self._step(session_id, SessionStatus.COMPLETED, {"ended_at": func.now()})

    async def fail(self, session_id: UUID, *, error: str) -> Session:
        """End a run that went wrong; resume() may take it up again.

        Args:
            session_id: the run.
            error: what went wrong; kept as last_error.

        Raises:
            IllegalTransitionError: it has ended already.
            NotFoundError: no such session in this organization.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> (await sessions.fail(run.id, error="the model is away")).last_error
            'the model is away'
        """
        values = {"ended_at": func.now(), "last_error": validation.text("error", error, shortest=1)}
        return await self._step(session_id, SessionStatus.FAILED, values)

    async def find_stale(self, *, older_than: timedelta, limit: int = 100) -> Sequence[Session]:
        """Return live runs whose last heartbeat is older than this, the oldest first; one index scan.

        Args:
            older_than: more than zero.
            limit: how many, 1 to 1000.

        Example:
            >>> run = await sessions.start(agent_id=agent.id)
            >>> await sessions.find_stale(older_than=timedelta(minutes=5))
            []
        """
        statement = self._select().where(*_stale(older_than))
        statement = statement.order_by(Session.last_heartbeat_at, Session.id).limit(limit_of(limit))
        return (await self._execute(statement)).scalars().all()

    async def abandon_stale(self, *, older_than: timedelta, batch_size: int = 100) -> Sequence[Session]:
        """Mark up to a batch of stale runs ABANDONED, and return them.

        Call it until it returns none, each time in a transaction of its own.
        Workers do not wait for each other, and none gets another's: each passes
        over what another has locked.

        Args:
            older_than: since the last heartbeat, more than zero.
            batch_size: runs in one statement, 1 to 1000.

        Example:
            >>> await sessions.abandon_stale(older_than=timedelta(minutes=5))
            []
        """
        stale = (
            select(Session.org_id, Session.id)
            .where(*self._scope(), *_stale(older_than))
            .order_by(Session.last_heartbeat_at)
            .limit(validation.integer("batch_size", batch_size, 1, 1000))
            .with_for_update(skip_locked=True, key_share=True)
            .cte("stale")
        )
        statement = (
            update(Session)
            .where(*self._scope(), Session.org_id == stale.c.org_id, Session.id == stale.c.id)
            .values(status=SessionStatus.ABANDONED, ended_at=func.now())
            .returning(Session)
            .execution_options(synchronize_session=False)
        )
        return (await self._execute(statement, populate_existing=True)).scalars().all()

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


def _stale(older_than: timedelta) -> Sequence[ColumnElement[bool]]:
    if not isinstance(cast("object", older_than), timedelta):
        raise InvalidInputError("older_than", older_than, "must be a timedelta")
    if not timedelta(0) < older_than <= _LONGEST_STALE:
        raise InvalidInputError("older_than", older_than, f"must be more than zero, at most {_LONGEST_STALE.days} days")
    return (
        # Literals, as in the index's predicate: of a parameter the planner cannot tell that it applies.
        Session.status.in_([literal_column(f"'{status.value}'") for status in _LIVE]),
        Session.last_heartbeat_at < func.now() - older_than,
    )
