"""One memory on its way in: every field checked, with the number of its line where one is wrong."""

import json
import math
from array import array
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pgvector

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError
from ibex_db_core.types import pack_vector
from ibex_db_memory.content import content_hash, normalise_tag
from ibex_db_memory.models import Memory, MemoryRelationship, MemoryVersion
from ibex_db_memory.search.spaces import AT_HOME, Space

# Column and SQL type of what is brought in; content_hash is made here, org_id is the importer's.
COLUMNS: Mapping[str, str] = {
    "id": "uuid",
    "agent_id": "uuid",
    "session_id": "uuid",
    "content": "text",
    "content_hash": "text",
    "embedding": "vector",
    "embedding_model": "text",
    "category": "text",
    "source": "text",
    "status": "text",
    "confidence": "numeric",
    "usefulness_score": "numeric",
    "retrieval_count": "integer",
    "positive_feedback": "integer",
    "negative_feedback": "integer",
    "superseded_by": "uuid",
    "merged_into": "uuid",
    "metadata": "jsonb",
    "last_retrieved_at": "timestamptz",
    "last_injected_at": "timestamptz",
    "valid_from": "timestamptz",
    "valid_until": "timestamptz",
    "expires_at": "timestamptz",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
    "deleted_at": "timestamptz",
}
POINTERS = ("superseded_by", "merged_into")
VERSION_COLUMNS: Mapping[str, str] = {
    "version_num": "integer",
    "operation": "text",
    "content": "text",
    "category": "text",
    "status": "text",
    "confidence": "numeric",
    "metadata": "jsonb",
    "valid_from": "timestamptz",
    "valid_until": "timestamptz",
    "replaced_embedding": "vector",
    "replaced_embedding_model": "text",
    "change_reason": "text",
    "changed_by": "uuid",
    "created_at": "timestamptz",
}
EDGE_COLUMNS: Mapping[str, str] = {
    "source_memory_id": "uuid",
    "target_memory_id": "uuid",
    "relationship_type": "text",
    "confidence": "numeric",
    "notes": "text",
    "created_at": "timestamptz",
}
_BEYOND_COLUMNS = frozenset({"kind", "tags", "versions"})
_REQUIRED = ("id", "agent_id", "content", "category")
_DEFAULTS: Mapping[str, object] = {
    "source": "extracted",
    "status": "active",
    "confidence": Decimal("0.800"),
    "usefulness_score": Decimal("0.500"),
    "retrieval_count": 0,
    "positive_feedback": 0,
    "negative_feedback": 0,
}


@dataclass(slots=True)
class Incoming:
    """A memory that is fit for the database.

    Attributes:
        source_id: what it is called where it comes from.
        origin_id, origin_agent_id: its ids there.
        values: COLUMNS to values; metadata as JSON text.  What is under ``id`` and ``agent_id`` are its ids here.
        tags: each with the time it was put on, where that is known.
        versions: VERSION_COLUMNS to values, from number 1; none: the memory as it is becomes its first version.
    """

    source_id: str
    origin_id: UUID
    origin_agent_id: UUID
    values: dict[str, Any]
    tags: Sequence[tuple[str, datetime | None]]
    versions: Sequence[Mapping[str, object]]

    @property
    def place(self) -> tuple[str, str]:
        """Where it stands in the order of the unique index: two writers of the same contents do not deadlock."""
        return str(self.values["agent_id"]), cast("str", self.values["content_hash"])


def memory(record: Mapping[str, Any], line: int | None = None, space: Space = AT_HOME) -> Incoming:
    """Check a memory's record.

    Args:
        record: as parsed from JSON: decimals, ids and moments as text; embedding as base64 or as a pgvector.Vector.
        line: the number of its line, for an error.
        space: where its vector is to go.

    Raises:
        InvalidInputError: which field, which value, which rule.
    """
    try:
        return _memory(record, space)
    except InvalidInputError as exc:
        raise InvalidInputError(exc.field, exc.value, exc.rule, index=line) from exc


def relationship(record: Mapping[str, Any], line: int | None = None) -> dict[str, Any]:
    """Check a relationship's record; see memory()."""
    try:
        _refuse_unknown(record, {*EDGE_COLUMNS, "kind"})
        return {name: _checked(MemoryRelationship, name, record.get(name)) for name in EDGE_COLUMNS}
    except InvalidInputError as exc:
        raise InvalidInputError(exc.field, exc.value, exc.rule, index=line) from exc


