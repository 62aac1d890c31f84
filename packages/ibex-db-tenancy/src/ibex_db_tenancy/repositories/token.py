"""Tokens of an organization."""

from collections.abc import Sequence
from uuid import UUID

from ibex_db_core import validation
from ibex_db_core.repository import BaseRepository

from ibex_db_tenancy.models import Token


class TokenRepository(BaseRepository[Token]):
    """Tokens of one organization."""

    model = Token

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
