"""Users of an organization."""

from sqlalchemy import func

from ibex_db_core import validation
from ibex_db_core.repository import BaseRepository
from ibex_db_tenancy.models import User


class UserRepository(BaseRepository[User]):
    """Users of one organization."""

    model = User

    async def by_email(self, email: str) -> User | None:
        """Return the live user with this address, upper and lower case alike, or None."""
        wanted = validation.check(User, "email", email)
        statement = self._select().where(User.org_id == self._tenant, User.email_lower == func.lower(wanted))
        return (await self._execute(statement)).scalars().one_or_none()