def _memory(record: Mapping[str, Any], space: Space) -> Incoming:
    _refuse_unknown(record, (COLUMNS.keys() - {"content_hash"}) | _BEYOND_COLUMNS)
    for name in _REQUIRED:
        if record.get(name) is None:
            raise InvalidInputError(name, None, "is required")
    values: dict[str, Any] = {
        name: _checked(Memory, name, record.get(name))
        for name in COLUMNS
        if name not in {"content_hash", "embedding", "metadata"}
    }
    for name, default in _DEFAULTS.items():
        values[name] = default if values[name] is None else values[name]
    values["content_hash"] = content_hash(values["content"])
    values["embedding"] = _embedding(record.get("embedding"))
    if values["embedding"] is not None:
        space.check_written(values["embedding"], values["embedding_model"])
    metadata = record.get("metadata")
    values["metadata"] = "{}" if metadata is None else json_text("metadata", metadata)
    for name in POINTERS:
        if values[name] == values["id"]:
            raise InvalidInputError(name, values[name], "must be another memory")
    start, end = values["valid_from"], values["valid_until"]
    if start is not None and end is not None and start >= end:
        raise InvalidInputError("valid_until", end, f"must lie after valid_from ({start})")
    tags, versions = _tags(record.get("tags")), _versions(record.get("versions"))
    return Incoming(str(values["id"]), values["id"], values["agent_id"], values, tags, versions)


def _refuse_unknown(record: Mapping[str, Any], known: set[str] | frozenset[str]) -> None:
    for name in record.keys() - known:
        raise InvalidInputError(name, record[name], f"is no field that is known; there are {', '.join(sorted(known))}")


def _checked(model: type[Memory | MemoryVersion | MemoryRelationship], name: str, value: object) -> object:
    kind = COLUMNS.get(name) or VERSION_COLUMNS.get(name) or EDGE_COLUMNS[name]
    if kind == "timestamptz" and isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as exc:
            raise InvalidInputError(name, value, "must be a moment, as 2026-01-31T12:00:00Z") from exc
    return validation.check(model, name, value)


def _embedding(given: object) -> pgvector.Vector | None:
    """Unpack base64 of little-endian float32."""
    if given is None or isinstance(given, pgvector.Vector):
        return None if given is None else pack_vector(given)
    if not isinstance(given, str):
        raise InvalidInputError("embedding", given, "must be base64 of little-endian float32")
    try:
        packed = b64decode(given, validate=True)
        numbers = array("f", packed)
    except ValueError as exc:
        raise InvalidInputError("embedding", given, "must be base64 of little-endian float32") from exc
    if array("H", [1]).tobytes() == b"\0\1":  # a big-endian machine
        numbers.byteswap()
    return pack_vector(numbers)


def _replaced(given: object) -> pgvector.Vector | None:
    """Parse a version's vector, of any dimension, as Postgres writes it: [0.1,0.2]."""
    if given is None:
        return None
    try:
        return pack_vector(json.loads(cast("str", given)), field="replaced_embedding")
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidInputError("replaced_embedding", given, "must be a vector as text, [0.1,0.2]") from exc


def _tags(given: object) -> Sequence[tuple[str, datetime | None]]:
    if given is None:
        return []
    if isinstance(given, Mapping):
        pairs = cast("Mapping[str, object]", given).items()
    elif isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        pairs = dict.fromkeys(cast("Sequence[str]", given)).items()
    else:
        raise InvalidInputError("tags", given, "must be an object of tags and moments, or a list of tags")
    found: dict[str, datetime | None] = {}
    for tag, moment in pairs:
        found[normalise_tag(tag)] = cast("datetime | None", _checked(Memory, "created_at", moment))
    return list(found.items())


def _versions(given: object) -> Sequence[Mapping[str, object]]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise InvalidInputError("versions", given, "must be a list")
    found: list[Mapping[str, object]] = []
    for number, record in enumerate(cast("list[object]", given), 1):
        if not isinstance(record, dict):
            raise InvalidInputError("versions", record, "must be a list of objects")
        version = cast("dict[str, Any]", record)
        _refuse_unknown(version, set(VERSION_COLUMNS))
        values = {
            name: _checked(MemoryVersion, name, version.get(name))
            for name in VERSION_COLUMNS
            if name not in {"metadata", "replaced_embedding"}
        }
        values["replaced_embedding"] = _replaced(version.get("replaced_embedding"))
        if values["version_num"] != number:
            raise InvalidInputError("version_num", values["version_num"], f"must be {number}: without gaps, from 1")
        found.append({**values, "metadata": json_text("metadata", version.get("metadata"))})
    return found


def json_text(field: str, value: object) -> str:
    """Return a JSON object as text; decimals keep every digit.

    Raises:
        InvalidInputError: no JSON object, or what jsonb cannot hold.
    """
    if not isinstance(value, dict):
        raise InvalidInputError(field, value, "must be a JSON object")
    try:
        return _json(field, cast("object", value))
    except RecursionError as exc:
        raise InvalidInputError(field, "an object", "is nested too deeply") from exc


def _json(field: str, value: object) -> str:
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return "{" + ", ".join(f"{_json(field, key)}: {_json(field, item)}" for key, item in items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_json(field, item) for item in cast("list[object]", value)) + "]"
    if isinstance(value, str):
        return json.dumps(validation.text(field, value), ensure_ascii=False)
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInputError(field, value, "must hold finite numbers only")
    return json.dumps(value)
