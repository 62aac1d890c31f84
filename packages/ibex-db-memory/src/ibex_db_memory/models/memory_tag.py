"""MemoryTag: one label of one memory."""

from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, relationship, validates

from ibex_db_core.base import Base, Created, OrgScoped, parent_key
from ibex_db_memory.content import MAX_TAG_LENGTH, normalise_tag

if TYPE_CHECKING:
    from ibex_db_memory.models.memory import Memory


class MemoryTag(OrgScoped, Created, Base):
    """A label; a table of its own, since array containment is no index condition under row-level security.

    Attributes:
        tag: 1 to 64 characters, normalised when it is assigned (see ibex_db_memory.content).
    """

    __tablename__ = "memory_tags"

    memory_id: Mapped[UUID]
    tag: Mapped[str]

    memory: Mapped["Memory"] = relationship(back_populates="tags", lazy="raise")

    @validates("tag")
    def _normalise(self, _key: str, value: str) -> str:
        """Store the normal form; its length is what counts, so the column itself names none."""
        return normalise_tag(value)

    __table_args__ = (
        parent_key("memories", "memory_id"),
        # MemoryRepository.tag: tagging twice is tagging once; loads of Memory.tags.
        UniqueConstraint("org_id", "memory_id", "tag", name="memory_tags_tag_key"),
        CheckConstraint(f"char_length(tag) BETWEEN 1 AND {MAX_TAG_LENGTH}", name="tag_length"),
        # search(tags_any=...). The predicate hides it from what is asked for by memory, as in memories.
        Index("memory_tags_by_tag_idx", "org_id", "tag", postgresql_where=text("tag IS NOT NULL")),
    )
