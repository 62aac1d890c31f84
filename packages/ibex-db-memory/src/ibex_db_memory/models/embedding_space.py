"""EmbeddingSpace: one embedding model of one organization, and what stands of a move to it or from it."""

from sqlalchemy import CheckConstraint, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from ibex_db_core.base import Base, OrgScoped, Timestamped
from ibex_db_core.types import enum_type
from ibex_db_memory.models._guards import SPACES
from ibex_db_memory.models.enums import SpaceStatus

MAX_DIMENSIONS = 16_000
"""The most numbers that pgvector keeps in a vector."""


class EmbeddingSpace(OrgScoped, Timestamped, Base):
    """Where an organization's vectors of one model lie, and whether searches read them.

    An organization that never moved has no row: its vectors lie in
    Memory.embedding.  The first move makes two, one for these and one for the
    new model; ibex_db_memory.reembedding is the only writer.

    Attributes:
        embedding_model: which model makes the vectors; None: the callers never named it.
        dimensions: numbers in a vector.
        status: FILLING is not searched yet, ACTIVE is, RETIRED is kept for the way back, CLEARING is being cleared
            away, from which nothing leads back; one of each at most.
        in_memories: the vectors lie in Memory.embedding; otherwise in MemoryVector.
    """

    __tablename__ = "embedding_spaces"
    __guards__ = SPACES

    embedding_model: Mapped[str | None] = mapped_column(info={"length": (1, 255)})
    dimensions: Mapped[int] = mapped_column(info={"range": (1, MAX_DIMENSIONS)})
    status: Mapped[SpaceStatus] = mapped_column(enum_type(SpaceStatus))
    in_memories: Mapped[bool]

    __table_args__ = (
        # Every statement that touches vectors asks which space is active; two never are.
        UniqueConstraint("org_id", "status", name="embedding_spaces_status_key"),
        # What a vector points at: it has its space's dimensions, or is refused.
        UniqueConstraint("org_id", "id", "dimensions", name="embedding_spaces_dimensions_key"),
        CheckConstraint("char_length(embedding_model) BETWEEN 1 AND 255", name="embedding_model_length"),
        CheckConstraint(f"dimensions BETWEEN 1 AND {MAX_DIMENSIONS}", name="dimensions_range"),
    )
