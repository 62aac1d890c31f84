"""Bringing memories in where statements go through Citus: the steps of one batch, as loading.py has them in one."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

from sqlalchemy import ARRAY, Table, Text, Uuid, bindparam, text
from sqlalchemy.dialects.postgresql import insert

from ibex_db_core.sharding import set_local
from ibex_db_memory.models import MemoryRelationship, MemoryTag, MemoryVersion
from ibex_db_memory.repositories.memory.sharded import insert_memories, insert_rows, insert_vectors, retire
from ibex_db_memory.search.spaces import Space
from ibex_db_memory.transfer.incoming import COLUMNS, EDGE_COLUMNS, POINTERS, VERSION_COLUMNS, Incoming

Execute = Callable[..., Awaitable[Any]]

_IDS = bindparam("ids", type_=ARRAY(Uuid()))
_ORG = bindparam("org_id", type_=Uuid())
_HERE = {
    table: text(f"SELECT id FROM ibex_core.{table} WHERE org_id = :org_id AND id = ANY(:ids)").bindparams(_ORG, _IDS)
    for table in ("memories", "sessions")
}
_ERASED = text(
    """
    SELECT subject_id, fingerprint FROM ibex_core.erasure_tombstones WHERE org_id = :org_id
        AND subject_kind = 'memory' AND (subject_id = ANY(:ids) OR fingerprint = ANY(:fingerprints))
    """
).bindparams(_ORG, _IDS, bindparam("fingerprints", type_=ARRAY(Text())))
_TWINS = text(
    """
    SELECT m.id, m.agent_id, m.content_hash FROM ibex_core.memories m
    JOIN unnest(CAST(:agent_ids AS uuid[]), CAST(:hashes AS text[])) AS i (agent_id, content_hash)
        ON m.agent_id = i.agent_id AND m.content_hash = i.content_hash
    WHERE m.org_id = :org_id AND m.status = 'active' AND m.deleted_at IS NULL
        AND (m.expires_at IS NULL OR m.expires_at > now())
    """
).bindparams(_ORG, bindparam("agent_ids", type_=ARRAY(Uuid())), bindparam("hashes", type_=ARRAY(Text())))


async def load(
    execute: Execute,
    org_id: UUID,
    space: Space,
    batch: Sequence[Incoming],
    *,
    fingerprints: Sequence[Sequence[str | None]],
    versions: Sequence[Sequence[Mapping[str, Any]]],
    include_erased: bool,
) -> Sequence[Sequence[Any]]:
    """Load a batch; return what loading's one statement does: id, outcome, twin, and what was not here."""
    ids = [cast("UUID", one.values["id"]) for one in batch]
    erased = set[UUID]() if include_erased else await _erased(execute, org_id, batch, fingerprints)
    known = await _here(execute, org_id, "memories", ids)
    fresh = [one for one in batch if one.values["id"] not in erased | known]
    twins = _twins(org_id, fresh)
    await retire(execute, twins)
    sessions = await _here(execute, org_id, "sessions", [one.values["session_id"] for one in fresh])
    targets = await _here(execute, org_id, "memories", [one.values[name] for one in fresh for name in POINTERS])
    rows = [{"org_id": org_id, **_row(one, sessions, targets, space)} for one in fresh]
    await execute(text(set_local("app.versions_follow", "on")))
    inserted = await insert_memories(execute, rows)
    await execute(text(set_local("app.versions_follow", "off")))
    made = [(one, told) for one, told in zip(batch, versions, strict=True) if one.values["id"] in inserted]
    await insert_rows(
        execute,
        cast("Table", MemoryTag.__table__),
        [
            {"org_id": org_id, "memory_id": one.values["id"], "tag": tag, "created_at": created_at}
            for one, _ in made
            for tag, created_at in one.tags
        ],
    )
    await insert_rows(
        execute,
        cast("Table", MemoryVersion.__table__),
        [
            {"org_id": org_id, "memory_id": one.values["id"], **_version(version)}
            for one, told in made
            for version in told
        ],
    )
    await insert_vectors(execute, [one.values for one, _ in made], org_id, space)
    found: Sequence[Any] = (await execute(_TWINS, twins)).all() if len(inserted) < len(fresh) else []
    held = {(agent_id, content_hash): ident for ident, agent_id, content_hash in found}
    told = {row["id"]: row for row in rows}
    return [_outcome(one, erased=erased, known=known, inserted=inserted, held=held, rows=told) for one in batch]


