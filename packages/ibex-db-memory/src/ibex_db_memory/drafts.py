"""What a caller hands in to be remembered, checked field by field before any SQL."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import cast
from uuid import UUID

import pgvector

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError
from ibex_db_core.types import JsonObject, VectorLike, pack_vector
from ibex_db_memory.content import content_hash, normalise_tag
from ibex_db_memory.models import Memory, MemoryCategory, MemorySource, MemoryStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDraft:
    """One memory to be, as remember_many takes it; the fields are those of Memory.

    Attributes:
        embedding: one vector, of the organization's dimension (384 unless it moved to another model), float32,
            need not be normalised; None is found by no vector search.
        category: how the memory fades and is filtered; a member or its value.
        tags: each is normalised.
        id: made by the client where it must be known before; None makes one.
    """

    agent_id: UUID
    content: str
    category: MemoryCategory | str
    embedding: VectorLike | None = None
    embedding_model: str | None = None
    source: MemorySource | str = MemorySource.EXTRACTED
    status: MemoryStatus | str = MemoryStatus.ACTIVE
    session_id: UUID | None = None
    confidence: Decimal | float | None = None
    usefulness_score: Decimal | float | None = None
    tags: Iterable[str] = ()
    metadata: JsonObject = field(default_factory=dict[str, object])
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    expires_at: datetime | None = None
    id: UUID | None = None


_NAMES = frozenset(entry.name for entry in fields(MemoryDraft))
_REQUIRED = frozenset({"agent_id", "content", "category"})
_DEFAULTS: Mapping[str, object] = {
    "source": MemorySource.EXTRACTED,
    "status": MemoryStatus.ACTIVE,
    "confidence": Decimal("0.800"),
    "usefulness_score": Decimal("0.500"),
}
# These point at another memory, and only a verb brings the pointer and the relationship along.
_MADE_BY: Mapping[MemoryStatus, str] = {MemoryStatus.SUPERSEDED: "supersede", MemoryStatus.MERGED: "merge"}
# The fields that become a column as they are, once checked; the others need more than a check.
_PLAIN = (
    "agent_id",
    "content",
    "embedding_model",
    "category",
    "source",
    "status",
    "session_id",
    "confidence",
    "usefulness_score",
    "valid_from",
    "valid_until",
    "expires_at",
)


@dataclass(frozen=True, slots=True)
class CheckedDraft:
    """A draft whose every field is fit for the database.

    Attributes:
        values: column name to value, for one row of memories.
        tags: normalised, without repetition, in order.
    """

    values: Mapping[str, object]
    tags: Sequence[str]

    @property
    def twin_key(self) -> object:
        """What two drafts share that say the same to the same agent; only active memories have twins."""
        if self.values["status"] is not MemoryStatus.ACTIVE:
            return id(self)
        return self.values["agent_id"], self.values["content_hash"]

    @property
    def place(self) -> tuple[str, object]:
        """Where it stands in the order of the unique index."""
        return str(self.values["agent_id"]), self.values["content_hash"]


def check_draft(draft: "MemoryDraft | Mapping[str, object]", new_id: UUID) -> CheckedDraft:
    """Check every field of a draft.

    Raises:
        InvalidInputError: which field, which value, which rule.
    """
    given = _as_mapping(draft)
    values: dict[str, object] = {name: validation.check(Memory, name, given.get(name)) for name in _PLAIN}
    for name, default in _DEFAULTS.items():
        values[name] = default if values[name] is None else values[name]
    if (verb := _MADE_BY.get(cast("MemoryStatus", values["status"]))) is not None:
        raise InvalidInputError("status", values["status"], f"is {verb}()'s to give: remember it, then {verb}() it")
    values["content_hash"] = content_hash(cast("str", values["content"]))
    values["embedding"] = check_embedding(cast("VectorLike | None", given.get("embedding")))
    metadata = given.get("metadata")
    values["metadata"] = {} if metadata is None else validation.json_object("metadata", metadata)
    ident = given.get("id")
    values["id"] = new_id if ident is None else validation.uuid("id", ident)
    start, end = values["valid_from"] or datetime.now(UTC), values["valid_until"]
    if isinstance(start, datetime) and isinstance(end, datetime) and start >= end:
        raise InvalidInputError("valid_until", end, f"must lie after valid_from ({start})")
    return CheckedDraft(values, check_tags(given.get("tags", ())))


def check_embedding(embedding: VectorLike | None) -> pgvector.Vector | None:
    """Check a vector of any dimension, which is the organization's to judge; None passes."""
    return None if embedding is None else pack_vector(embedding)


def check_tags(tags: object, field: str = "tags") -> Sequence[str]:
    """Normalise tags and drop repetitions, keeping the order."""
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        raise InvalidInputError(field, tags, "must be a list of strings")
    return list(dict.fromkeys(normalise_tag(tag) for tag in cast("Iterable[str]", tags)))


def _as_mapping(draft: object) -> Mapping[str, object]:
    if isinstance(draft, MemoryDraft):
        return {name: getattr(draft, name) for name in _NAMES}
    if not isinstance(draft, Mapping):
        raise InvalidInputError("draft", draft, "must be a MemoryDraft or a mapping of its fields")
    given = cast("Mapping[str, object]", draft)
    if unknown := given.keys() - _NAMES:
        name = min(unknown)
        raise InvalidInputError(name, given[name], f"is no field of a memory; there are {', '.join(sorted(_NAMES))}")
    if missing := _REQUIRED - given.keys():
        raise InvalidInputError(min(missing), None, "is required")
    return given
