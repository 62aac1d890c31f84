"""Users of an organization."""

from uuid import UUID

from sqlalchemy import func

from ibex_db_core import validation
from ibex_db_tenancy.erasure import Erased
from ibex_db_tenancy.models import User
from ibex_db_tenancy.repositories.erasing import Erasing


class UserRepository(Erasing[User]):
    """Users of one organization."""

    model = User

    async def by_email(self, email: str) -> User | None:
        """Return the live user with this address, upper and lower case alike, or None."""
        wanted = validation.check(User, "email", email)
        statement = self._select().where(User.org_id == self._tenant, User.email_lower == func.lower(wanted))
        return (await self._execute(statement)).scalars().one_or_none()

    async def erase(
        self, ident: UUID, *, reason: str | None = None, actor: UUID | None = None, wholly: bool = True
    ) -> Erased:
        """Erase a user with their tokens, their sessions and the memories learned in those; return the receipt kept.

        What they made (agents, directives) stays, without their name.  Erased
        memories leave tombstones: import_() refuses them.

        Args:
            ident: the user.
            reason: for the receipt; not the user's name.
            actor: who erases them, for the receipt.
            wholly: False keeps sessions and memories, and takes the user off them.

        Example:
            >>> gone = await users.erase(user.id, reason="asked for it")
            >>> gone["users"], gone.rows >= 1
            (1, True)

        Raises:
            NotFoundError: no such user in this organization.
        """
        return await self._erase(ident, reason=reason, actor=actor, wholly=wholly)
