"""Receipts of what was erased in an organization."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select

from ibex_db_core import validation
from ibex_db_core.repository import BaseRepository
from ibex_db_tenancy.erasure import fingerprint
from ibex_db_tenancy.models import ErasureReceipt
from ibex_db_tenancy.models.erasure import ErasureKey


class ErasureRepository(BaseRepository[ErasureReceipt]):
    """The receipts of one organization, which are never changed: ``erasures = ErasureRepository(session)``."""

    model = ErasureReceipt

    async def of(self, subject_id: UUID) -> Sequence[ErasureReceipt]:
        """Return the receipts of one subject, newest first: more than one where it came back and was erased again.

        Example:
            >>> gone = await AgentRepository(session).erase(agent.id)
            >>> [receipt.id == gone.receipt_id for receipt in await ErasureRepository(session).of(agent.id)]
            [True]
        """
        subject = ErasureReceipt.subject_id == validation.uuid("subject_id", subject_id)
        newest = (ErasureReceipt.erased_at.desc(), ErasureReceipt.id)
        return (await self._execute(self._select().where(subject).order_by(*newest))).scalars().all()

    async def is_of(self, receipt_id: UUID, *values: object) -> bool:
        """Tell whether a receipt is of the subject with these values: what a person who asks brings along.

        Args:
            receipt_id: the receipt.
            values: of a user the e-mail address in lower case, of an agent the slug, of a memory the agent's id
                and ``content_hash(content)``.

        Example:
            >>> gone = await AgentRepository(session).erase(agent.id)
            >>> await ErasureRepository(session).is_of(gone.receipt_id, agent.slug)
            True

        Raises:
            NotFoundError: no such receipt in this organization.
        """
        receipt = await self.get(receipt_id)
        key = ErasureKey.__table__.c["key"]
        found = await self._execute(select(key).where(ErasureKey.org_id == receipt.org_id))
        return fingerprint(found.scalar_one(), receipt.subject_kind, *values) == receipt.fingerprint
