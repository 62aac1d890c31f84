"""Directives: what an organization tells its agents to do, and every wording that it ever had."""

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, String, UniqueConstraint, text
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ibex_db_core.base import Base, Created, OrgScoped, SoftDeleted, Timestamped, parent_key
from ibex_db_core.guards import Function, Guards, Trigger
from ibex_db_core.types import enum_type
from ibex_db_tenancy.models._rules import DESCRIPTION, NAME, SHA256_HEX, TextRule

if TYPE_CHECKING:
    from ibex_db_tenancy.models.organization import Organization
    from ibex_db_tenancy.models.user import User

# Far beyond any model's window for instructions; there to stop a file pasted by mistake.
_CONTENT = TextRule(1, 1_000_000)


# What the migration made, as it is meant to be today; the doctor compares a live database with it.
_KEEP_VERSION = Guards(
    triggers=(
        Trigger(
            "directive_versions_keep_version",
            "BEFORE UPDATE ON ibex_core.directive_versions "
            "FOR EACH ROW EXECUTE FUNCTION ibex_core.keep_directive_version()",
        ),
    ),
    functions=(
        Function(
            "keep_directive_version",
            """
BEGIN
    IF (NEW.directive_id, NEW.version_number, NEW.content, NEW.content_hash)
        IS DISTINCT FROM (OLD.directive_id, OLD.version_number, OLD.content, OLD.content_hash)
    THEN
        RAISE EXCEPTION 'directive version % is immutable: write a new version instead', OLD.id
            USING ERRCODE = '23514', CONSTRAINT = 'directive_versions_content_immutable',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NEW;
END """,
        ),
    ),
)


class DirectiveVersionStatus(StrEnum):
    """The life of a wording; at most one of a directive is active."""

    DRAFT = "draft"
    REVIEW = "review"
    ACTIVE = "active"
    DEPRECATED = "deprecated"
    REVOKED = "revoked"


VERSION_STEPS: Final = {
    DirectiveVersionStatus.DRAFT: frozenset(
        {DirectiveVersionStatus.REVIEW, DirectiveVersionStatus.ACTIVE, DirectiveVersionStatus.REVOKED}
    ),
    DirectiveVersionStatus.REVIEW: frozenset({DirectiveVersionStatus.ACTIVE, DirectiveVersionStatus.REVOKED}),
    DirectiveVersionStatus.ACTIVE: frozenset({DirectiveVersionStatus.DEPRECATED, DirectiveVersionStatus.REVOKED}),
    DirectiveVersionStatus.DEPRECATED: frozenset({DirectiveVersionStatus.ACTIVE, DirectiveVersionStatus.REVOKED}),
    DirectiveVersionStatus.REVOKED: frozenset[DirectiveVersionStatus](),
}
"""Which statuses may follow a status; who needs no review activates a draft at once, and REVOKED is the end."""


def content_hash(content: str) -> str:
    """Return the SHA-256 of a directive's exact text (UTF-8, not normalised), 64 hexadecimal digits."""
    return hashlib.sha256(content.encode()).hexdigest()


def _hash_of_row(context: DefaultExecutionContext) -> str:
    row = cast("dict[str, object]", context.get_current_parameters())  # type: ignore[no-untyped-call]
    return content_hash(str(row["content"]))


