"""Organizations."""

from collections.abc import Mapping
from typing import ClassVar
from uuid import UUID

from sqlalchemy import func, literal, select, union_all

from ibex_db_core import validation
from ibex_db_core.base import Base
from ibex_db_core.errors import NotFoundError
from ibex_db_core.policies import tenant_tables
from ibex_db_core.steps import SteppedRepository
from ibex_db_core.types import JsonObject
from ibex_db_tenancy.models import Organization, OrganizationStatus, OrganizationTier


class OrganizationRepository(SteppedRepository[Organization]):
    """Organizations: all of them on a platform session, its own in a tenant's.

    ``organizations = OrganizationRepository(session)``.  Only the tokens of
    active organizations, and of those on trial, are accepted by ``db.authenticate()``.
    """

    model = Organization
    steps: ClassVar = {
        OrganizationStatus.TRIAL: {
            OrganizationStatus.ACTIVE,
            OrganizationStatus.SUSPENDED,
            OrganizationStatus.CANCELLED,
        },
        OrganizationStatus.ACTIVE: {OrganizationStatus.SUSPENDED, OrganizationStatus.CANCELLED},
        OrganizationStatus.SUSPENDED: {OrganizationStatus.ACTIVE, OrganizationStatus.CANCELLED},
        OrganizationStatus.CANCELLED: {OrganizationStatus.ACTIVE},
    }

    async def by_slug(self, slug: str) -> Organization | None:
        """Return the live organization with this slug, or None.

        Example:
            >>> async with db.platform(reason="support") as platform:
            ...     found = await OrganizationRepository(platform).by_slug("acme")
            >>> found.id == org.id
            True
        """
        wanted = validation.check(Organization, "slug", slug)
        return (await self._execute(self._select().where(Organization.slug == wanted))).scalars().one_or_none()

    async def create(
        self,
        *,
        name: str,
        slug: str,
        tier: OrganizationTier = OrganizationTier.FREE,
        trial: bool = False,
        settings: JsonObject | None = None,
    ) -> Organization:
        """Make an organization; a platform session's work.

        Args:
            name: as people see it.
            slug: as URLs see it, lower-case letters, digits and hyphens; never handed on.
            tier: what it pays for.
            trial: it starts on trial, and is active once it is reinstated.
            settings: a JSON object.

        Example:
            >>> async with db.platform(reason="sign-up") as platform:
            ...     initech = await OrganizationRepository(platform).create(name="Initech", slug="initech")
            >>> initech.status.value, initech.tier.value
            ('active', 'free')

        Raises:
            InvalidInputError: a slug or name that breaks its rule.
            ConflictError: the slug is taken, by a deleted organization perhaps.
            AccessDeniedError: a tenant's session.
        """
        return await self.add(
            Organization(
                name=name,
                slug=slug,
                tier=tier,
                status=OrganizationStatus.TRIAL if trial else OrganizationStatus.ACTIVE,
                settings=settings or {},
            )
        )

    async def suspend(self, ident: UUID) -> Organization:
        """Have every token of an organization open nothing, until it is reinstated.

        Example:
            >>> async with db.platform(reason="unpaid") as platform:
            ...     suspended = await OrganizationRepository(platform).suspend(org.id)
            >>> suspended.status.value
            'suspended'

        Raises:
            IllegalTransitionError: it is suspended already, or cancelled.
            NotFoundError: no such organization.
        """
        return await self._step(ident, OrganizationStatus.SUSPENDED)

    async def cancel(self, ident: UUID) -> Organization:
        """End an organization's contract; its rows stay, until they are erased.

        Example:
            >>> async with db.platform(reason="contract ended") as platform:
            ...     cancelled = await OrganizationRepository(platform).cancel(org.id)
            >>> cancelled.status.value
            'cancelled'

        Raises:
            IllegalTransitionError: it is cancelled already.
            NotFoundError: no such organization.
        """
        return await self._step(ident, OrganizationStatus.CANCELLED)

    async def reinstate(self, ident: UUID) -> Organization:
        """Make an organization active: one that was suspended or cancelled, and one whose trial ends well.

        Example:
            >>> async with db.platform(reason="paid at last") as platform:
            ...     organizations = OrganizationRepository(platform)
            ...     _ = await organizations.suspend(org.id)
            ...     reinstated = await organizations.reinstate(org.id)
            >>> reinstated.status.value
            'active'

        Raises:
            IllegalTransitionError: it is active already.
            NotFoundError: no such organization.
        """
        return await self._step(ident, OrganizationStatus.ACTIVE)

    async def change_tier(self, ident: UUID, tier: OrganizationTier) -> Organization:
        """Change what an organization pays for.

        Example:
            >>> async with db.platform(reason="upgrade") as platform:
            ...     upgraded = await OrganizationRepository(platform).change_tier(org.id, OrganizationTier.PRO)
            >>> upgraded.tier.value
            'pro'

        Raises:
            InvalidInputError: no such tier.
            NotFoundError: no such organization.
        """
        return await self.update(ident, tier=tier)

    # BaseRepository.erase() returns nothing; who erases a tenant has to be able to say what is gone.
    async def erase(self, ident: UUID) -> Mapping[str, int]:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        """Delete an organization and everything that it owns, for good; return how many rows of each table are gone.

        Rows that others write meanwhile wait, and then fail: nothing is left behind uncounted.

        Example:
            >>> async with db.platform(reason="erasure, ticket 4711") as platform:
            ...     gone = await OrganizationRepository(platform).erase(org.id)
            >>> gone["organizations"], gone["agents"], gone["tokens"]
            (1, 1, 0)

        Raises:
            NotFoundError: no such organization.
        """
        ident = validation.uuid("id", ident)
        # FOR UPDATE: a new row of the organization's checks its foreign key first, and so waits for us.
        held = select(Organization.id).where(*self._scope(include_deleted=True), Organization.id == ident)
        if (await self._execute(held.with_for_update())).scalar_one_or_none() is None:
            raise NotFoundError(Organization.__name__, ident)
        counts = [
            select(literal(table.name), func.count()).where(table.columns[str(table.info["tenant_column"])] == ident)
            for table in tenant_tables(Base.metadata)
        ]
        found = {str(name): int(count) for name, count in await self._execute(union_all(*counts))}
        await super().erase(ident)
        return found
