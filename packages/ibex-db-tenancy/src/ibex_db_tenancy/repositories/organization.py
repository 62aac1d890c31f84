"""Organizations."""

from ibex_db_core import validation
from ibex_db_core.repository import BaseRepository
from ibex_db_tenancy.models import Organization


class OrganizationRepository(BaseRepository[Organization]):
    """Organizations: all of them on a platform session, its own in a tenant's."""

    model = Organization

    async def by_slug(self, slug: str) -> Organization | None:
        """Return the live organization with this slug, or None."""
        wanted = validation.check(Organization, "slug", slug)
        return (await self._execute(self._select().where(Organization.slug == wanted))).scalars().one_or_none()
