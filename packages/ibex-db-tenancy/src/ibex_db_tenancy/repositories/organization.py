"""Organizations."""

import secrets
from collections.abc import Sequence
from typing import cast
from uuid import UUID

from sqlalchemy import delete, insert, select

from ibex_db_core import validation
from ibex_db_core.base import Base
from ibex_db_core.errors import NotFoundError, TenantError
from ibex_db_core.repository import BaseRepository
from ibex_db_tenancy.erasure import Erased, doomed_with_organization, fingerprint_sql
from ibex_db_tenancy.models import Organization, OrganizationErasure
from ibex_db_tenancy.models.erasure import KEY_BYTES


class OrganizationRepository(BaseRepository[Organization]):
    """Organizations: all of them on a platform session, its own in a tenant's."""

    model = Organization

    async def by_slug(self, slug: str) -> Organization | None:
        """Return the live organization with this slug, or None."""
        wanted = validation.check(Organization, "slug", slug)
        return (await self._execute(self._select().where(Organization.slug == wanted))).scalars().one_or_none()

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
        async with self._session.begin_nested():
            counts: dict[str, int] = {}
            # The organization itself first: a new row of it checks its foreign key, and so waits for us.
            for doomed in doomed_with_organization(Base.metadata, ident):
                counts[doomed.table.name] = int((await self._execute(doomed.counted)).scalar_one())
                if not counts["organizations"]:
                    raise NotFoundError(Organization.__name__, ident)
            salt = secrets.token_bytes(KEY_BYTES)
            itself = self._table.c["id"] == ident
            known = await self._execute(select(fingerprint_sql(self._table, "organization", salt)).where(itself))
            values |= {"fingerprint": known.scalar_one(), "salt": salt, "counts": counts, "organization_id": ident}
            receipt = insert(OrganizationErasure).values(values)
            made = await self._execute(receipt.returning(OrganizationErasure.id, OrganizationErasure.erased_at))
            receipt_id, erased_at = made.one()
            await self._execute(delete(self._table).where(itself))
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
