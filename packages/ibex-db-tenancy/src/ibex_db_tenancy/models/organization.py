"""Organizations: the tenants themselves."""

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from sqlalchemy import UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ibex_db_core.base import Base, Identified, SoftDeleted, Timestamped, json_is_object
from ibex_db_core.guards import Function, Guards, Trigger
from ibex_db_core.types import Json, JsonObject, enum_type
from ibex_db_tenancy.models._rules import NAME, SLUG

if TYPE_CHECKING:
    from ibex_db_tenancy.models.agent import Agent
    from ibex_db_tenancy.models.user import User


# What the migration made, as it is meant to be today; the doctor compares a live database with it.
_SLUGS_ARE_THE_PLATFORMS = Guards(
    triggers=(
        Trigger(
            "organizations_keep_slug",
            "BEFORE INSERT OR UPDATE ON ibex_core.organizations "
            "FOR EACH ROW EXECUTE FUNCTION ibex_core.keep_organization_slug()",
        ),
    ),
    functions=(
        Function(
            "keep_organization_slug",
            """
BEGIN
    -- Says the same whether the slug is taken or free: the unique index has not been asked yet.
    IF TG_OP = 'UPDATE' THEN
        IF NEW.slug = OLD.slug THEN
            RETURN NEW;
        END IF;
    END IF;
    IF NOT pg_catalog.pg_has_role(current_user, 'ibex_platform', 'USAGE') THEN
        RAISE EXCEPTION 'slugs are given by the platform: use db.platform()'
            USING ERRCODE = '42501', TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NEW;
END """,
            settings={"search_path": "pg_catalog, pg_temp"},
        ),
    ),
)


class OrganizationTier(StrEnum):
    """What an organization pays for."""

    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"


class OrganizationStatus(StrEnum):
    """Where an organization stands with us."""

    ACTIVE = "active"
    TRIAL = "trial"
    SUSPENDED = "suspended"
    CANCELLED = "cancelled"


class Organization(Identified, Timestamped, SoftDeleted, Base):
    """One tenant; every other row belongs to exactly one.

    A tenant session sees its own organization and no other.  Organizations are
    made in ``db.platform(reason=...)``.  Deleting the row takes all that it
    owns along; soft deletion keeps everything.

    Attributes:
        slug: unique over all organizations, deleted ones included: names in URLs are not handed on.  Given and
            changed by the platform alone: whoever may try one learns which others there are.
        settings: a JSON object; assign a new dict, for changes inside it are not tracked.
    """

    __tablename__ = "organizations"
    __guards__ = _SLUGS_ARE_THE_PLATFORMS
    __tenant_column__: ClassVar[str | None] = "id"
    __table_args__ = (
        UniqueConstraint("slug"),
        *NAME.checks("name"),
        *SLUG.checks("slug"),
        json_is_object("settings"),
        {"info": {"fingerprint": ("slug",)}},  # what an erasure receipt keeps a keyed hash of
    )

    name: Mapped[str] = mapped_column(info=NAME.info)
    slug: Mapped[str] = mapped_column(info=SLUG.info)
    tier: Mapped[OrganizationTier] = mapped_column(
        enum_type(OrganizationTier), default=OrganizationTier.FREE, server_default=OrganizationTier.FREE.value
    )
    status: Mapped[OrganizationStatus] = mapped_column(
        enum_type(OrganizationStatus), default=OrganizationStatus.ACTIVE, server_default=OrganizationStatus.ACTIVE.value
    )
    settings: Mapped[JsonObject] = mapped_column(Json, default=dict, server_default=text("'{}'::jsonb"))

    users: Mapped[list["User"]] = relationship(back_populates="organization", lazy="raise", passive_deletes="all")
    agents: Mapped[list["Agent"]] = relationship(back_populates="organization", lazy="raise", passive_deletes="all")
