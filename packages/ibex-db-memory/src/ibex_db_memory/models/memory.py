"""Memory: one statement that an agent keeps."""

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, cast
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Column,
    ColumnElement,
    Index,
    Numeric,
    String,
    and_,
    event,
    func,
    inspect,
    or_,
    text,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import Mapped, column_property, declared_attr, mapped_column, relationship, validates

from ibex_db_core import validation
from ibex_db_core.base import Base, OrgScoped, SoftDeleted, Timestamped, json_is_object, parent_key
from ibex_db_core.errors import InvalidInputError
from ibex_db_core.types import JsonObject, Vector, enum_type
from ibex_db_memory.content import MAX_CONTENT_LENGTH, MIN_CONTENT_LENGTH, content_hash
from ibex_db_memory.models._guards import MEMORIES
from ibex_db_memory.models.enums import MemoryCategory, MemorySource, MemoryStatus

if TYPE_CHECKING:
    from ibex_db_memory.models.memory_tag import MemoryTag
    from ibex_db_memory.models.memory_version import MemoryVersion
    from ibex_db_memory.models.session import Session
    from ibex_db_tenancy import Agent

EMBEDDING_DIMENSIONS = 384
"""Numbers in an embedding: what all-MiniLM-L6-v2 and its kin make."""

_UNIT = {"range": (0, 1)}

# A column of the table and not of the mapper, which would have every INSERT and
# UPDATE return what the database computed: kilobytes that nobody reads.
# A trigger fills it, not GENERATED: that would compute it anew, and write the
# index of words and the vector index, for every bump of a counter.
_SEARCH_VECTOR: Column[str] = Column("search_vector", TSVECTOR, nullable=False)


def _hash_of_inserted(context: DefaultExecutionContext) -> str:
    """Hash the content of a row that a Core INSERT brings without a hash."""
    return content_hash(cast("str", context.get_current_parameters()["content"]))  # type: ignore[no-untyped-call]


