"""Writing an organization's memories as lines: one statement, so one moment; a few hundred rows in memory at a time.

Order: a memory comes after those that it was superseded by or merged into, so
that whoever reads the lines in order can keep every pointer at once.  By id
beyond that: two exports of the same rows are the same lines.

The database makes the JSON: numbers keep every digit, and Python parses nothing.
"""

import json
from array import array
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import closing
from tempfile import SpooledTemporaryFile
from typing import Any, cast

from sqlalchemy import ARRAY, TextClause, Uuid, bindparam, text

from ibex_db_memory.models import EMBEDDING_DIMENSIONS
from ibex_db_memory.transfer.fileformat import Tally, footer, header

# Edges follow the memories, and wait here: what is more goes to disk.
_SPOOLED = 1_000_000


def _utc(column: str) -> str:
    # The colons are escaped: to text() they would be parameters.
    return rf"""to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\:MI\:SS.US"Z"')"""


def _fields(alias: str, *names: str, **others: str) -> str:
    pairs = [*((name, f"{alias}.{name}") for name in names), *others.items()]
    return ", ".join(f"'{name}', {value}" for name, value in pairs)


_MOMENTS = (
    *("last_retrieved_at", "last_injected_at", "valid_from", "valid_until", "expires_at"),
    *("created_at", "updated_at", "deleted_at"),
)
_PLAIN = (
    *("id", "agent_id", "session_id", "content", "category", "source", "status", "confidence", "usefulness_score"),
    *("retrieval_count", "positive_feedback", "negative_feedback", "superseded_by", "merged_into", "metadata"),
)
_TIMES = {name: _utc(f"m.{name}") for name in _MOMENTS}


def _memory(model: str) -> str:
    return _fields("m", *_PLAIN, embedding_model=model, **_TIMES)


# The vector, and the name of its model, where they lie in the memory and where they lie beside it.
_AT_HOME = ("m.embedding", "m.embedding_model")
_BESIDE = (
    """(SELECT v.embedding FROM ibex_core.memory_vectors v WHERE v.org_id = :org_id AND v.space_id = :space_id
            AND v.id = m.id AND v.content_hash = m.content_hash)""",
    "CAST(:embedding_model AS text)",
)
_VERSION = _fields(
    "v",
    *("version_num", "operation", "content", "category", "status", "confidence", "metadata"),
    *("replaced_embedding_model", "change_reason", "changed_by"),
    valid_from=_utc("v.valid_from"),
    valid_until=_utc("v.valid_until"),
    # Its text is the shortest that gives the same float32 again.
    replaced_embedding="CAST(v.replaced_embedding AS text)",
    created_at=_utc("v.created_at"),
)
_EDGE = _fields(
    "r",
    *("source_memory_id", "target_memory_id", "relationship_type", "confidence", "notes"),
    created_at=_utc("r.created_at"),
)

_POINTS = "(m.superseded_by IS NOT NULL OR m.merged_into IS NOT NULL)"

