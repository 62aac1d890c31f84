"""Organizations."""

import secrets
from collections.abc import Sequence
from typing import ClassVar, cast
from uuid import UUID

from sqlalchemy import insert, select

from ibex_db_core import validation
from ibex_db_core.base import Base
from ibex_db_core.errors import NotFoundError, TenantError
from ibex_db_core.steps import SteppedRepository
from ibex_db_core.types import JsonObject
from ibex_db_tenancy.erasure import Erased, doomed_with_organization, fingerprint_sql
from ibex_db_tenancy.models import Organization, OrganizationErasure, OrganizationStatus, OrganizationTier
from ibex_db_tenancy.models.erasure import KEY_BYTES
from ibex_db_tenancy.repositories.erasing import count, end


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

    async def update(self, ident: UUID, **changes: object) -> Organization:
        """Change fields of an organization, its status along a legal step only, and return it.

        A tenant cannot change its slug: whether one is taken would tell it which other organizations there are.

        Example:
            >>> (await OrganizationRepository(session).update(org.id, name="Acme Ltd")).name
            'Acme Ltd'

        Raises:
            InvalidInputError: no such field, or a value that breaks its rule.
            TenantError: a slug, in a tenant's session; before any SQL.
            ConflictError: the slug is taken, by a deleted organization perhaps.
            IllegalTransitionError: the row's status does not lead to the new one.
            NotFoundError: no such organization.
        """
        if self._org_id is not None and "slug" in changes:
            raise TenantError("changing a slug is the platform's work: use db.platform(reason=...)")
        return await super().update(ident, **changes)

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

    async def erase(self, ident: UUID, *, reason: str | None = None, actor: UUID | None = None) -> Erased:
        """Erase an organization and every row of it in every table; return the receipt that is kept.

        The receipt outlives the organization in organization_erasures, which the
        platform alone can read.  Rows that others write meanwhile wait, and then
        fail: nothing is left behind uncounted.

        Args:
            ident: the organization.
            reason: for the receipt.
            actor: who erases it, for the receipt.

        Example:
            >>> async with db.platform(reason="erasure, ticket 4711") as platform:
            ...     gone = await OrganizationRepository(platform).erase(org.id)
            >>> gone["organizations"], gone["agents"], gone["tokens"]
            (1, 1, 0)

        Raises:
            TenantError: a tenant's session: no organization erases itself.
            NotFoundError: no such organization.
        """
        ident = validation.uuid("id", ident)
        if self._org_id is not None:
            raise TenantError("erasing an organization is the platform's work: use db.platform(reason=...)")
        values = {
            "reason": validation.check(OrganizationErasure, "reason", reason),
            "erased_by": validation.check(OrganizationErasure, "erased_by", actor),
        }
        await self._flush()
        async with self._savepoint():
            # The organization itself first: a new row of it checks its foreign key, and so waits for us.
            doomed = doomed_with_organization(Base.metadata, ident)
            counts, ends = await count(self._execute, doomed)
            if not counts["organizations"]:
                raise NotFoundError(Organization.__name__, ident)
            salt = secrets.token_bytes(KEY_BYTES)
            itself = self._table.c["id"] == ident
            known = await self._execute(select(fingerprint_sql(self._table, "organization", salt)).where(itself))
            values |= {"fingerprint": known.scalar_one(), "salt": salt, "counts": counts, "organization_id": ident}
            receipt = insert(OrganizationErasure).values(values)
            made = await self._execute(receipt.returning(OrganizationErasure.id, OrganizationErasure.erased_at))
            receipt_id, erased_at = made.one()
            await end(self._execute, doomed, ends)
        for row in list(self._session.identity_map.values()):
            if row.__dict__.get("org_id", row.__dict__.get("id")) == ident:
                self._session.expunge(row)
        fingerprint = cast("str", values["fingerprint"])
        return Erased(receipt_id, ident, "organization", ident, counts, fingerprint, erased_at, actor, reason)

    async def erasures(self, ident: UUID | None = None) -> Sequence[OrganizationErasure]:
        """Return the receipts of erased organizations, newest first; of one id, or of all; a platform session's work.

        Example:
            >>> async with db.platform(reason="audit") as platform:
            ...     gone = await OrganizationRepository(platform).erase(org.id, reason="contract ended")
            ...     [kept] = await OrganizationRepository(platform).erasures(org.id)
            >>> kept.id == gone.receipt_id, kept.reason
            (True, 'contract ended')
        """
        statement = select(OrganizationErasure).order_by(OrganizationErasure.erased_at.desc(), OrganizationErasure.id)
        if ident is not None:
            statement = statement.where(OrganizationErasure.organization_id == validation.uuid("id", ident))
        return (await self._execute(statement)).scalars().all()
