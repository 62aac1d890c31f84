"""What narrows a search: checked once, then one condition and one set of parameters each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from itertools import compress
from operator import attrgetter
from typing import TypeVar, cast
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Text, Uuid, and_, bindparam, func, literal_column, or_, select
from sqlalchemy.dialects.postgresql import JSONB

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError
from ibex_db_core.frozen import opened
from ibex_db_core.types import JsonObject
from ibex_db_memory.drafts import check_tags
from ibex_db_memory.models import Memory, MemoryCategory, MemorySource, MemoryStatus, MemoryTag

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")
OneOrMany = UUID | Iterable[UUID]

MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Filters:
    """The rows that a search may return; None or False leaves a filter out.

    Made by :meth:`of`, which checks.  ``shape`` says which filters are present,
    so that one statement is built, and compiled, for each shape.
    ``unnamed_model`` is for vectors whose model was not named.
    """

    agents: tuple[UUID, ...] | None = None
    session_id: UUID | None = None
    categories: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    statuses: tuple[str, ...] | None = None
    tags_any: tuple[str, ...] | None = None
    tags_all: tuple[str, ...] | None = None
    metadata: JsonObject | None = None
    min_confidence: float | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    valid_at: datetime | None = None
    embedding_model: str | None = None
    include_expired: bool = False
    include_deleted: bool = False
    unnamed_model: bool = False

    @classmethod
    def of(
        cls,
        *,
        agent_id: OneOrMany | None = None,
        session_id: UUID | None = None,
        categories: Iterable[MemoryCategory | str] | None = None,
        sources: Iterable[MemorySource | str] | None = None,
        statuses: Iterable[MemoryStatus | str] | None = None,
        tags_any: Iterable[str] | None = None,
        tags_all: Iterable[str] | None = None,
        metadata: JsonObject | None = None,
        min_confidence: float | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        valid_at: datetime | None = None,
        embedding_model: str | None = None,
        include_expired: bool = False,
        include_deleted: bool = False,
    ) -> "Filters":
        """Check filters as a caller gives them.

        Raises:
            InvalidInputError: which filter, which value, which rule.
        """
        if created_after is not None:
            validation.moment("created_after", created_after)
        if created_before is not None:
            validation.moment("created_before", created_before)
        if valid_at is not None:
            validation.moment("valid_at", valid_at)
        made = _Open(
            agents=_agents(agent_id),
            session_id=None if session_id is None else validation.uuid("session_id", session_id),
            categories=_members("categories", MemoryCategory, categories),
            sources=_members("sources", MemorySource, sources),
            statuses=_members("statuses", MemoryStatus, statuses),
            tags_any=None if tags_any is None else _some("tags_any", check_tags(tags_any, "tags_any")),
            tags_all=None if tags_all is None else _some("tags_all", check_tags(tags_all, "tags_all")),
            metadata=None if metadata is None else validation.json_object("metadata", metadata),
            min_confidence=None
            if min_confidence is None
            else validation.number("min_confidence", min_confidence, 0, 1),
            created_after=created_after,
            created_before=created_before,
            valid_at=valid_at,
            embedding_model=None
            if embedding_model is None
            else validation.text("embedding_model", embedding_model, shortest=1, longest=255),
            include_expired=include_expired,
            include_deleted=include_deleted,
        )
        made.__class__ = cls
        return made

    @property
    def shape(self) -> frozenset[str]:
        """The names of the filters that are present."""
        return frozenset(compress(_NAMES, _given(self)))

    @property
    def parameters(self) -> dict[str, object]:
        """The values of the filters that are present, by bind name."""
        found: dict[str, object] = {}
        for name in compress(_NAMES, _given(self)):
            if name in _BOUND:
                value = getattr(self, name)
                found[f"f_{name}"] = list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
        if self.tags_all is not None:
            found["f_tags_all_count"] = len(self.tags_all)
        return found


_NAMES = tuple(entry.name for entry in fields(Filters))
# None and False leave a filter out; so may what excludes nothing: metadata that contains {}, a confidence of 0 or more.
_given = attrgetter(*_NAMES)
_Open = opened(Filters)


def conditions(shape: frozenset[str]) -> Sequence[ColumnElement[bool]]:
    """Return the WHERE conditions for a shape; the values come as parameters."""
    present = [CONDITIONS[name] for name in CONDITIONS if name in shape]
    return present + [condition for name, condition in UNLESS.items() if name not in shape]


def _list(name: str, kind: Text | Uuid[UUID]) -> ColumnElement[object]:
    return cast("ColumnElement[object]", func.any(bindparam(f"f_{name}", type_=ARRAY(kind))))


def _tagged(name: str) -> "ColumnElement[bool]":
    return (
        select(MemoryTag.id)
        .where(
            MemoryTag.org_id == Memory.org_id,
            MemoryTag.memory_id == Memory.id,
            MemoryTag.tag == _list(name, Text()),
        )
        .exists()
    )


_TAGS_FOUND = (
    select(func.count())
    .select_from(MemoryTag)
    .where(
        # Not the memory's own: a count that is joined by org_id alone has Citus ask every shard.
        MemoryTag.org_id == bindparam("org_id", type_=Uuid()),
        MemoryTag.memory_id == Memory.id,
        # COALESCE, which never is needed, hides the index by tag: the key by memory is what to read.
        func.coalesce(MemoryTag.tag, "") == _list("tags_all", Text()),
    )
    .scalar_subquery()
)
CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    "agents": Memory.agent_id == _list("agents", Uuid()),
    "session_id": Memory.session_id == bindparam("f_session_id", type_=Uuid()),
    "categories": Memory.category == _list("categories", Text()),
    "sources": Memory.source == _list("sources", Text()),
    "statuses": Memory.status == _list("statuses", Text()),
    "tags_any": _tagged("tags_any"),
    "tags_all": bindparam("f_tags_all_count") == _TAGS_FOUND,
    "metadata": Memory.metadata_.contains(bindparam("f_metadata", type_=JSONB())),
    "min_confidence": Memory.confidence >= bindparam("f_min_confidence"),
    "created_after": Memory.created_at >= bindparam("f_created_after"),
    "created_before": Memory.created_at < bindparam("f_created_before"),
    "valid_at": and_(
        Memory.valid_from <= bindparam("f_valid_at"),
        or_(Memory.valid_until.is_(None), Memory.valid_until > bindparam("f_valid_at")),
    ),
    "embedding_model": Memory.embedding_model == bindparam("f_embedding_model"),
    "unnamed_model": Memory.embedding_model.is_(None),
}
_BOUND = CONDITIONS.keys() - {"unnamed_model"}
# What holds unless the filter of that name is present.
UNLESS: Mapping[str, ColumnElement[bool]] = {
    "statuses": Memory.status == literal_column("'active'", Text()),
    "include_expired": or_(Memory.expires_at.is_(None), Memory.expires_at > func.now()),
    "include_deleted": Memory.deleted_at.is_(None),
}


def _agents(given: OneOrMany | None) -> tuple[UUID, ...] | None:
    if given is None:
        return None
    many = given if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    return _some("agent_id", [validation.uuid("agent_id", one) for one in many])


def _members(field: str, kind: type[E], given: Iterable[E | str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    if isinstance(given, str):  # a str is an Iterable of str; a lone category would be taken letter by letter
        given = [given]
    if not isinstance(cast("object", given), Iterable):
        raise InvalidInputError(field, given, "must be a list")
    return _some(field, [validation.enum_member(field, kind, one).value for one in given])


def _some(field: str, values: Sequence[T]) -> tuple[T, ...]:
    if not values:
        raise InvalidInputError(field, [], "must not be empty: leave it out to have no filter")
    return tuple(dict.fromkeys(values))


def limit_of(limit: object) -> int:
    """Check how many hits are asked for, 1 to 1000."""
    return validation.integer("limit", limit, 1, MAX_LIMIT)
