"""Tokens of an organization."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import func, update

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_core.repository import BaseRepository
from ibex_db_tenancy.models import Token, TokenKind
from ibex_db_tenancy.tokens import mint


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A new token and the one sight of its plaintext.

    Attributes:
        token: the row, as kept.
        plaintext: hand it to its owner and forget it; left out of repr().
    """

    token: Token
    plaintext: str = field(repr=False)


class TokenRepository(BaseRepository[Token]):
    """Tokens of one organization."""

    model = Token

    async def issue(
        self,
        *,
        name: str,
        kind: TokenKind = TokenKind.PERSONAL,
        user_id: UUID | None = None,
        agent_id: UUID | None = None,
        permissions: int = 0,
        expires_at: datetime | None = None,
    ) -> IssuedToken:
        """Make a token; its plaintext is returned here and nowhere again.

        Args:
            name: what its owner calls it.
            kind: in whose name it speaks; a personal one needs user_id.
            user_id: the user it speaks for, and goes with.
            agent_id: the agent it speaks for, and goes with.
            permissions: a bit set of the service's own meaning, 63 bits.
            expires_at: from when it opens nothing; None is never.

        Raises:
            InvalidInputError: a personal token without a user, or an expiry in the past.
            ForeignKeyError: the user or agent is not of this organization.
        """
        if kind == TokenKind.PERSONAL and user_id is None:
            raise InvalidInputError("user_id", None, "is required: a personal token speaks for a user")
        if expires_at is not None and validation.moment("expires_at", expires_at) <= datetime.now(UTC):
            raise InvalidInputError("expires_at", expires_at, "must lie in the future")
        minted = mint(self._tenant)
        token = Token(
            name=name,
            kind=kind,
            user_id=user_id,
            agent_id=agent_id,
            permissions=permissions,
            expires_at=expires_at,
            prefix=minted.prefix,
            token_hash=minted.hash,
        )
        return IssuedToken(await self.add(token), minted.plaintext)

    async def rotate(self, ident: UUID, *, expires_at: datetime | None = None) -> IssuedToken:
        """Revoke a token and issue its successor, for the same user or agent, with the same permissions.

        Of two that rotate one token at the same time, one succeeds.

        Args:
            ident: the token to replace.
            expires_at: of the successor; None takes over the old one's.

        Raises:
            NotFoundError: no such token.
            InvalidInputError: it is revoked or has expired: issue a new one.
        """
        old = await self._revoke(ident, None, "rotated")
        if old is None:
            await self.get(ident)
            raise InvalidInputError("token", ident, "must not be revoked already: issue a new one")
        return await self.issue(
            name=old.name,
            kind=old.kind,
            user_id=old.user_id,
            agent_id=old.agent_id,
            permissions=old.permissions,
            expires_at=expires_at or old.expires_at,
        )

    async def revoke(self, ident: UUID, *, by: UUID | None = None, reason: str | None = None) -> Token:
        """Have a token open nothing any more; one that is revoked already stays as it is.

        Args:
            ident: the token.
            by: the user who revokes it.
            reason: for whoever reads the list later.

        Raises:
            NotFoundError: no such token.
        """
        return await self._revoke(ident, by, reason) or await self.get(ident)

    async def by_hash(self, token_hash: str) -> Token | None:
        """Return the token with this hash, revoked and expired ones too, or None."""
        wanted = validation.check(Token, "token_hash", token_hash)
        statement = self._select().where(Token.org_id == self._tenant, Token.token_hash == wanted)
        return (await self._execute(statement)).scalars().one_or_none()

    async def of_user(self, user_id: UUID) -> Sequence[Token]:
        """Return a user's tokens, newest first, revoked and expired ones too."""
        statement = self._select().where(Token.user_id == validation.uuid("user_id", user_id))
        return (await self._execute(statement.order_by(Token.created_at.desc(), Token.id))).scalars().all()

    async def of_agent(self, agent_id: UUID) -> Sequence[Token]:
        """Return an agent's tokens, newest first, revoked and expired ones too."""
        statement = self._select().where(Token.agent_id == validation.uuid("agent_id", agent_id))
        return (await self._execute(statement.order_by(Token.created_at.desc(), Token.id))).scalars().all()

    async def _revoke(self, ident: UUID, by: UUID | None, reason: str | None) -> Token | None:
        """Revoke a token that is not revoked yet, or return None; the row lock decides between two who try."""
        statement = update(Token).where(
            *self._scope(), Token.id == validation.uuid("id", ident), Token.revoked_at.is_(None)
        )
        values = {
            "revoked_at": func.now(),
            "revoked_by": validation.check(Token, "revoked_by", by),
            "revoke_reason": validation.check(Token, "revoke_reason", reason),
        }
        try:
            return await self._change(statement.values(values), ident)
        except NotFoundError:
            return None
