"""MemoryRelationship: a directed, typed edge between two memories."""

from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, Numeric, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ibex_db_core.base import Base, Created, OrgScoped, parent_key
from ibex_db_core.types import enum_type
from ibex_db_memory.models.enums import RelationshipType

if TYPE_CHECKING:
    from ibex_db_memory.models.memory import Memory


class MemoryRelationship(OrgScoped, Created, Base):
    """An edge, read as "source TYPE target": source SUPERSEDES target."""

    __tablename__ = "memory_relationships"

    source_memory_id: Mapped[UUID]
    target_memory_id: Mapped[UUID]
    relationship_type: Mapped[RelationshipType] = mapped_column(enum_type(RelationshipType))
    confidence: Mapped[Decimal] = mapped_column(
        Numeric(4, 3), default=Decimal("1.000"), server_default=text("1.000"), info={"range": (0, 1)}
    )
    notes: Mapped[str | None]

    # The source owns org_id, the target marks its own column only.
    source: Mapped["Memory"] = relationship(
        foreign_keys="[MemoryRelationship.org_id, MemoryRelationship.source_memory_id]",
        lazy="raise",
    )
    target: Mapped["Memory"] = relationship(
        primaryjoin="and_(MemoryRelationship.org_id == Memory.org_id,"
        " foreign(MemoryRelationship.target_memory_id) == Memory.id)",
        lazy="raise",
    )

    __table_args__ = (
        parent_key("memories", "source_memory_id"),
        parent_key("memories", "target_memory_id"),
        # MemoryRepository.relate, and neighbors from the source.
        UniqueConstraint(
            "org_id", "source_memory_id", "target_memory_id", "relationship_type", name="memory_relationships_edge_key"
        ),
        CheckConstraint("source_memory_id <> target_memory_id", name="no_self_loop"),
        CheckConstraint("confidence >= 0 AND confidence <= 1", name="confidence_range"),
        # MemoryRepository.neighbors from the target, and the cascade when it is erased. Both imply the predicate,
        # which hides it from what is asked for by id or source, as in memories.
        Index(
            "memory_relationships_by_target_idx",
            "org_id",
            "target_memory_id",
            "relationship_type",
            postgresql_where=text("target_memory_id IS NOT NULL"),
        ),
    )
