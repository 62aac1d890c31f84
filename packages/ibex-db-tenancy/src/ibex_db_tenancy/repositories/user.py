"""Users of an organization."""

from typing import ClassVar
from uuid import UUID

from sqlalchemy import func, update

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_core.steps import SteppedRepository
from ibex_db_core.types import JsonObject
from ibex_db_tenancy.erasure import Erased
from ibex_db_tenancy.models import User, UserRole, UserStatus
from ibex_db_tenancy.repositories.erasing import Erasing


class UserRepository(SteppedRepository[User], Erasing[User]):
    """Users of one organization: ``users = UserRepository(session)``.

    Only an active user's tokens are accepted by ``db.authenticate()``.
    """

    model = User
    steps: ClassVar = {
        UserStatus.INVITED: {UserStatus.ACTIVE, UserStatus.DEACTIVATED},
        UserStatus.ACTIVE: {UserStatus.SUSPENDED, UserStatus.DEACTIVATED},
        UserStatus.SUSPENDED: {UserStatus.ACTIVE, UserStatus.DEACTIVATED},
        UserStatus.DEACTIVATED: {UserStatus.ACTIVE},
    }

    async def by_email(self, email: str) -> User | None:
        """Return the live user with this address, upper and lower case alike, or None.

        Example:
            >>> ann = await users.invite(email="Ann@acme.example", name="Ann")
            >>> await users.by_email("ann@ACME.example") is ann
            True
        """
        wanted = validation.check(User, "email", email)
        statement = self._select().where(User.org_id == self._tenant, User.email_lower == func.lower(wanted))
        return (await self._execute(statement)).scalars().one_or_none()

    async def invite(
        self, *, email: str, name: str, role: UserRole = UserRole.MEMBER, preferences: JsonObject | None = None
    ) -> User:
        """Add a user who has not come in yet.

        Example:
            >>> ann = await users.invite(email="ann@acme.example", name="Ann", role=UserRole.ADMIN)
            >>> ann.status.value
            'invited'

        Raises:
            InvalidInputError: what is no address, or a blank name.
            ConflictError: a live user of this organization has the address.
        """
        return await self.add(
            User(email=email, name=name, role=role, status=UserStatus.INVITED, preferences=preferences or {})
        )

    async def activate(self, ident: UUID) -> User:
        """Let a user in: one who accepts an invitation, and one who was suspended or deactivated.

        Example:
            >>> ann = await users.invite(email="ann@acme.example", name="Ann")
            >>> (await users.activate(ann.id)).status.value
            'active'

        Raises:
            IllegalTransitionError: the user is active already.
            NotFoundError: no such user in this organization.
        """
        return await self._step(ident, UserStatus.ACTIVE)

    async def suspend(self, ident: UUID) -> User:
        """Keep an active user out for a while; tokens in that user's name stop opening anything, and come back.

        Example:
            >>> (await users.suspend(user.id)).status.value
            'suspended'

        Raises:
            IllegalTransitionError: the user is not active.
            NotFoundError: no such user in this organization.
        """
        return await self._step(ident, UserStatus.SUSPENDED)

    async def deactivate(self, ident: UUID) -> User:
        """Keep a user out who has left, or whose invitation is withdrawn; the address stays taken.

        Example:
            >>> (await users.deactivate(user.id)).status.value
            'deactivated'
            >>> await users.suspend(user.id)
            Traceback (most recent call last):
            ibex_db_core.errors.IllegalTransitionError: user ... is deactivated and cannot become suspended: ...

        Raises:
            IllegalTransitionError: the user is deactivated already.
            NotFoundError: no such user in this organization.
        """
        return await self._step(ident, UserStatus.DEACTIVATED)

    async def record_login(self, ident: UUID) -> User:
        """Set last_login_at of an active user to now, by the database's clock.

        Example:
            >>> (await users.record_login(user.id)).last_login_at is not None
            True

        Raises:
            InvalidInputError: the user is not active, so must not be let in.
            NotFoundError: no such user in this organization.
        """
        ident = validation.uuid("id", ident)
        active = (*self._scope(), User.id == ident, User.status == UserStatus.ACTIVE)
        try:
            return await self._change(update(User).where(*active).values(last_login_at=func.now()), ident)
        except NotFoundError:
            await self.get(ident)
            raise InvalidInputError("user", ident, "must be active to log in") from None

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