class Directive(OrgScoped, Timestamped, SoftDeleted, Base):
    """One directive under its name; its text is in its versions.

    Attributes:
        created_by: the user who made it; NULL once that user is erased.
        name: unique among the organization's live directives.
        versions: oldest first.
        active_version: the one whose status is active, or None; read only.
    """

    __tablename__ = "directives"
    __table_args__ = (
        parent_key("users", "created_by", optional=True),
        # DirectiveRepository.by_name; one name, one live directive.
        Index(
            "directives_org_id_name_live", "org_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")
        ),
        # Erasing a user looks for the directives that name them.
        Index(None, "org_id", "created_by"),
        *NAME.checks("name"),
        *DESCRIPTION.checks("description"),
    )

    created_by: Mapped[UUID | None]
    name: Mapped[str] = mapped_column(info=NAME.info)
    description: Mapped[str | None] = mapped_column(info=DESCRIPTION.info)

    organization: Mapped["Organization"] = relationship(lazy="raise")
    creator: Mapped["User | None"] = relationship(
        primaryjoin="and_(Directive.org_id == User.org_id, foreign(Directive.created_by) == User.id)", lazy="raise"
    )
    versions: Mapped[list["DirectiveVersion"]] = relationship(
        back_populates="directive",
        order_by="DirectiveVersion.version_number",
        lazy="raise",
        passive_deletes="all",
    )
    active_version: Mapped["DirectiveVersion | None"] = relationship(
        primaryjoin="and_(Directive.org_id == foreign(DirectiveVersion.org_id), "
        "Directive.id == foreign(DirectiveVersion.directive_id), DirectiveVersion.status == 'active')",
        viewonly=True,
        uselist=False,
        lazy="raise",
    )


class DirectiveVersion(OrgScoped, Created, Base):
    """One wording of a directive; the database refuses to change it once written.

    Its status and activated_at move on; directive_id, version_number, content
    and content_hash never do, by raw SQL neither.

    Attributes:
        version_number: from 1, unique within the directive.
        parent_version_id: the version that this one was edited from.
        content: 1 to 1,000,000 characters.
        content_hash: SHA-256 of content; filled in at flush, checked by the database.
        created_by: the user who wrote it; NULL once that user is erased.
    """

    __tablename__ = "directive_versions"
    __guards__ = _KEEP_VERSION
    __table_args__ = (
        parent_key("directives", "directive_id"),
        parent_key("directive_versions", "parent_version_id", optional=True),
        parent_key("users", "created_by", optional=True),
        # Directive.versions in their order; erasing a directive looks here too.
        UniqueConstraint("org_id", "directive_id", "version_number"),
        # DirectiveRepository.active_version; at most one per directive.
        Index(
            "directive_versions_org_id_directive_id_active",
            "org_id",
            "directive_id",
            unique=True,
            postgresql_where=text("status = 'active'"),
        ),
        # Erasing a directive looks for versions that came from those it takes along.
        Index(None, "org_id", "parent_version_id"),
        # Erasing a user looks for the versions that name them.
        Index(None, "org_id", "created_by"),
        *_CONTENT.checks("content"),
        *SHA256_HEX.checks("content_hash"),
        *DESCRIPTION.checks("change_summary"),
        CheckConstraint(
            "content_hash = encode(sha256(convert_to(content, 'UTF8')), 'hex')", name="content_hash_matches"
        ),
        CheckConstraint("version_number >= 1", name="version_number_range"),
        CheckConstraint("parent_version_id <> id", name="parent_is_another"),
    )

    directive_id: Mapped[UUID]
    version_number: Mapped[int] = mapped_column(info={"range": (1, 2**31 - 1)})
    parent_version_id: Mapped[UUID | None]
    content: Mapped[str] = mapped_column(info=_CONTENT.info)
    content_hash: Mapped[str] = mapped_column(String(64), default=_hash_of_row, info=SHA256_HEX.info)
    status: Mapped[DirectiveVersionStatus] = mapped_column(
        enum_type(DirectiveVersionStatus),
        default=DirectiveVersionStatus.DRAFT,
        server_default=DirectiveVersionStatus.DRAFT.value,
    )
    change_summary: Mapped[str | None] = mapped_column(info=DESCRIPTION.info)
    created_by: Mapped[UUID | None]
    activated_at: Mapped[datetime | None]

    directive: Mapped["Directive"] = relationship(back_populates="versions", lazy="raise")
    parent_version: Mapped["DirectiveVersion | None"] = relationship(
        primaryjoin="and_(DirectiveVersion.org_id == remote(DirectiveVersion.org_id), "
        "foreign(DirectiveVersion.parent_version_id) == remote(DirectiveVersion.id))",
        lazy="raise",
    )
    creator: Mapped["User | None"] = relationship(
        primaryjoin="and_(DirectiveVersion.org_id == User.org_id, foreign(DirectiveVersion.created_by) == User.id)",
        lazy="raise",
    )
