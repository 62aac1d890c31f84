"""MemoryVersion: what a memory said after a change."""

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import CheckConstraint, Numeric, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ibex_db_core.base import Base, Created, OrgScoped, parent_key
from ibex_db_core.types import JsonObject, Vector, enum_type
from ibex_db_memory.models.enums import MemoryCategory, MemoryStatus, VersionOperation

if TYPE_CHECKING:
    from ibex_db_memory.models.memory import Memory


class MemoryVersion(OrgScoped, Created, Base):
    """The state of a memory after one change; append-only, written by triggers of the database.

    Reason, actor and a closer name for the operation reach the triggers through
    the transaction-local settings app.change_reason, app.changed_by and
    app.change_operation.

    Attributes:
        version_num: from 1, without gaps.
        valid_from, valid_until: when the statement was held to be true in the world; None in versions of before
            these were kept.
        replaced_embedding: the vector of the content that this change replaced; None where the content stayed.
            Read only when asked for, with ``undefer(MemoryVersion.replaced_embedding)``.
        replaced_embedding_model: which model made that vector.
        changed_by: a user, an agent or a token; no foreign key, for the log outlives them all.
    """

    __tablename__ = "memory_versions"
    __append_only__ = True

    memory_id: Mapped[UUID]
    version_num: Mapped[int] = mapped_column(info={"range": (1, 2**31 - 1)})
    operation: Mapped[VersionOperation] = mapped_column(enum_type(VersionOperation))
    content: Mapped[str]
    category: Mapped[MemoryCategory] = mapped_column(enum_type(MemoryCategory))
    status: Mapped[MemoryStatus] = mapped_column(enum_type(MemoryStatus))
    confidence: Mapped[Decimal] = mapped_column(Numeric(4, 3), info={"range": (0, 1)})
    metadata_: Mapped[JsonObject] = mapped_column("metadata")
    valid_from: Mapped[datetime | None]
    valid_until: Mapped[datetime | None]
    # Of any dimension: a change of models does not reach what was replaced before it.
    replaced_embedding: Mapped[list[float] | None] = mapped_column(Vector(), deferred=True, deferred_raiseload=True)
    replaced_embedding_model: Mapped[str | None] = mapped_column(info={"length": (1, 255)})
    change_reason: Mapped[str | None]
    changed_by: Mapped[UUID | None]

    memory: Mapped["Memory"] = relationship(lazy="raise", viewonly=True)

    __table_args__ = (
        parent_key("memories", "memory_id"),
        # MemoryRepository.history and as_of; the trigger's probe for the next number.
        UniqueConstraint("org_id", "memory_id", "version_num", name="memory_versions_number_key"),
        CheckConstraint("version_num >= 1", name="version_num_range"),
    )
