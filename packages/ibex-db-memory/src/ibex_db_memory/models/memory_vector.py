"""MemoryVector: a memory's vector in a space that is not Memory.embedding."""

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from ibex_db_core.base import SCHEMA, Base, OrgScoped, parent_key
from ibex_db_core.types import Vector
from ibex_db_memory.models._guards import VECTORS

INDEXED_DIMENSIONS: Final = (384, 512, 768, 1024, 1536)
"""Dimensions that have a vector index after a move; scopes of others are always scanned in full."""


def _hnsw(dimensions: int) -> Index:
    return Index(
        f"memory_vectors_{dimensions}_hnsw",
        text(f"(embedding::vector({dimensions})) vector_cosine_ops"),
        postgresql_using="hnsw",
        postgresql_with={"m": 16, "ef_construction": 200},
        postgresql_where=text(f"dimensions = {dimensions}"),
    )


class MemoryVector(OrgScoped, Base):
    """What a model made of a memory's content, or a worker's claim to have it made.

    A table of its own, not a second column of memories: filling a column
    rewrites every row and enters it into every index anew, and rows of two
    vectors leave no page room for HOT updates (decision 0031).

    It speaks for the content whose hash it has, and for no other: a memory
    that was changed since has no vector here until it is embedded anew.

    Attributes:
        id: the memory's.
        space_id: the space's.
        content_hash: of the content that was embedded.
        dimensions: the space's, which the foreign key sees to.
        embedding: None while a worker has claimed it.
        claimed_until: when others may claim it; None once there is a vector.
    """

    __tablename__ = "memory_vectors"
    __guards__ = VECTORS

    space_id: Mapped[UUID] = mapped_column(primary_key=True, sort_order=-95)
    content_hash: Mapped[str] = mapped_column(String(64))
    dimensions: Mapped[int]
    embedding: Mapped[list[float] | None] = mapped_column(Vector(), deferred=True, deferred_raiseload=True)
    claimed_until: Mapped[datetime | None]

    __table_args__ = (
        parent_key("memories", "id"),
        ForeignKeyConstraint(
            ["org_id", "space_id", "dimensions"],
            [f"{SCHEMA}.embedding_spaces.{name}" for name in ("org_id", "id", "dimensions")],
            ondelete="CASCADE",
        ),
        CheckConstraint("vector_dims(embedding) = dimensions", name="embedding_dimensions"),
        CheckConstraint("(embedding IS NULL) = (claimed_until IS NOT NULL)", name="embedded_or_claimed"),
        # The cascade when a memory is erased, and the fillers' look at all of a memory's vectors.
        Index("memory_vectors_id_idx", "org_id", "id"),
        # MemoryRepository.search in large scopes of an organization that moved.
        *(_hnsw(dimensions) for dimensions in INDEXED_DIMENSIONS),
        {"postgresql_partition_by": "HASH (org_id)"},
    )