def _outcome(
    one: Incoming,
    *,
    erased: set[UUID],
    known: set[UUID],
    inserted: Mapping[UUID, bool],
    held: Mapping[tuple[UUID, str], UUID],
    rows: Mapping[UUID, Mapping[str, Any]],
) -> Sequence[Any]:
    ident = cast("UUID", one.values["id"])
    if ident in inserted:
        missing = [rows[ident][name] != one.values[name] for name in ("session_id", *POINTERS)]
        return (ident, "created", None, *missing)
    if ident in erased or ident in known:
        return (ident, "erased" if ident in erased else "known", None)
    twin = held.get((one.values["agent_id"], one.values["content_hash"]))
    return (ident, "duplicate" if twin is not None and _active(one) else None, twin)


def _row(one: Incoming, sessions: set[UUID], targets: set[UUID], space: Space) -> dict[str, Any]:
    """Return the columns of a memory, of its links those alone that lead somewhere here."""
    row = {name: one.values[name] for name in COLUMNS} | {"metadata": json.loads(one.values["metadata"])}
    if row["session_id"] not in sessions:
        row["session_id"] = None
    row |= {name: None for name in POINTERS if row[name] not in targets}
    row["valid_from"] = row["valid_from"] or row["created_at"]
    row["updated_at"] = row["updated_at"] or row["created_at"]
    if space.id is not None:
        row["embedding"] = None
    return row


def _version(version: Mapping[str, Any]) -> dict[str, Any]:
    return {name: version[name] for name in VERSION_COLUMNS} | {"metadata": json.loads(version["metadata"])}


def _active(one: Incoming) -> bool:
    return one.values["status"] == "active" and one.values["deleted_at"] is None


def _twins(org_id: UUID, batch: Sequence[Incoming]) -> Mapping[str, object]:
    active = [one for one in batch if _active(one)]
    return {
        "org_id": org_id,
        "agent_ids": [one.values["agent_id"] for one in active],
        "hashes": [one.values["content_hash"] for one in active],
    }


async def _here(execute: Execute, org_id: UUID, table: str, idents: Sequence[UUID | None]) -> set[UUID]:
    wanted = sorted({ident for ident in idents if ident is not None})
    if not wanted:
        return set()
    return set((await execute(_HERE[table], {"org_id": org_id, "ids": wanted})).scalars().all())


async def _erased(
    execute: Execute, org_id: UUID, batch: Sequence[Incoming], fingerprints: Sequence[Sequence[str | None]]
) -> set[UUID]:
    ids = [ident for one in batch for ident in (one.values["id"], one.origin_id) if ident is not None]
    told = [one for pair in fingerprints for one in pair if one is not None]
    rows = (await execute(_ERASED, {"org_id": org_id, "ids": ids, "fingerprints": told})).all()
    subjects, known = {row[0] for row in rows}, {row[1] for row in rows}
    return {
        one.values["id"]
        for one, pair in zip(batch, fingerprints, strict=True)
        if {one.values["id"], one.origin_id} & subjects or set(pair) & known
    }


async def relate(execute: Execute, org_id: UUID, rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Draw edges between memories that are here; return how many are new, and how many lead somewhere."""
    ends = ("source_memory_id", "target_memory_id")
    there = await _here(execute, org_id, "memories", [row[end] for row in rows for end in ends])
    here = [row for row in rows if row[ends[0]] != row[ends[1]] and {row[end] for end in ends} <= there]
    made = 0
    for row in here:
        edge = {name: row[name] for name in EDGE_COLUMNS if row[name] is not None}
        statement = insert(MemoryRelationship).values(org_id=org_id, **edge).on_conflict_do_nothing()
        made += len((await execute(statement.returning(MemoryRelationship.id))).all())
    return made, len(here)
