"""LangGraph's Postgres store: ``store`` (prefix, key, value jsonb, times) and ``store_vectors`` (one row a field).

| store                  | memory                                                                           |
|------------------------|----------------------------------------------------------------------------------|
| prefix, the namespace  | agent, by ``agents`` (the longest dotted prefix that fits); else ``agent_id``    |
| prefix and key         | id, made from both and the organization, the same each time                      |
| value                  | content: the field that ``content`` names; else text, content, content.content,  |
|                        | memory or data; else the whole value as JSON, which is what LangGraph embeds     |
| created_at, updated_at | the same                                                                         |
| expires_at             | the same                                                                         |
| store_vectors          | embedding: that of ``vector_field``; else of the content's field, of ``$``, or   |
|                        | the only one there is                                                            |
| all else               | metadata: namespace, key and value, without the content                          |
"""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast
from uuid import UUID, uuid5

from ibex_db_core.errors import InvalidInputError
from ibex_db_memory.importers.mem0 import vector
from ibex_db_memory.models import MemoryCategory, MemorySource
from ibex_db_memory.transfer.incoming import json_text

_FIELDS = ("text", "content", "content.content", "memory", "data")
_WHOLE = "$"


def query(store: str, vectors: str | None) -> str:
    """Return the query of all items; vectors: the table of them, where there is one."""
    embeddings = "NULL::text"
    if vectors is not None:
        embeddings = (
            f"(SELECT json_object_agg(v.field_name, v.embedding::text)::text FROM {vectors} v "
            "WHERE v.prefix = s.prefix AND v.key = s.key)"
        )
    return (
        f"SELECT s.prefix, s.key, s.value::text AS value, s.created_at, s.updated_at, s.expires_at, "
        f"{embeddings} AS embeddings FROM {store} s ORDER BY s.prefix, s.key"
    )


def record(
    row: Mapping[str, Any], org_id: UUID, category: MemoryCategory, *, content: str | None, vector_field: str | None
) -> dict[str, Any]:
    """Return what an item is as a memory, as transfer.incoming takes it; the agent is the caller's to add.

    Raises:
        InvalidInputError: no such field; several vectors and nothing that tells which.
    """
    value = cast("dict[str, Any]", json.loads(row["value"], parse_float=Decimal))
    field, said, rest = _said(value, content)
    embeddings = cast("dict[str, str]", json.loads(row["embeddings"] or "{}"))
    return {
        "id": uuid5(org_id, f"langgraph:{row['prefix']}\n{row['key']}"),
        "content": said,
        "category": category,
        "source": MemorySource.IMPORTED,
        "embedding": vector(_chosen(embeddings, vector_field, field)),
        "metadata": {"namespace": row["prefix"].split("."), "key": row["key"], "value": rest},
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "expires_at": row["expires_at"],
    }


def agent_of(prefix: str, agents: Mapping[str, UUID]) -> UUID | None:
    """Return the agent of the longest dotted prefix that a namespace begins with."""
    parts = prefix.split(".")
    return next((agents[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in agents), None)


def _said(value: dict[str, Any], wanted: str | None) -> tuple[str, str, dict[str, Any]]:
    """Return the content's field, the content, and the value without it."""
    for path in (wanted,) if wanted is not None else _FIELDS:
        *above, last = path.split(".")
        inner: object = value
        for name in above:
            inner = cast("dict[str, object]", inner).get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and isinstance(said := cast("dict[str, object]", inner).get(last), str):
            return path, said, _without(value, path.split("."))
    if wanted is not None:
        raise InvalidInputError("content", wanted, "must be a field of every value that holds text")
    return _WHOLE, json_text("value", value), {}


def _without(value: dict[str, Any], path: list[str]) -> dict[str, Any]:
    name, *below = path
    rest = {key: item for key, item in value.items() if key != name}
    if below and (inner := _without(value[name], below)):
        rest[name] = inner
    return rest


def _chosen(embeddings: Mapping[str, str], wanted: str | None, field: str) -> str | None:
    if wanted is not None:
        return embeddings.get(wanted)
    for name in (field, _WHOLE):
        if name in embeddings:
            return embeddings[name]
    if len(embeddings) > 1:
        raise InvalidInputError("vector_field", None, f"must say which vector to keep: {', '.join(sorted(embeddings))}")
    return next(iter(embeddings.values()), None)
