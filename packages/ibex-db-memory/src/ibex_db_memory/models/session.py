"""Session: one run of an agent, from start to end."""

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ibex_db_core.base import Base, OrgScoped, Timestamped, json_is_object, parent_key
from ibex_db_core.types import JsonObject, enum_type
from ibex_db_memory.models._guards import SESSIONS
from ibex_db_memory.models.enums import SessionStatus

if TYPE_CHECKING:
    from ibex_db_memory.models.checkpoint import Checkpoint
    from ibex_db_tenancy import Agent, DirectiveVersion, User

_COUNT = {"range": (0, 2**31 - 1)}


class Session(OrgScoped, Timestamped, Base):
    """One run of an agent: its status, its heartbeat and its newest checkpoint's number.

    Not SQLAlchemy's Session, which services of this library never name: the
    database session is what ``db.tenant()`` gives.

    Attributes:
        external_id: the caller's own name for the run; unique for the agent where given.
        status: only the steps of SESSION_STEPS are legal, also in raw SQL.
        last_heartbeat_at: when the run last showed that it is alive.
        checkpoint_sequence: sequence_number of the newest checkpoint; 0 before the first.
    """

    __tablename__ = "sessions"
    __guards__ = SESSIONS

    agent_id: Mapped[UUID]
    user_id: Mapped[UUID | None]
    directive_version_id: Mapped[UUID | None]
    external_id: Mapped[str | None] = mapped_column(info={"length": (1, 255)})
    status: Mapped[SessionStatus] = mapped_column(
        enum_type(SessionStatus), default=SessionStatus.INITIALIZING, server_default="initializing"
    )
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_heartbeat_at: Mapped[datetime] = mapped_column(server_default=func.now())
    suspended_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    checkpoint_sequence: Mapped[int] = mapped_column(default=0, server_default=text("0"), info=_COUNT)
    turn_count: Mapped[int] = mapped_column(default=0, server_default=text("0"), info=_COUNT)
    last_error: Mapped[str | None]
    metadata_: Mapped[JsonObject] = mapped_column("metadata", default=dict, server_default=text("'{}'::jsonb"))

    # This one owns org_id: a session that is attached to an agent gets its
    # organization from it. The others mark their own column only.
    agent: Mapped["Agent"] = relationship("Agent", lazy="raise")
    user: Mapped["User | None"] = relationship(
        "User",
        primaryjoin="and_(Session.org_id == User.org_id, foreign(Session.user_id) == User.id)",
        lazy="raise",
    )
    directive_version: Mapped["DirectiveVersion | None"] = relationship(
        "DirectiveVersion",
        primaryjoin="and_(Session.org_id == DirectiveVersion.org_id,"
        " foreign(Session.directive_version_id) == DirectiveVersion.id)",
        lazy="raise",
    )
    checkpoints: Mapped[list["Checkpoint"]] = relationship(
        back_populates="session",
        order_by="Checkpoint.sequence_number",
        lazy="raise",
        passive_deletes="all",  # append-only: the database removes them with their session
    )

    __table_args__ = (
        parent_key("agents", "agent_id"),
        parent_key("users", "user_id", optional=True, owned=True),
        parent_key("directive_versions", "directive_version_id", optional=True),
        CheckConstraint("char_length(external_id) BETWEEN 1 AND 255", name="external_id_length"),
        CheckConstraint("checkpoint_sequence >= 0", name="checkpoint_sequence_range"),
        CheckConstraint("turn_count >= 0", name="turn_count_range"),
        json_is_object("metadata"),
        # SessionRepository.get_or_start: one session for the caller's own id.
        Index(
            "sessions_external_id_key",
            "org_id",
            "agent_id",
            "external_id",
            unique=True,
            postgresql_where=text("external_id IS NOT NULL"),
        ),
        # SessionRepository.list(agent_id=...), and the cascade when an agent is erased. Both imply the predicate,
        # which hides it from what is asked for by id, as in memories.
        Index("sessions_by_agent_idx", "org_id", "agent_id", postgresql_where=text("agent_id IS NOT NULL")),
        # SessionRepository.find_stale. A heartbeat does update this column, so
        # it is no HOT update; it is worth it here and would not be in memories:
        # there is no vector index to re-enter, a heartbeat costs one entry in
        # each of a few narrow btrees, and without the index every sweep reads
        # all live sessions to find the few that are stale. Ended and suspended
        # sessions, the bulk of the table, are not in it.
        Index(
            "sessions_live_heartbeat_idx",
            "org_id",
            "last_heartbeat_at",
            postgresql_where=text("status IN ('initializing', 'active', 'resuming')"),
        ),
        # SET NULL, when a user or a directive is erased.
        Index("sessions_user_id_idx", "org_id", "user_id", postgresql_where=text("user_id IS NOT NULL")),
        Index(
            "sessions_directive_version_id_idx",
            "org_id",
            "directive_version_id",
            postgresql_where=text("directive_version_id IS NOT NULL"),
        ),
    )
