"""Erasing with a receipt: what every repository of erasable subjects has in common."""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast
from uuid import UUID

from sqlalchemy import Result, Text, Uuid, insert, literal, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from ibex_db_core import validation
from ibex_db_core.base import Base
from ibex_db_core.errors import NotFoundError
from ibex_db_core.repository import BaseRepository
from ibex_db_tenancy.erasure import BATCH, Doomed, Erased, doomed_with, fingerprint_sql, forget_loaded, lock_number
from ibex_db_tenancy.models.erasure import KEY_BYTES, ErasureKey, ErasureReceipt, ErasureTombstone

T = TypeVar("T", bound=Base)

_LOCK = text("SELECT pg_advisory_xact_lock(:number)")


Execute = Callable[..., Awaitable[Result[*tuple[Any, ...]]]]


async def count(execute: Execute, doomed: Sequence[Doomed]) -> tuple[dict[str, int], dict[str, list[UUID]]]:
    """Lock what goes, parents first; return table to the number of its rows, and to the last id of each batch.

    Where the first table has none, nothing else is looked at.
    """
    counts: dict[str, int] = {}
    ends: dict[str, list[UUID]] = {}
    for one in doomed:
        number, last = (await execute(one.counted)).one()
        counts[one.table.name], ends[one.table.name] = int(number), sorted(last or ())
        if not counts[doomed[0].table.name]:
            break
    return counts, ends


async def end(execute: Execute, doomed: Sequence[Doomed], ends: Mapping[str, Sequence[UUID]]) -> None:
    """Delete what goes, children first, in batches."""
    for one in reversed(doomed):
        if not (one.append_only or one.by_cascade):
            for statement in one.deletions(ends[one.table.name]):
                await execute(statement)


class Erasing(BaseRepository[T]):
    """erase() that counts what goes, keeps a receipt, and leaves tombstones where a table wants them."""

    async def erase(self, ident: UUID, *, reason: str | None = None, actor: UUID | None = None) -> Erased:
        """Delete a row for good, soft-deleted or not, with all that belongs to it; return the receipt that is kept.

        Args:
            ident: what to erase.
            reason: for the receipt; it must not quote what is erased.
            actor: who erases it, for the receipt.

        Raises:
            NotFoundError: no such row in this organization.

        Example:
            >>> gone = await agents.erase(agent.id, reason="asked for it")
            >>> gone["agents"]
            1
        """
        return await self._erase(ident, reason=reason, actor=actor, wholly=False)

    async def _erase(self, ident: UUID, *, reason: str | None, actor: UUID | None, wholly: bool) -> Erased:
        ident = validation.uuid("id", ident)
        told = {
            "reason": validation.check(ErasureReceipt, "reason", reason),
            "erased_by": validation.check(ErasureReceipt, "erased_by", actor),
        }
        await self._flush()
        # A savepoint: whoever catches an error and goes on finds nothing half erased.
        async with self._savepoint():
            org_id = self._org_id or await self._organization_of(ident)
            # Before anything is looked at: an import that goes on beside may just be bringing the row in.
            await self._execute(_LOCK, {"number": lock_number(org_id)})
            doomed = doomed_with(self._table, org_id, ident, wholly=wholly)
            counts, ends = await count(self._execute, doomed)
            if not counts[self._table.name]:
                raise NotFoundError(self.model.__name__, ident)
            erased = await self._receipt(doomed, org_id, ident, counts, told)
            await end(self._execute, doomed, ends)
        self._forget(doomed, ident)
        return erased

    async def _organization_of(self, ident: UUID) -> UUID:
        """Return the row's organization, on a platform session that serves all."""
        org = self._table.c["org_id"]
        found = await self._execute(select(org).where(*self._scope(include_deleted=True), self._table.c["id"] == ident))
        org_id = cast("UUID | None", found.scalar_one_or_none())
        if org_id is None:
            raise NotFoundError(self.model.__name__, ident)
        return org_id

    async def _receipt(
        self, doomed: list[Doomed], org_id: UUID, ident: UUID, counts: dict[str, int], told: dict[str, object]
    ) -> Erased:
        """Write down what goes, while it is still there: the receipt, and the tombstones of its rows."""
        kind, key = self.model.__name__.lower(), await self._key(org_id)
        known = await self._execute(select(fingerprint_sql(self._table, kind, key)).where(doomed[0].where))
        fingerprint = cast("str", known.scalar_one())
        receipt = insert(ErasureReceipt).returning(ErasureReceipt.id, ErasureReceipt.erased_at)
        values = {"subject_kind": kind, "subject_id": ident, "counts": counts, "fingerprint": fingerprint}
        made = await self._execute(receipt.values(org_id=org_id, **values, **told))
        receipt_id, erased_at = made.one()
        for one in doomed:
            subject = cast("str | None", one.table.info.get("tombstones"))
            if subject is not None:
                row = select(
                    one.table.c["org_id"],
                    literal(receipt_id, Uuid()),
                    literal(subject, Text()),
                    one.table.c["id"],
                    fingerprint_sql(one.table, subject, key),
                ).where(one.where)
                into = ["org_id", "receipt_id", "subject_kind", "subject_id", "fingerprint"]
                if await self._is_sharded():  # which refuses INSERT ... SELECT where policies apply
                    gone = [dict(zip(into, found, strict=True)) for found in (await self._execute(row)).all()]
                    for start in range(0, len(gone), BATCH):
                        await self._execute(insert(ErasureTombstone).values(gone[start : start + BATCH]))
                    continue
                # Without the defaults: Python's would be one id for all rows, the database's is one for each.
                await self._execute(insert(ErasureTombstone).from_select(into, row, include_defaults=False))
        actor, reason = cast("UUID | None", told["erased_by"]), cast("str | None", told["reason"])
        return Erased(receipt_id, org_id, kind, ident, counts, fingerprint, erased_at, actor, reason)

    async def _key(self, org_id: UUID) -> bytes:
        """Return the key of an organization's fingerprints; the first erasure makes it."""
        table = ErasureKey.__table__
        made = upsert(ErasureKey).values(org_id=org_id, key=secrets.token_bytes(KEY_BYTES))
        await self._execute(made.on_conflict_do_nothing(constraint="erasure_keys_org_id_key"))
        found = await self._execute(select(table.c["key"]).where(table.c["org_id"] == org_id))
        return cast("bytes", found.scalar_one())

    def _forget(self, doomed: list[Doomed], ident: UUID) -> None:
        """Let go of loaded objects whose rows are gone, or the session would hand them out again."""
        tables = {one.table.name for one in doomed}
        gone = {(self._table.name, ident)}
        for row in forget_loaded(self._session.identity_map, gone, tables):
            self._session.expunge(row)
