"""Tokens of an organization."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, or_, update
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm.interfaces import ORMOption

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_core.identity import TokenKind
from ibex_db_core.pages import Page
from ibex_db_core.repository import BaseRepository
from ibex_db_tenancy.models import Token, TokenState
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
    """Tokens of one organization: ``tokens = TokenRepository(session)``.

    Who comes with one is told by ``db.authenticate(plaintext)``.  ``update()`` changes a token's name, permissions
    and expiry; its secret and whom it speaks for never change, and a revocation is final.
    """

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

        Example:
            >>> issued = await tokens.issue(name="Laptop", user_id=user.id, permissions=0b101)
            >>> issued.plaintext.startswith(issued.token.prefix)
            True
            >>> issued.plaintext in repr(issued)
            False

        Raises:
            InvalidInputError: a personal token without a user, or an expiry in the past.
            ForeignKeyError: the user or agent is not of this organization.
        """
        if kind == TokenKind.PERSONAL and user_id is None:
            raise InvalidInputError("user_id", None, "is required: a personal token speaks for a user")
        _in_the_future(expires_at)
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

        Example:
            >>> old = await tokens.issue(name="CI", kind=TokenKind.SERVICE, permissions=7)
            >>> new = await tokens.rotate(old.token.id)
            >>> new.token.name, new.token.permissions, old.token.revoke_reason
            ('CI', 7, 'rotated')

        Raises:
            NotFoundError: no such token.
            InvalidInputError: it is revoked or has expired (issue a new one), or expires_at lies in the past.
        """
        _in_the_future(expires_at)
        old = await self._revoke(ident, None, "rotated", _STATES[TokenState.LIVE])
        if old is None:
            await self.get(ident)
            raise InvalidInputError("token", ident, "must be live, neither revoked nor expired: issue a new one")
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

        Example:
            >>> issued = await tokens.issue(name="Laptop", user_id=user.id)
            >>> token = await tokens.revoke(issued.token.id, by=user.id, reason="lost in a train")
            >>> token.revoke_reason
            'lost in a train'

        Raises:
            NotFoundError: no such token.
        """
        return await self._revoke(ident, by, reason, Token.revoked_at.is_(None)) or await self.get(ident)

    async def list(
        self,
        *where: ColumnElement[bool],
        state: TokenState | None = None,
        user_id: UUID | None = None,
        agent_id: UUID | None = None,
        limit: int = 100,
        cursor: str | None = None,
        order_by: InstrumentedAttribute[Any] | None = None,
        descending: bool = False,
        include_deleted: bool = False,
        options: Sequence[ORMOption] = (),
    ) -> Page[Token]:
        """Return one page of the tokens that match, newest first; see BaseRepository.list.

        Args:
            where: conditions, for example ``Token.kind == TokenKind.SERVICE``.
            state: live, expired or revoked, by the database's clock; None is all of them.
            user_id: only this user's.
            agent_id: only this agent's.
            limit: tokens on a page, 1 to 1000.
            cursor: the last page's next_cursor; None for the first page.
            order_by: a column that is never NULL, instead of newest first.
            descending: the largest first, where order_by is given.
            include_deleted: of no effect here: a token is revoked or erased.
            options: loader options.

        Example:
            >>> kept = await tokens.issue(name="Laptop", user_id=user.id)
            >>> lost = await tokens.issue(name="Phone", user_id=user.id)
            >>> _ = await tokens.revoke(lost.token.id)
            >>> page = await tokens.list(state=TokenState.LIVE, user_id=user.id)
            >>> [token.name for token in page.items]
            ['Laptop']

        Raises:
            InvalidInputError: an unknown state, limit out of range, or a cursor of another listing.
        """
        if state is not None:
            where = (*where, _STATES[TokenState(validation.enum_member("state", TokenState, state))])
        if user_id is not None:
            where = (*where, Token.user_id == validation.uuid("user_id", user_id))
        if agent_id is not None:
            where = (*where, Token.agent_id == validation.uuid("agent_id", agent_id))
        return await super().list(
            *where,
            limit=limit,
            cursor=cursor,
            order_by=order_by,
            descending=descending,
            include_deleted=include_deleted,
            options=options,
        )

    async def by_hash(self, token_hash: str) -> Token | None:
        """Return the token with this hash, revoked and expired ones too, or None.

        Example:
            >>> issued = await tokens.issue(name="CI", kind=TokenKind.SERVICE)
            >>> await tokens.by_hash(issued.token.token_hash) is issued.token
            True
        """
        wanted = validation.check(Token, "token_hash", token_hash)
        statement = self._select().where(Token.org_id == self._tenant, Token.token_hash == wanted)
        return (await self._execute(statement)).scalars().one_or_none()

    async def of_user(self, user_id: UUID) -> Sequence[Token]:
        """Return a user's tokens, newest first, revoked and expired ones too.

        Example:
            >>> _ = await tokens.issue(name="Laptop", user_id=user.id)
            >>> [token.name for token in await tokens.of_user(user.id)]
            ['Laptop']
        """
        statement = self._select().where(Token.user_id == validation.uuid("user_id", user_id))
        return (await self._execute(statement.order_by(Token.created_at.desc(), Token.id))).scalars().all()

    async def of_agent(self, agent_id: UUID) -> Sequence[Token]:
        """Return an agent's tokens, newest first, revoked and expired ones too.

        Example:
            >>> _ = await tokens.issue(name="Worker", kind=TokenKind.SERVICE, agent_id=agent.id)
            >>> [token.name for token in await tokens.of_agent(agent.id)]
            ['Worker']
        """
        statement = self._select().where(Token.agent_id == validation.uuid("agent_id", agent_id))
        return (await self._execute(statement.order_by(Token.created_at.desc(), Token.id))).scalars().all()

    def _checked(self, changes: dict[str, object]) -> dict[str, object]:
        for name in _VERBS.keys() & changes.keys():
            raise InvalidInputError(name, changes[name], f"cannot be changed by update(): {_VERBS[name]}")
        return super()._checked(changes)

    async def _revoke(
        self, ident: UUID, by: UUID | None, reason: str | None, still: ColumnElement[bool]
    ) -> Token | None:
        """Revoke a token of which ``still`` holds, or return None; the row lock decides between two who try."""
        statement = update(Token).where(*self._scope(), Token.id == validation.uuid("id", ident), still)
        values = {
            "revoked_at": func.now(),
            "revoked_by": validation.check(Token, "revoked_by", by),
            "revoke_reason": validation.check(Token, "revoke_reason", reason),
        }
        try:
            return await self._change(statement.values(values), ident)
        except NotFoundError:
            return None


_ISSUE = "issue() another token"
_REVOKE = "use revoke(), which is final"
_COUNTED = "db.authenticate() counts uses"
_VERBS = {
    "token_hash": "use rotate()",
    "prefix": "use rotate()",
    "kind": _ISSUE,
    "user_id": _ISSUE,
    "agent_id": _ISSUE,
    "revoked_at": _REVOKE,
    "revoked_by": _REVOKE,
    "revoke_reason": _REVOKE,
    "use_count": _COUNTED,
    "last_used_at": _COUNTED,
}


_REVOKED = Token.revoked_at.is_not(None)
_EXPIRED = Token.expires_at <= func.now()
_STATES = {
    TokenState.LIVE: and_(~_REVOKED, or_(Token.expires_at.is_(None), Token.expires_at > func.now())),
    TokenState.EXPIRED: and_(~_REVOKED, _EXPIRED),
    TokenState.REVOKED: _REVOKED,
}


def _in_the_future(expires_at: datetime | None) -> None:
    if expires_at is not None and validation.moment("expires_at", expires_at) <= datetime.now(UTC):
        raise InvalidInputError("expires_at", expires_at, "must lie in the future")