_EXPORT = """
WITH RECURSIVE chain (id, depth) AS (
    SELECT m.id, 1 FROM ibex_core.memories m
    WHERE m.org_id = :org_id AND {points} AND NOT EXISTS (
        SELECT FROM ibex_core.memories t WHERE t.org_id = :org_id AND t.id IN (m.superseded_by, m.merged_into)
            AND (t.superseded_by IS NOT NULL OR t.merged_into IS NOT NULL))
    UNION
    SELECT n.id, c.depth + 1 FROM chain c CROSS JOIN LATERAL (
        SELECT s.id FROM ibex_core.memories s WHERE s.org_id = :org_id AND s.superseded_by = c.id
        UNION ALL
        SELECT g.id FROM ibex_core.memories g WHERE g.org_id = :org_id AND g.merged_into = c.id
    ) n WHERE c.depth < 10000
), depths AS (
    SELECT id, max(depth) AS depth FROM chain GROUP BY id
), ordered AS MATERIALIZED (
    SELECT m.id, m.agent_id, COALESCE(d.depth, CASE WHEN {points} THEN 2147483647 ELSE 0 END) AS depth
    FROM ibex_core.memories m LEFT JOIN depths d ON d.id = m.id
    WHERE m.org_id = :org_id {filters}
), head AS (
    SELECT json_build_object(
        'organization', (SELECT json_build_object('id', g.id, 'slug', g.slug, 'name', g.name)
            FROM ibex_core.organizations g WHERE g.id = :org_id),
        'agents', (SELECT COALESCE(json_agg(json_build_object('id', a.id, 'slug', a.slug, 'name', a.name,
                'description', a.description) ORDER BY a.id), '[]') FROM ibex_core.agents a
            WHERE a.org_id = :org_id AND a.id IN (SELECT agent_id FROM ordered)),
        'exported_at', {now},
        'memories', (SELECT count(*) FROM ordered)
    )::text AS head
)
SELECT CASE WHEN o.number = 1 OR o.id IS NULL THEN head.head END, p.memory, p.embedding, p.tags, p.versions, p.edges
FROM head LEFT JOIN (
    SELECT id, depth, row_number() OVER (ORDER BY depth, id) AS number FROM ordered
) o ON true LEFT JOIN LATERAL (
    SELECT json_build_object({memory})::text AS memory, {embedding} AS embedding,
        (SELECT json_object_agg(t.tag, {tagged} ORDER BY t.tag)::text FROM ibex_core.memory_tags t
            WHERE t.org_id = :org_id AND t.memory_id = m.id) AS tags,
        {versions} AS versions,
        (SELECT array_agg(json_build_object({edge})::text ORDER BY r.target_memory_id, r.relationship_type)
            FROM ibex_core.memory_relationships r WHERE r.org_id = :org_id AND r.source_memory_id = m.id
            {edges}) AS edges
    FROM ibex_core.memories m WHERE m.org_id = :org_id AND m.id = o.id OFFSET 0
) p ON true
ORDER BY o.number
"""
_VERSIONS = f"""(SELECT json_agg(json_build_object({_VERSION}) ORDER BY v.version_num)::text
            FROM ibex_core.memory_versions v WHERE v.org_id = :org_id AND v.memory_id = m.id)"""


def statement(*, agents: bool, include_deleted: bool, versions: bool, beside: bool = False) -> TextClause:
    """Return the one statement of an export; where vectors lie beside the memories, it takes the space."""
    embedding, model = _BESIDE if beside else _AT_HOME
    filters = ("AND m.agent_id = ANY(:agents) " if agents else "") + (
        "" if include_deleted else "AND m.deleted_at IS NULL"
    )
    found = text(
        _EXPORT.format(
            points=_POINTS,
            filters=filters,
            now=_utc("now()"),
            memory=_memory(model),
            embedding=f"vector_send({embedding})",
            tagged=_utc("t.created_at"),
            versions=_VERSIONS if versions else "NULL::text",
            edge=_EDGE,
            # An edge belongs to the export when both of its ends do.
            edges="AND r.target_memory_id IN (SELECT id FROM ordered)" if filters else "",
        )
    ).bindparams(bindparam("org_id", type_=Uuid()))
    if beside:
        found = found.bindparams(bindparam("space_id", type_=Uuid()))
    return found.bindparams(bindparam("agents", type_=ARRAY(Uuid()))) if agents else found


async def lines(
    rows: AsyncIterator[Any],
    revisions: Mapping[str, str],
    progress: Callable[[int, int], None] | None,
    dimensions: int = EMBEDDING_DIMENSIONS,
) -> AsyncGenerator[bytes]:
    """Yield the lines of an export: header, memories, relationships, footer."""
    tally = Tally()
    expected = 0
    with closing(cast("Any", SpooledTemporaryFile(max_size=_SPOOLED))) as spool:
        async for head, memory, embedding, tags, versions, edges in rows:
            if head is not None:
                told = json.loads(head)
                expected = told["memories"]
                yield tally.add("header", header(told, revisions, dimensions))
            if memory is None:
                continue  # nothing but the header
            yield tally.add("memory", _joined(memory, embedding, tags, versions))
            if edges is not None:
                spool.writelines(f'{{"kind": "relationship", {edge[1:]}\n'.encode() for edge in edges)
            if progress is not None:
                progress(tally.counts["memory"], expected)
        spool.seek(0)
        for edge in spool:
            yield tally.add("relationship", edge)
    yield footer(tally)


def _joined(memory: str, embedding: bytes | None, tags: str | None, versions: str | None) -> bytes:
    """Put together what the database made; nothing of it is parsed."""
    packed = "null" if embedding is None else f'"{pack(embedding)}"'
    rest = f', "tags": {tags or "{}"}, "versions": {versions or "[]"}, "embedding": {packed}}}'
    return f'{{"kind": "memory", {memory[1:-1]}{rest}\n'.encode()


def pack(sent: bytes) -> str:
    """Return base64 of little-endian float32 for what vector_send() gives: dimension, nothing, big-endian float32."""
    numbers = array("f", sent[4:])
    numbers.byteswap()
    return b64encode(numbers.tobytes()).decode()
