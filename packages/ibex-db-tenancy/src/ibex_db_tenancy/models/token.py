"""Tokens: what services and people prove themselves with."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ibex_db_core.base import Base, OrgScoped, Timestamped, parent_key
from ibex_db_core.guards import Function, Guards, Trigger
from ibex_db_core.identity import TokenKind
from ibex_db_core.types import enum_type
from ibex_db_tenancy.models._rules import DESCRIPTION, NAME, SHA256_HEX, TextRule

if TYPE_CHECKING:
    from ibex_db_tenancy.models.agent import Agent
    from ibex_db_tenancy.models.organization import Organization
    from ibex_db_tenancy.models.user import User

_PREFIX = TextRule(1, 32)


# What the migration made, as it is meant to be today; the doctor compares a live database with it.
_REVOCATIONS_ARE_FINAL = Guards(
    triggers=(
        Trigger(
            "tokens_stay_revoked",
            "BEFORE UPDATE ON ibex_core.tokens FOR EACH ROW EXECUTE FUNCTION ibex_core.keep_tokens_revoked()",
        ),
    ),
    functions=(
        Function(
            "keep_tokens_revoked",
            """
BEGIN
    IF NEW.token_hash <> OLD.token_hash OR NEW.prefix <> OLD.prefix THEN
        RAISE EXCEPTION 'the secret of token % is immutable: issue or rotate a token', OLD.id
            USING ERRCODE = '23514', CONSTRAINT = 'tokens_secret_immutable',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    -- revoked_by becomes NULL when that user is erased.
    IF OLD.revoked_at IS NOT NULL AND (
        NEW.revoked_at IS DISTINCT FROM OLD.revoked_at
        OR NEW.revoke_reason IS DISTINCT FROM OLD.revoke_reason
        OR (NEW.revoked_by IS DISTINCT FROM OLD.revoked_by AND NEW.revoked_by IS NOT NULL)
    ) THEN
        RAISE EXCEPTION 'token % is revoked for good: issue a new one', OLD.id
            USING ERRCODE = '23514', CONSTRAINT = 'tokens_revocation_final',
                TABLE = TG_TABLE_NAME, SCHEMA = TG_TABLE_SCHEMA;
    END IF;
    RETURN NEW;
END """,
            settings={"search_path": "pg_catalog, pg_temp"},
        ),
    ),
)


class TokenState(StrEnum):
    """Whether a token opens anything, by its own row; a revoked one is REVOKED whether it has expired or not."""

    LIVE = "live"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Token(OrgScoped, Timestamped, Base):
    """One token's record; the plaintext is shown once and never stored.

    Its secret never changes, and once it is revoked it stays so: the database refuses both, to raw SQL as well.

    Attributes:
        user_id, agent_id: whom it speaks for; it goes when they are erased.
        prefix: the first characters of the plaintext, safe to show and to log.
        token_hash: SHA-256 of the plaintext, hexadecimal; unique in the organization.
        permissions: a bit set whose meaning is the service's own, 63 bits.
        last_used_at: written together with use_count, see ibex_db_tenancy.authentication.
        use_count: successful authentications, as far as they have been counted.
        revoked_by: the user who revoked it; NULL once that user is erased.
    """

    __tablename__ = "tokens"
    __guards__ = _REVOCATIONS_ARE_FINAL
    __table_args__ = (
        parent_key("users", "user_id"),
        parent_key("agents", "agent_id"),
        parent_key("users", "revoked_by", optional=True),
        # TokenAuthenticator, and TokenRepository.by_hash: how every request comes in.
        UniqueConstraint("org_id", "token_hash"),
        # TokenRepository.of_user; erasing a user looks here too.
        Index(None, "org_id", "user_id"),
        # TokenRepository.of_agent; erasing an agent looks here too.
        Index(None, "org_id", "agent_id"),
        # Erasing a user looks for the tokens that they revoked.
        Index(None, "org_id", "revoked_by"),
        *NAME.checks("name"),
        *_PREFIX.checks("prefix"),
        *SHA256_HEX.checks("token_hash"),
        *DESCRIPTION.checks("revoke_reason"),
        CheckConstraint("permissions >= 0", name="permissions_range"),
        CheckConstraint("use_count >= 0", name="use_count_range"),
        CheckConstraint(
            "revoked_at IS NOT NULL OR (revoked_by IS NULL AND revoke_reason IS NULL)", name="revoked_has_moment"
        ),
    )

    user_id: Mapped[UUID | None]
    agent_id: Mapped[UUID | None]
    kind: Mapped[TokenKind] = mapped_column(
        enum_type(TokenKind), default=TokenKind.PERSONAL, server_default=TokenKind.PERSONAL.value
    )
    name: Mapped[str] = mapped_column(info=NAME.info)
    prefix: Mapped[str] = mapped_column(info=_PREFIX.info)
    token_hash: Mapped[str] = mapped_column(String(64), info=SHA256_HEX.info)
    permissions: Mapped[int] = mapped_column(
        BigInteger, default=0, server_default=text("0"), info={"range": (0, 2**63 - 1)}
    )
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    use_count: Mapped[int] = mapped_column(
        BigInteger, default=0, server_default=text("0"), info={"range": (0, 2**63 - 1)}
    )
    revoked_at: Mapped[datetime | None]
    revoked_by: Mapped[UUID | None]
    revoke_reason: Mapped[str | None] = mapped_column(info=DESCRIPTION.info)

    organization: Mapped["Organization"] = relationship(lazy="raise")
    user: Mapped["User | None"] = relationship(
        primaryjoin="and_(Token.org_id == User.org_id, foreign(Token.user_id) == User.id)", lazy="raise"
    )
    agent: Mapped["Agent | None"] = relationship(
        primaryjoin="and_(Token.org_id == Agent.org_id, foreign(Token.agent_id) == Agent.id)", lazy="raise"
    )
    revoker: Mapped["User | None"] = relationship(
        primaryjoin="and_(Token.org_id == User.org_id, foreign(Token.revoked_by) == User.id)", lazy="raise"
    )
