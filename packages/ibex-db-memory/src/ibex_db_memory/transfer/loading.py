"""Bringing memories in: batches that know what is known already and what was erased, one statement each.

A batch goes as remember_many's does, and for the same reason without DO UPDATE:
a row that another transaction has just inserted is found on the next try.
Memories come with their versions; the database writes the first version itself
only where none is brought.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

import pgvector
from sqlalchemy import Boolean, TextClause, Uuid, bindparam, text
from sqlalchemy.types import NullType

from ibex_db_core.errors import SerializationError
from ibex_db_memory.models import VersionOperation
from ibex_db_memory.search.spaces import AT_HOME, Space
from ibex_db_memory.transfer import sharded
from ibex_db_memory.transfer.incoming import COLUMNS, EDGE_COLUMNS, POINTERS, VERSION_COLUMNS, Incoming
from ibex_db_memory.transfer.outcomes import Imported, ImportedItem, ImportOutcome
from ibex_db_tenancy.erasure import fingerprint

Execute = Callable[..., Awaitable[Any]]

_TRIES = 20


def _array(name: str, kind: str, prefix: str = "") -> str:
    # jsonb travels as text: asyncpg's codec is set for single values.
    return f"CAST(:{prefix}{name} AS {'text' if kind == 'jsonb' else kind}[])"


def _unnest(columns: Mapping[str, str], prefix: str = "") -> str:
    arrays = ", ".join(_array(name, kind, prefix) for name, kind in columns.items())
    read = ", ".join(f"r.{name}::{kind} AS {name}" for name, kind in columns.items())
    return f"SELECT {read} FROM unnest({arrays}) AS r ({', '.join(columns)})"


def _here(column: str) -> str:
    """Keep a pointer whose target is here; the loader mends the others at the end."""
    return f"""(SELECT t.id FROM ibex_core.memories t WHERE t.org_id = :org_id AND t.id = i.{column})"""


# Where a memory comes in under another id, for another agent, what it was before counts as well.
_ORIGINS = {"origin_id": "uuid", "fingerprint": "text", "origin_fingerprint": "text"}
_INPUT = {**COLUMNS, **_ORIGINS}
_TAGS = {"memory_id": "uuid", "tag": "text", "created_at": "timestamptz"}
_VERSIONS = {"memory_id": "uuid", **VERSION_COLUMNS}
_COMPUTED = {
    "session_id": "(SELECT s.id FROM ibex_core.sessions s WHERE s.org_id = :org_id AND s.id = i.session_id)",
    "valid_from": "COALESCE(i.valid_from, i.created_at, now())",
    "created_at": "COALESCE(i.created_at, now())",
    "updated_at": "COALESCE(i.updated_at, i.created_at, now())",
    **{name: _here(name) for name in POINTERS},
}
_NUMBERED = ", ".join("COALESCE(v.created_at, now())" if name == "created_at" else f"v.{name}" for name in _VERSIONS)


def _values(computed: Mapping[str, str]) -> str:
    return ", ".join(computed.get(name, f"i.{name}") for name in COLUMNS)


# Where vectors lie beside the memories, they go there, and the memory's own column stays empty.
_VECTORED = """, vectored AS (
        INSERT INTO ibex_core.memory_vectors (org_id, space_id, id, content_hash, dimensions, embedding)
        SELECT :org_id, CAST(:space_id AS uuid), i.id, i.content_hash, vector_dims(i.embedding), i.embedding
        FROM inserted n JOIN input i ON i.id = n.id WHERE i.embedding IS NOT NULL
    )"""
_ACTIVE = "i.status = 'active' AND i.deleted_at IS NULL"
_TWIN = f"""m.org_id = :org_id AND m.agent_id = i.agent_id AND m.content_hash = i.content_hash
            AND m.status = 'active' AND m.deleted_at IS NULL AND {_ACTIVE}"""

_LOAD_SQL = f"""
    WITH input AS ({_unnest(_INPUT)}), refused AS MATERIALIZED (
        SELECT i.id FROM input i WHERE NOT :include_erased AND (
            EXISTS (SELECT FROM ibex_core.erasure_tombstones t
                WHERE t.org_id = :org_id AND t.subject_id IN (i.id, i.origin_id) AND t.subject_kind = 'memory')
            OR EXISTS (SELECT FROM ibex_core.erasure_tombstones t
                WHERE t.org_id = :org_id AND t.fingerprint IN (i.fingerprint, i.origin_fingerprint)
                    AND t.subject_kind = 'memory'))
    ), known AS MATERIALIZED (
        SELECT m.id FROM ibex_core.memories m JOIN input i ON m.org_id = :org_id AND m.id = i.id
    ), fresh AS MATERIALIZED (
        SELECT i.* FROM input i
        WHERE i.id NOT IN (SELECT id FROM refused) AND i.id NOT IN (SELECT id FROM known)
    ), expired AS MATERIALIZED (
        SELECT m.id FROM ibex_core.memories m JOIN fresh i ON {_TWIN} AND m.expires_at <= now()
        ORDER BY m.id FOR NO KEY UPDATE OF m
    ), retired AS (
        UPDATE ibex_core.memories m SET deleted_at = now() FROM expired
        WHERE m.org_id = :org_id AND m.id = expired.id
        RETURNING 1
    ), inserted AS (
        INSERT INTO ibex_core.memories (org_id, {", ".join(COLUMNS)})
        SELECT :org_id, {{values}} FROM fresh i WHERE (SELECT count(*) FROM retired) >= 0
        ON CONFLICT DO NOTHING
        RETURNING id, session_id, {", ".join(POINTERS)}
    ), tagged AS (
        INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag, created_at)
        SELECT :org_id, t.memory_id, t.tag, COALESCE(t.created_at, now())
        FROM ({_unnest(_TAGS, "tags_")}) t JOIN inserted n ON n.id = t.memory_id
    ), versioned AS (
        INSERT INTO ibex_core.memory_versions (org_id, {", ".join(_VERSIONS)})
        SELECT :org_id, {_NUMBERED}
        FROM ({_unnest(_VERSIONS, "versions_")}) v JOIN inserted n ON n.id = v.memory_id
    ){{vectored}}
    SELECT i.id, CASE WHEN n.id IS NOT NULL THEN 'created' WHEN x.id IS NOT NULL THEN 'erased'
            WHEN k.id IS NOT NULL THEN 'known' WHEN m.id IS NOT NULL THEN 'duplicate' END,
        m.id, n.session_id IS DISTINCT FROM i.session_id,
        {", ".join(f"n.{name} IS DISTINCT FROM i.{name}" for name in POINTERS)}
    FROM input i
    LEFT JOIN inserted n ON n.id = i.id
    LEFT JOIN refused x ON x.id = i.id
    LEFT JOIN known k ON k.id = i.id
    LEFT JOIN ibex_core.memories m ON {_TWIN} AND n.id IS NULL AND x.id IS NULL AND k.id IS NULL
        AND (m.expires_at IS NULL OR m.expires_at > now())
    """


def _load(*, beside: bool) -> TextClause:
    values = _values({**_COMPUTED, "embedding": "NULL"} if beside else _COMPUTED)
    statement = text(_LOAD_SQL.format(values=values, vectored=_VECTORED if beside else ""))
    if beside:
        statement = statement.bindparams(bindparam("space_id", type_=Uuid()))
    return statement.bindparams(
        bindparam("org_id", type_=Uuid()),
        bindparam("include_erased", type_=Boolean()),
        *(
            bindparam(f"{prefix}{name}", type_=NullType())
            for prefix, columns in (("", _INPUT), ("tags_", _TAGS), ("versions_", _VERSIONS))
            for name in columns
        ),
    )


_LOAD = {beside: _load(beside=beside) for beside in (False, True)}

_EDGES = text(
    f"""
    WITH input AS ({_unnest(EDGE_COLUMNS)}), here AS (
        SELECT i.* FROM input i
        JOIN ibex_core.memories s ON s.org_id = :org_id AND s.id = i.source_memory_id
        JOIN ibex_core.memories t ON t.org_id = :org_id AND t.id = i.target_memory_id
        WHERE i.source_memory_id <> i.target_memory_id
    ), made AS (
        INSERT INTO ibex_core.memory_relationships (org_id, {", ".join(EDGE_COLUMNS)})
        SELECT :org_id, source_memory_id, target_memory_id, relationship_type, COALESCE(confidence, 1), notes,
            COALESCE(created_at, now())
        FROM here ORDER BY source_memory_id, target_memory_id, relationship_type
        ON CONFLICT DO NOTHING RETURNING 1
    )
    SELECT (SELECT count(*) FROM made), (SELECT count(*) FROM here)
    """
).bindparams(bindparam("org_id", type_=Uuid()), *(bindparam(name, type_=NullType()) for name in EDGE_COLUMNS))

_POINT = {
    name: text(
        f"""
    UPDATE ibex_core.memories m SET {name} = t.id FROM ibex_core.memories t
    WHERE m.org_id = :org_id AND m.id = :id AND t.org_id = :org_id AND t.id = :target AND m.id <> t.id
    RETURNING 1
    """
    ).bindparams(*(bindparam(one, type_=Uuid()) for one in ("org_id", "id", "target")))
    for name in POINTERS
}


class Loader:
    """Loads batches into one organization.

    Args:
        execute: the repository's.
        org_id: the organization.
        binary: the connections have the binary vector codec.
        key: of the organization's fingerprints; None where nothing was ever erased.
        include_erased: also bring in what was erased here.
        on_item: told of each memory.
        space: where vectors go; held until the transaction ends.
        sharded: statements go through Citus, which takes less in one of them.
    """

    def __init__(
        self,
        execute: Execute,
        org_id: UUID,
        *,
        binary: bool,
        key: bytes | None,
        include_erased: bool,
        on_item: Callable[[ImportedItem], None] | None,
        space: Space = AT_HOME,
        sharded: bool = False,
    ) -> None:
        self.space = space
        self._sharded = sharded
        self._execute = execute
        self._org_id = org_id
        self._binary = binary
        self._key = key
        self._include_erased = include_erased
        self._on_item = on_item
        self._waiting: list[tuple[UUID, str, UUID]] = []
        self.twins: dict[UUID, UUID] = {}
        self.report = Imported()

    async def load(self, batch: Sequence[Incoming]) -> None:
        """Bring in one batch, of which no two have one id.

        Raises:
            SerializationError: another transaction always was first.
        """
        for one in batch:
            for name in POINTERS:
                one.values[name] = self.twins.get(one.values[name], one.values[name])
        rest = {one.values["id"]: one for one in sorted(batch, key=lambda one: one.place)}
        for _ in range(_TRIES):
            rows = await self._load(list(rest.values()))
            for ident, outcome, twin, *missing in rows:
                if outcome is not None:
                    self._note(rest.pop(ident), ImportOutcome(outcome), twin, missing)
            if not rest:
                return
        raise SerializationError("another transaction kept inserting and removing the same content; run it again")

    async def _load(self, batch: Sequence[Incoming]) -> Sequence[Sequence[Any]]:
        if self._sharded:
            fingerprints = [
                [self._fingerprint(one, one.values["agent_id"]), self._fingerprint(one, one.origin_agent_id)]
                for one in batch
            ]
            versions = [one.versions or [_first(one)] for one in batch]
            return await sharded.load(
                *(self._execute, self._org_id, self.space, batch),
                fingerprints=fingerprints,
                versions=versions,
                include_erased=self._include_erased,
            )
        rows = await self._execute(_LOAD[self.space.id is not None], self._parameters(batch))
        return cast("Sequence[Sequence[Any]]", rows.all())

    async def relate(self, edges: Sequence[Mapping[str, Any]]) -> None:
        """Draw one batch of relationships between memories that are here."""
        ends = ("source_memory_id", "target_memory_id")
        rows = [{**edge, **{end: self.twins.get(edge[end], edge[end]) for end in ends}} for edge in edges]
        if self._sharded:
            made, here = await sharded.relate(self._execute, self._org_id, rows)
            self.report.relationships += made
            self.report.dropped_links += len(rows) - here
            return
        parameters = {name: [row[name] for row in rows] for name in EDGE_COLUMNS}
        made, here = (await self._execute(_EDGES, {"org_id": self._org_id, **parameters})).one()
        self.report.relationships += made
        self.report.dropped_links += len(rows) - here

    async def finish(self) -> Imported:
        """Set the pointers whose targets came later, and return the report."""
        for ident, name, target in self._waiting:
            parameters = {"org_id": self._org_id, "id": ident, "target": self.twins.get(target, target)}
            found = (await self._execute(_POINT[name], parameters)).all()
            self.report.dropped_links += not found
        return self.report

    def skip(self, source_id: str, reason: str) -> None:
        """Note a memory that breaks a rule."""
        self._tell(ImportedItem(source_id, None, ImportOutcome.SKIPPED, reason))

    def _note(self, one: Incoming, outcome: ImportOutcome, twin: UUID | None, missing: Sequence[bool]) -> None:
        """Note what became of one; missing: session and pointers that were not here."""
        ident: UUID | None = one.values["id"]
        if outcome is ImportOutcome.CREATED:
            self.report.dropped_sessions += missing[0]
            absent = (name for name, is_missing in zip(POINTERS, missing[1:], strict=True) if is_missing)
            self._waiting += [(one.values["id"], name, one.values[name]) for name in absent]
        elif outcome is ImportOutcome.DUPLICATE:
            self.twins[one.values["id"]] = cast("UUID", twin)
            ident = twin
        elif outcome is ImportOutcome.ERASED:
            ident = None
        self._tell(ImportedItem(one.source_id, ident, outcome))

    def _tell(self, item: ImportedItem) -> None:
        self.report.count(item.outcome)
        if self._on_item is not None:
            self._on_item(item)

    def _parameters(self, batch: Sequence[Incoming]) -> dict[str, object]:
        found: dict[str, object] = {"org_id": self._org_id, "include_erased": self._include_erased}
        found |= self.space.parameters
        for name, kind in COLUMNS.items():
            values = [one.values[name] for one in batch]
            found[name] = self._sent(values) if kind == "vector" else values
        found["origin_id"] = [one.origin_id for one in batch]
        found["fingerprint"] = [self._fingerprint(one, one.values["agent_id"]) for one in batch]
        found["origin_fingerprint"] = [self._fingerprint(one, one.origin_agent_id) for one in batch]
        tags = [(one.values["id"], *tag) for one in batch for tag in one.tags]
        found |= {f"tags_{name}": [row[at] for row in tags] for at, name in enumerate(_TAGS)}
        versions = [(one.values["id"], version) for one in batch for version in one.versions or [_first(one)]]
        found["versions_memory_id"] = [ident for ident, _ in versions]
        for name, kind in VERSION_COLUMNS.items():
            values = [version[name] for _, version in versions]
            found[f"versions_{name}"] = self._sent(values) if kind == "vector" else values
        return found

    def _sent(self, vectors: Sequence[Any]) -> Sequence[object]:
        if self._binary:
            return vectors
        return [None if vector is None else cast("pgvector.Vector", vector).to_text() for vector in vectors]

    def _fingerprint(self, one: Incoming, agent_id: UUID) -> str | None:
        if self._key is None:
            return None
        return fingerprint(self._key, "memory", agent_id, one.values["content_hash"])


def _first(one: Incoming) -> Mapping[str, object]:
    """Return the first version of a memory that brings none: as it is, from when it was made."""
    same = ("content", "category", "status", "confidence", "metadata", "valid_from", "valid_until", "created_at")
    return {
        **{name: one.values[name] for name in same},
        "version_num": 1,
        "operation": VersionOperation.IMPORTED,
        "replaced_embedding": None,
        "replaced_embedding_model": None,
        "change_reason": None,
        "changed_by": None,
    }
