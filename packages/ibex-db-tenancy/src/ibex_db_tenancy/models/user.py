"""Users: the people of an organization."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import Computed, Index, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ibex_db_core.base import Base, OrgScoped, SoftDeleted, Timestamped, json_is_object
from ibex_db_core.types import Json, JsonObject, enum_type
from ibex_db_tenancy.models._rules import EMAIL, NAME

if TYPE_CHECKING:
    from ibex_db_tenancy.models.organization import Organization


class UserRole(StrEnum):
    """What a user may do in the organization."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class UserStatus(StrEnum):
    """Whether a user may come in."""

    ACTIVE = "active"
    INVITED = "invited"
    SUSPENDED = "suspended"
    DEACTIVATED = "deactivated"


class User(OrgScoped, Timestamped, SoftDeleted, Base):
    """One person in one organization.

    Who works for two organizations has two rows: tenants share nothing.

    Attributes:
        email: kept as written; unique among the organization's live users whatever the case.
        email_lower: made by the database from email; what look-ups compare with.
        preferences: a JSON object; assign a new dict, for changes inside it are not tracked.
    """

    __tablename__ = "users"
    __table_args__ = (
        # UserRepository.by_email; one address, one live user.  On the generated
        # column, not on lower(email): lower() is not leakproof, so under
        # row-level security an index on it is never searched.
        Index(
            "users_org_id_email_lower_live",
            "org_id",
            "email_lower",
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
        *EMAIL.checks("email"),
        *NAME.checks("name"),
        json_is_object("preferences"),
        {"info": {"fingerprint": ("email_lower",)}},  # what an erasure receipt keeps a keyed hash of
    )

    email: Mapped[str] = mapped_column(info=EMAIL.info)
    email_lower: Mapped[str] = mapped_column(Computed("lower(email)", persisted=True))
    name: Mapped[str] = mapped_column(info=NAME.info)
    role: Mapped[UserRole] = mapped_column(
        enum_type(UserRole), default=UserRole.MEMBER, server_default=UserRole.MEMBER.value
    )
    status: Mapped[UserStatus] = mapped_column(
        enum_type(UserStatus), default=UserStatus.ACTIVE, server_default=UserStatus.ACTIVE.value
    )
    preferences: Mapped[JsonObject] = mapped_column(Json, default=dict, server_default=text("'{}'::jsonb"))
    last_login_at: Mapped[datetime | None]

    organization: Mapped["Organization"] = relationship(back_populates="users", lazy="raise")