class Memory(OrgScoped, SoftDeleted, Timestamped, Base):
    """One statement that an agent keeps, its vector and its standing.

    The table is partitioned by HASH (org_id).  The database itself writes a
    MemoryVersion on every insert and on every change of content, category,
    status, confidence, metadata or validity.

    Attributes:
        content: 1 to 8192 characters; setting it sets content_hash.
        content_hash: SHA-256 of the normalised content (see ibex_db_memory.content); never set by hand.
        embedding: one vector, shape (384,), float32, need not be normalised; read only when
            asked for, with ``undefer(Memory.embedding)``.  Of an organization that moved to another model:
            what is left of the model before; MemoryRepository.embeddings() reads what searches read.
        embedding_model: which model made the vector; vectors of two models do not compare.
        confidence: how sure the source is, in [0, 1], three decimals.
        usefulness_score: what feedback says of it, in [0, 1], three decimals.
        positive_feedback, negative_feedback: how often give_feedback() found it helpful, and not.
        valid_from, valid_until: when the statement holds in the world, half-open: [from, until).
        expires_at: when expire_due() may take it; searches hide it from then on.
        metadata_: column ``metadata``; assign a new dict to change it, edits in place go unseen.
        search_vector: for queries only; made by the database from content, and never read.
        tags: load with ``selectinload(Memory.tags)``.
        versions: by version_num, oldest first; load with ``selectinload(Memory.versions)``.
    """

    __tablename__ = "memories"
    __guards__ = MEMORIES

    agent_id: Mapped[UUID]
    session_id: Mapped[UUID | None]
    content: Mapped[str] = mapped_column(info={"length": (MIN_CONTENT_LENGTH, MAX_CONTENT_LENGTH)})
    content_hash: Mapped[str] = mapped_column(String(64), default=_hash_of_inserted)
    embedding: Mapped[list[float] | None] = mapped_column(
        Vector(EMBEDDING_DIMENSIONS), deferred=True, deferred_raiseload=True
    )
    embedding_model: Mapped[str | None] = mapped_column(info={"length": (1, 255)})
    category: Mapped[MemoryCategory] = mapped_column(enum_type(MemoryCategory))
    source: Mapped[MemorySource] = mapped_column(
        enum_type(MemorySource), default=MemorySource.EXTRACTED, server_default="extracted"
    )
    status: Mapped[MemoryStatus] = mapped_column(
        enum_type(MemoryStatus), default=MemoryStatus.ACTIVE, server_default="active"
    )
    confidence: Mapped[Decimal] = mapped_column(
        Numeric(4, 3), default=Decimal("0.800"), server_default=text("0.800"), info=_UNIT
    )
    usefulness_score: Mapped[Decimal] = mapped_column(
        Numeric(4, 3), default=Decimal("0.500"), server_default=text("0.500"), info=_UNIT
    )
    retrieval_count: Mapped[int] = mapped_column(default=0, server_default=text("0"), info={"range": (0, 2**31 - 1)})
    positive_feedback: Mapped[int] = mapped_column(default=0, server_default=text("0"), info={"range": (0, 2**31 - 1)})
    negative_feedback: Mapped[int] = mapped_column(default=0, server_default=text("0"), info={"range": (0, 2**31 - 1)})
    last_retrieved_at: Mapped[datetime | None]
    last_injected_at: Mapped[datetime | None]
    superseded_by: Mapped[UUID | None]
    merged_into: Mapped[UUID | None]
    valid_from: Mapped[datetime] = mapped_column(server_default=func.now())
    valid_until: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    metadata_: Mapped[JsonObject] = mapped_column("metadata", default=dict, server_default=text("'{}'::jsonb"))

    @declared_attr.directive
    @classmethod
    def __mapper_args__(cls) -> dict[str, object]:
        """Keep the mapper's hands off the column that the next attribute reads."""
        return {**Base.__mapper_args__, "exclude_properties": ["search_vector"]}

    search_vector: Mapped[str] = column_property(
        type_coerce(_SEARCH_VECTOR, TSVECTOR), deferred=True, raiseload=True, expire_on_flush=False
    )

    # This one owns org_id: a memory that is attached to an agent gets its
    # organization from it. The next marks its own column only.
    agent: Mapped["Agent"] = relationship("Agent", lazy="raise")
    session: Mapped["Session | None"] = relationship(
        primaryjoin="and_(Memory.org_id == Session.org_id, foreign(Memory.session_id) == Session.id)",
        lazy="raise",
    )
    tags: Mapped[list["MemoryTag"]] = relationship(
        back_populates="memory",
        order_by="MemoryTag.tag",
        lazy="raise",
        cascade="all, delete-orphan",
        passive_deletes=True,
    )
    versions: Mapped[list["MemoryVersion"]] = relationship(
        order_by="MemoryVersion.version_num",
        lazy="raise",
        viewonly=True,  # the database writes them
    )

    @classmethod
    def holds_at(cls, moment: datetime) -> ColumnElement[bool]:
        """Return the condition that a statement holds in the world at a moment: valid_from <= moment < valid_until.

        For ``memories.list(Memory.holds_at(moment))`` and its like; searches take ``valid_at=``.
        """
        moment = validation.moment("moment", moment)
        return and_(cls.valid_from <= moment, or_(cls.valid_until.is_(None), cls.valid_until > moment))

    @validates("content")
    def _follow_content(self, _key: str, content: str) -> str:
        """Keep content_hash in step; a validator runs after the column's own check."""
        self.content_hash = content_hash(content)
        return content

    __table_args__ = (
        _SEARCH_VECTOR,
        parent_key("agents", "agent_id"),
        parent_key("sessions", "session_id", optional=True, owned=True),
        parent_key("memories", "superseded_by", optional=True),
        parent_key("memories", "merged_into", optional=True),
        CheckConstraint(r"content ~ '\S'", name="content_not_empty"),
        CheckConstraint(f"char_length(content) <= {MAX_CONTENT_LENGTH}", name="content_max_length"),
        CheckConstraint("content_hash ~ '^[0-9a-f]{64}$'", name="content_hash_format"),
        CheckConstraint("char_length(embedding_model) BETWEEN 1 AND 255", name="embedding_model_length"),
        CheckConstraint("confidence >= 0 AND confidence <= 1", name="confidence_range"),
        CheckConstraint("usefulness_score >= 0 AND usefulness_score <= 1", name="usefulness_score_range"),
        CheckConstraint("retrieval_count >= 0", name="retrieval_count_range"),
        CheckConstraint("positive_feedback >= 0 AND negative_feedback >= 0", name="feedback_range"),
        CheckConstraint("superseded_by <> id", name="not_superseded_by_itself"),
        CheckConstraint("merged_into <> id", name="not_merged_into_itself"),
        CheckConstraint("valid_from < valid_until", name="valid_from_before_until"),
        json_is_object("metadata"),
        # MemoryRepository.remember: the arbiter of "known already".
        Index(
            "memories_content_hash_org",
            "org_id",
            "agent_id",
            "content_hash",
            unique=True,
            postgresql_where=text("status = 'active' AND deleted_at IS NULL"),
        ),
        # MemoryRepository.search and hot in small scopes (the exact path), and
        # the cascade when an agent is erased. Both imply the predicate, and what
        # is asked for by id does not: hidden from it, lest the planner, of an
        # organization that statistics do not know, read all its rows by this.
        Index("memories_by_agent_idx", "org_id", "agent_id", postgresql_where=text("agent_id IS NOT NULL")),
        # MemoryRepository.search in large scopes. pgvector's default of 64 for
        # ef_construction left whole topics unreachable at any ef_search.
        Index(
            "memories_embedding_hnsw",
            "embedding",
            postgresql_using="hnsw",
            postgresql_with={"m": 16, "ef_construction": 200},
            postgresql_ops={"embedding": "vector_cosine_ops"},
        ),
        # MemoryRepository.search(text=...), inside the function memories_bm25:
        # under row-level security no plan would use it. An entry is of one organization.
        Index(
            "memories_words_idx",
            text("ibex_core.memories_word_keys(org_id, search_vector)"),
            postgresql_using="gin",
            postgresql_with={"fastupdate": "off"},
        ),
        # MemoryRepository.list, newest first, which says the predicate, true of every row: hidden likewise.
        Index("memories_newest_idx", "org_id", "created_at", "id", postgresql_where=text("created_at >= '-infinity'")),
        # MemoryRepository.expire_due.
        Index(
            "memories_expires_at_idx",
            "org_id",
            "expires_at",
            postgresql_where=text("expires_at IS NOT NULL AND deleted_at IS NULL"),
        ),
        # MemoryRepository.search(session_id=...), and SET NULL when a session is erased.
        Index("memories_session_id_idx", "org_id", "session_id", postgresql_where=text("session_id IS NOT NULL")),
        # MemoryRepository.current and history walk these backwards; SET NULL when the successor is erased.
        Index(
            "memories_superseded_by_idx", "org_id", "superseded_by", postgresql_where=text("superseded_by IS NOT NULL")
        ),
        Index("memories_merged_into_idx", "org_id", "merged_into", postgresql_where=text("merged_into IS NOT NULL")),
        # No index on retrieval_count, last_retrieved_at, last_injected_at,
        # usefulness_score or updated_at: one would end HOT updates, and each
        # bump would enter the vector index anew (50-80 ms a search, measured).
        {
            "postgresql_partition_by": "HASH (org_id)",
            # What an erased memory is recognised by, and the kind of its tombstone (ibex_db_tenancy.erasure).
            "info": {"fingerprint": ("agent_id", "content_hash"), "tombstones": "memory"},
        },
    )


@event.listens_for(Memory, "before_insert")
@event.listens_for(Memory, "before_update")
def _refuse_foreign_hash(_mapper: object, _connection: object, target: Memory) -> None:  # pyright: ignore[reportUnusedFunction]
    """Refuse a hash that was set by hand and is not the content's."""
    state = inspect(target)
    if not state.attrs.content_hash.history.has_changes() or "content" not in state.dict:
        return
    if target.content_hash != content_hash(target.content):
        raise InvalidInputError("content_hash", target.content_hash, "is made from content: leave it out")
