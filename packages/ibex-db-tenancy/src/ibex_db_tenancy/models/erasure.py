"""What is kept of erased subjects: receipts, tombstones, the key of their hashes; never their content."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, LargeBinary, String, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from ibex_db_core.base import Base, Identified, OrgScoped, json_is_object, parent_key
from ibex_db_core.types import Json, JsonObject
from ibex_db_tenancy.models._rules import DESCRIPTION, SHA256_HEX, TextRule

KEY_BYTES = 32
"""Length of the key that an organization's fingerprints are made with."""

_KIND = TextRule(1, 32, ("^[a-z_]+$", "the lower-case name of a model"))


class ErasureReceipt(OrgScoped, Base):
    """That something was erased: what kind, which id, how many rows, when, by whom; nothing of what it said.

    Append-only.  It goes with its organization, whose own erasure leaves an OrganizationErasure.

    Attributes:
        subject_kind: memory, agent or user.
        counts: table to the number of its rows that are gone.
        fingerprint: HMAC-SHA-256 of what the subject is recognised by; see ibex_db_tenancy.erasure.
        erased_by: a user, an agent or a token; no foreign key, for the receipt outlives them all.
        reason: as whoever erased it gave it; it must not quote what was erased.
    """

    __tablename__ = "erasure_receipts"
    __append_only__ = True
    __table_args__ = (
        # ErasureRepository.of: was this ever here, and when did it go?
        Index("erasure_receipts_subject_idx", "org_id", "subject_id"),
        json_is_object("counts"),
        *_KIND.checks("subject_kind"),
        *SHA256_HEX.checks("fingerprint"),
        *DESCRIPTION.checks("reason"),
    )

    subject_kind: Mapped[str] = mapped_column(String(32), info=_KIND.info)
    subject_id: Mapped[UUID]
    counts: Mapped[JsonObject] = mapped_column(Json)
    fingerprint: Mapped[str] = mapped_column(String(64), info=SHA256_HEX.info)
    erased_at: Mapped[datetime] = mapped_column(server_default=func.now())
    erased_by: Mapped[UUID | None]
    reason: Mapped[str | None] = mapped_column(info=DESCRIPTION.info)


class ErasureTombstone(OrgScoped, Base):
    """One erased row that must not come back by an old export; append-only.

    Attributes:
        subject_id: the row's id; an import of the same id is refused.
        fingerprint: of what the row said, so that the same content under another id is refused, too.
    """

    __tablename__ = "erasure_tombstones"
    __append_only__ = True
    __table_args__ = (
        parent_key("erasure_receipts", "receipt_id"),
        # What a receipt covers.
        Index("erasure_tombstones_receipt_idx", "org_id", "receipt_id"),
        # MemoryRepository.import_ looks for each line by its id and by its fingerprint.
        Index("erasure_tombstones_subject_idx", "org_id", "subject_id"),
        Index("erasure_tombstones_fingerprint_idx", "org_id", "fingerprint"),
        *_KIND.checks("subject_kind"),
        *SHA256_HEX.checks("fingerprint"),
    )

    receipt_id: Mapped[UUID]
    subject_kind: Mapped[str] = mapped_column(String(32), info=_KIND.info)
    subject_id: Mapped[UUID]
    fingerprint: Mapped[str] = mapped_column(String(64), info=SHA256_HEX.info)


class ErasureKey(OrgScoped, Base):
    """The random key of one organization's fingerprints, made at its first erasure; never exported, never changed.

    It goes with the organization, and from then on nobody can test a guess against a fingerprint.
    """

    __tablename__ = "erasure_keys"
    __append_only__ = True
    __table_args__ = (
        # One for each organization: of two first erasures at once, both use the one that was first.
        UniqueConstraint("org_id", name="erasure_keys_org_id_key"),
        CheckConstraint(f"octet_length(key) = {KEY_BYTES}", name="key_length"),
    )

    key: Mapped[bytes] = mapped_column(LargeBinary, deferred=True, deferred_raiseload=True)


class OrganizationErasure(Identified, Base):
    """The receipt of an erased organization, which outlives it: for the platform only, no tenant sees it; append-only.

    Attributes:
        organization_id: no foreign key: there is nothing left to point at.
        counts: table to the number of its rows that are gone.
        fingerprint: HMAC-SHA-256 of the slug, under salt.
        salt: this row's own; a slug is no secret before the platform, so the two stand side by side.
    """

    __tablename__ = "organization_erasures"
    __append_only__ = True
    __table_args__ = (
        # OrganizationRepository.erasures: was there ever such an organization?
        Index("organization_erasures_organization_idx", "organization_id"),
        json_is_object("counts"),
        CheckConstraint(f"octet_length(salt) = {KEY_BYTES}", name="salt_length"),
        *SHA256_HEX.checks("fingerprint"),
        *DESCRIPTION.checks("reason"),
        {"info": {"platform_only": True}},
    )

    organization_id: Mapped[UUID]
    counts: Mapped[JsonObject] = mapped_column(Json)
    fingerprint: Mapped[str] = mapped_column(String(64), info=SHA256_HEX.info)
    salt: Mapped[bytes] = mapped_column(LargeBinary)
    erased_at: Mapped[datetime] = mapped_column(server_default=func.now())
    erased_by: Mapped[UUID | None]
    reason: Mapped[str | None] = mapped_column(info=DESCRIPTION.info)
