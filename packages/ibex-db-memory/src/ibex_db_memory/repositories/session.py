"""Sessions of agents: started, kept alive, suspended, resumed, ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, cast
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, cast as cast_sql, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_core.savepoints import note_rows
from ibex_db_core.steps import illegal
from ibex_db_core.types import JsonObject
from ibex_db_memory.models import Checkpoint, Session, SessionStatus
from ibex_db_memory.repositories.checkpoint import Checkpoints
from ibex_db_memory.search.filters import limit_of

# What the index sessions_live_heartbeat_idx holds: a session that ought to show signs of life.
_LIVE = (SessionStatus.INITIALIZING, SessionStatus.ACTIVE, SessionStatus.RESUMING)

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


@dataclass(frozen=True, slots=True)
class Resumed:
    """A session that goes on, and where from.

    Attributes:
        session: it is RESUMING; tell activate() when the run is up.
        checkpoint: the newest intact one; None where there is none.
    """

    session: Session
    checkpoint: Checkpoint | None


class SessionRepository(Checkpoints):
    """The sessions of one organization: ``sessions = SessionRepository(session)``.

    Statuses move by SESSION_STEPS only, in raw SQL too:

        initializing -> active <-> suspended, resuming -> active
        any live one -> completed, failed, abandoned; the last two -> resuming
    """

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
        inserting, made = statement.returning(self._table.c["id"]), False
        same = (Session.agent_id == agent_id, Session.external_id == external_id)
        while True:
            # Most calls find it.  Where it is missing, whoever inserts first wins, and the others find it next time.
            found = (await self._execute(self._select().where(*same))).scalars().one_or_none()
            if found is not None:
                note_rows(self._session, [[found]] if made else [], made=True)
                return cast("Session", found)
            made = (await self._execute(inserting)).scalar_one_or_none() is not None

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
