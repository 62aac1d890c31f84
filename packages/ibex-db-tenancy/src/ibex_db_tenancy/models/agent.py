"""Agents: what remembers and acts on behalf of an organization."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ibex_db_core.base import Base, OrgScoped, SoftDeleted, Timestamped, json_is_object, parent_key
from ibex_db_core.types import Json, JsonObject, enum_type
from ibex_db_tenancy.models._rules import DESCRIPTION, NAME, SLUG

if TYPE_CHECKING:
    from ibex_db_tenancy.models.directive import DirectiveVersion
    from ibex_db_tenancy.models.organization import Organization
    from ibex_db_tenancy.models.user import User


class AgentStatus(StrEnum):
    """Whether an agent works."""

    ACTIVE = "active"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    ARCHIVED = "archived"


class Agent(OrgScoped, Timestamped, SoftDeleted, Base):
    """One agent of one organization.

    Attributes:
        created_by: the user who made it; NULL once that user is erased.
        slug: unique among the organization's live agents.
        config: a JSON object; assign a new dict, for changes inside it are not tracked.
        metadata_: the column ``metadata``; a JSON object, as config.
        active_directive_version_id: the version through which it follows a directive; which text it is told,
            DirectiveRepository.active_for says.
    """

    __tablename__ = "agents"
    __table_args__ = (
        parent_key("users", "created_by", optional=True),
        parent_key("directive_versions", "active_directive_version_id", optional=True),
        # AgentRepository.by_slug; one slug, one live agent.
        Index("agents_org_id_slug_live", "org_id", "slug", unique=True, postgresql_where=text("deleted_at IS NULL")),
        # Erasing a user looks for the agents that name them.
        Index(None, "org_id", "created_by"),
        # AgentRepository.following; erasing a directive version looks here too.
        Index(None, "org_id", "active_directive_version_id"),
        *NAME.checks("name"),
        *SLUG.checks("slug"),
        *DESCRIPTION.checks("description"),
        json_is_object("config"),
        json_is_object("metadata"),
        {"info": {"fingerprint": ("slug",)}},  # what an erasure receipt keeps a keyed hash of
    )

    created_by: Mapped[UUID | None]
    name: Mapped[str] = mapped_column(info=NAME.info)
    slug: Mapped[str] = mapped_column(info=SLUG.info)
    description: Mapped[str | None] = mapped_column(info=DESCRIPTION.info)
    status: Mapped[AgentStatus] = mapped_column(
        enum_type(AgentStatus), default=AgentStatus.ACTIVE, server_default=AgentStatus.ACTIVE.value
    )
    config: Mapped[JsonObject] = mapped_column(Json, default=dict, server_default=text("'{}'::jsonb"))
    metadata_: Mapped[JsonObject] = mapped_column("metadata", Json, default=dict, server_default=text("'{}'::jsonb"))
    active_directive_version_id: Mapped[UUID | None]
    last_active_at: Mapped[datetime | None]

    organization: Mapped["Organization"] = relationship(back_populates="agents", lazy="raise")
    creator: Mapped["User | None"] = relationship(
        primaryjoin="and_(Agent.org_id == User.org_id, foreign(Agent.created_by) == User.id)", lazy="raise"
    )
    active_directive_version: Mapped["DirectiveVersion | None"] = relationship(
        primaryjoin="and_(Agent.org_id == DirectiveVersion.org_id, "
        "foreign(Agent.active_directive_version_id) == DirectiveVersion.id)",
        lazy="raise",
    )
