"""mem0's pgvector table: id uuid, vector, payload jsonb; one row is one memory.

| payload                    | memory                                                            |
|----------------------------|-------------------------------------------------------------------|
| data                       | content; rows without it are skipped, as mem0 does                |
| (the row's id and vector)  | id, embedding                                                     |
| agent_id                   | agent, by ``agents``; else ``agent_id``                           |
| run_id                     | session of that external_id, made where it is not there           |
| memory_type                | procedural_memory: category PROCEDURAL; else ``category``         |
| created_at, updated_at     | the same; without a time zone they count as UTC                   |
| expiration_date            | expires_at: when that day, in UTC, is over                        |
| hash, text_lemmatized      | left out: made anew from the content                              |
| all else, user_id and      | metadata, under the same names                                    |
| the ids above included     |                                                                   |
"""

import json
from array import array
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from ibex_db_core.errors import InvalidInputError
from ibex_db_core.types import pack_vector
from ibex_db_memory.models import MemoryCategory, MemorySource

_LEFT_OUT = frozenset({"data", "hash", "text_lemmatized", "created_at", "updated_at", "expiration_date"})


def query(table: str, *, embeddings: bool) -> str:
    """Return the query of all rows."""
    vector = "vector::text" if embeddings else "NULL::text"
    return f"SELECT id, payload::text AS payload, {vector} AS embedding FROM {table} ORDER BY id"


def payload_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's payload; numbers keep every digit."""
    found = cast("object", json.loads(row["payload"] or "{}", parse_float=Decimal))
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def record(row: Mapping[str, Any], payload: Mapping[str, Any], category: MemoryCategory) -> dict[str, Any]:
    """Return what a row is as a memory, as transfer.incoming takes it; agent and session are the caller's to add.

    Raises:
        InvalidInputError: a moment or a vector that is none.
    """
    created = _moment("created_at", payload.get("created_at"))
    procedural = payload.get("memory_type") == "procedural_memory"
    return {
        "id": row["id"],
        "content": payload["data"],
        "category": MemoryCategory.PROCEDURAL if procedural else category,
        "source": MemorySource.IMPORTED,
        "embedding": vector(row["embedding"]),
        "metadata": {name: value for name, value in payload.items() if name not in _LEFT_OUT},
        "created_at": created,
        "updated_at": _moment("updated_at", payload.get("updated_at")) or created,
        "expires_at": _day_over(payload.get("expiration_date")),
    }


def vector(text: str | None) -> object:
    """Return a vector from pgvector's text, which names every float32 exactly."""
    return None if text is None else pack_vector(array("f", json.loads(text)))


def _moment(field: str, value: object) -> datetime | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(cast("str", value))
    except (TypeError, ValueError) as exc:
        raise InvalidInputError(field, value, "must be a moment in ISO 8601") from exc
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _day_over(value: object) -> datetime | None:
    if value is None:
        return None
    try:
        day = date.fromisoformat(cast("str", value))
    except (TypeError, ValueError) as exc:
        raise InvalidInputError("expiration_date", value, "must be a day, as 2026-01-31") from exc
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
