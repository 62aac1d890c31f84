"""Moving memories: out to a file and in again, everything of them or nothing."""

import asyncio
import json
import tracemalloc
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pytest
from homes import Home
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_core.errors import InvalidInputError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import (
    ExportDamagedError,
    Imported,
    ImportedItem,
    ImportOutcome,
    MemoryRepository,
    SessionRepository,
)
from ibex_db_tenancy import Agent, AgentRepository, OrganizationRepository

Vector = Callable[[int], list[float]]


async def exported(memories: MemoryRepository, **options: Any) -> list[bytes]:
    return [line async for line in memories.export(**options)]


def records(lines: Iterable[bytes], kind: str) -> list[dict[str, Any]]:
    return [found for line in lines if (found := json.loads(line))["kind"] == kind]


def body(lines: list[bytes]) -> list[bytes]:
    """All but header and footer, which name the organization and the time."""
    return lines[1:-1]


def changed(lines: list[bytes], at: int, **fields: object) -> list[bytes]:
    """Change a line, and let the footer be wrong: what is bad in the line is told first."""
    record = {**json.loads(lines[at]), **fields}
    return [*lines[:at], json.dumps(record).encode(), *lines[at + 1 :]]


async def remembered(memories: MemoryRepository, agent_id: UUID, content: str, **fields: object) -> UUID:
    draft: Mapping[str, object] = {"agent_id": agent_id, "content": content, "category": "factual", **fields}
    return (await memories.remember_many([draft])).outcomes[0].id


async def lived(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> list[UUID]:
    """Make memories that have been through everything."""
    many = await memories.remember_many(
        [
            {
                "agent_id": agent_id,
                "content": f"Number {number}: Zoë says \u2028 “hello”.\nTwice.",
                "category": "episodic",
                "embedding": vector(number),
                "embedding_model": "mini",
                "tags": ["Täg", "b"],
                "metadata": {"deep": [{"n": 1.5, "big": 10**30, "text": "é"}], "": None},
                "valid_until": datetime(2999, 1, 1, tzinfo=UTC),
            }
            for number in range(8)
        ]
    )
    ids = [outcome.id for outcome in many.outcomes]
    await memories.update(ids[0], content="Another thing.", embedding=None, confidence=0.123)
    await memories.supersede(ids[1], by=ids[2], reason="better", actor=uuid4())
    await memories.supersede(ids[2], by=ids[3])
    await memories.merge([ids[4], ids[5]], into=ids[3])
    await memories.archive(ids[6])
    await memories.relate(ids[0], ids[7], "contradicts", confidence=0.25, notes="“really”?")
    await memories.record_retrieval(ids[:3])
    await memories.give_feedback(helpful=[ids[0]], unhelpful=[ids[7]])
    await memories.forget(ids[7])
    return ids


async def wiped(database: Database, owner: asyncpg.Connection, home: Home) -> None:
    """Erase an organization and make it again, empty, with its agent."""
    async with database.platform(reason="test") as platform:
        await OrganizationRepository(platform).erase(home.org_id)
    await owner.execute(
        "INSERT INTO ibex_core.organizations (id, name, slug) VALUES ($1, 'Again', 'again')", home.org_id
    )
    await owner.execute(
        "INSERT INTO ibex_core.agents (org_id, id, name, slug) VALUES ($1, $2, 'Support', 'support')",
        home.org_id, home.agent_id,
    )  # fmt: skip


async def test_all_comes_back_as_it_was_to_the_last_bit(
    ibex_db: Database, home: Home, owner: asyncpg.Connection, vector: Vector
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        await lived(MemoryRepository(session), home.agent_id, vector)
    tables = ("memories", "memory_versions", "memory_tags", "memory_relationships")
    before = {table: await _rows(owner, table) for table in tables}
    async with ibex_db.tenant(home.org_id) as session:
        lines = await exported(MemoryRepository(session))
    await wiped(ibex_db, owner, home)

    async with ibex_db.tenant(home.org_id) as session:
        done = await MemoryRepository(session).import_(lines)

    after = {table: await _rows(owner, table) for table in tables}
    assert (done.created, done.memories, done.dropped_links) == (8, 8, 0)
    for table in tables:
        assert after[table] == before[table]
    async with ibex_db.tenant(home.org_id) as session:
        assert body(await exported(MemoryRepository(session))) == body(lines)


async def _rows(owner: asyncpg.Connection, table: str) -> list[tuple[object, ...]]:
    """Return a table as text, without the ids of rows that nothing names."""
    columns = [
        row["attname"]
        for row in await owner.fetch(
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 ORDER BY attname",
            f"ibex_core.{table}",
        )
        if table == "memories" or row["attname"] != "id"
    ]
    read = ", ".join(f"{column}::text" for column in columns)
    return sorted((tuple(row) for row in await owner.fetch(f"SELECT {read} FROM ibex_core.{table}")), key=str)


async def test_a_vector_is_the_same_to_the_last_bit(
    memories: MemoryRepository, agent_id: UUID, session: ScopedSession, owner: asyncpg.Connection
) -> None:
    odd = np.array([1e-45, -0.0, 0.1, 1 / 3, -1, *[0.0] * 379], np.float32)
    await remembered(memories, agent_id, "Odd.", embedding=odd)
    lines = await exported(memories)

    (record,) = records(lines, "memory")
    assert b64decode(record["embedding"]) == odd.astype("<f4").tobytes()
    ident = UUID(record["id"])
    await memories.erase(ident)
    await memories.import_(lines, include_erased=True)
    await session.commit()
    sent = await owner.fetchval("SELECT vector_send(embedding) FROM ibex_core.memories WHERE id = $1", ident)
    assert sent[4:] == odd.astype(">f4").tobytes()


async def test_an_empty_organization_makes_a_file_too(memories: MemoryRepository, org_id: UUID) -> None:
    lines = await exported(memories)

    assert [json.loads(line)["kind"] for line in lines] == ["header", "footer"]
    assert json.loads(lines[0])["organization"]["id"] == str(org_id)
    assert await memories.import_(lines) == Imported()


@pytest.mark.usefixtures("other_agent_id")
async def test_the_header_tells_whose_they_are_and_how_many(memories: MemoryRepository, agent_id: UUID) -> None:
    await remembered(memories, agent_id, "One.")
    told: list[tuple[int, int]] = []

    def note(done: int, of: int) -> None:
        told.append((done, of))

    header = json.loads((await exported(memories, progress=note))[0])

    assert (header["format"], header["version"], header["dimensions"], header["memories"]) == (
        *("ibex-db-memories", 1, 384, 1),
    )
    assert [agent["slug"] for agent in header["agents"]] == ["support"]
    assert header["revisions"].keys() == {"core", "tenancy", "memory"}
    assert told == [(1, 1)]


async def test_an_export_of_some_agents_holds_what_lies_between_their_memories(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID
) -> None:
    mine, mine_too = await remembered(memories, agent_id, "A."), await remembered(memories, agent_id, "B.")
    theirs = await remembered(memories, other_agent_id, "C.")
    await memories.relate(mine, mine_too, "related_to")
    await memories.relate(mine, theirs, "related_to")
    await memories.forget(mine_too)

    lines = await exported(memories, agents=[agent_id])
    live = await exported(memories, agents=[agent_id], include_deleted=False, versions=False)

    assert {record["id"] for record in records(lines, "memory")} == {str(mine), str(mine_too)}
    assert [record["target_memory_id"] for record in records(lines, "relationship")] == [str(mine_too)]
    assert [record["id"] for record in records(live, "memory")] == [str(mine)]
    assert [record["versions"] for record in records(live, "memory")] == [[]]
    assert records(live, "relationship") == []


async def test_what_is_superseded_comes_after_what_took_its_place(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await lived(memories, agent_id, vector)

    seen: set[str] = set()
    for record in records(await exported(memories), "memory"):
        assert {record["superseded_by"], record["merged_into"]} - {None} <= seen
        seen.add(record["id"])


async def test_an_export_is_one_moments_view(ibex_db: Database, home: Home, memories: MemoryRepository) -> None:
    await memories.remember_many(
        [{"agent_id": home.agent_id, "content": f"Number {n}.", "category": "factual"} for n in range(500)]
    )
    await memories.session.commit()
    lines: list[bytes] = []
    export = memories.export()
    lines.append(await anext(export))
    async with ibex_db.tenant(home.org_id) as other:
        await other.execute(text("DELETE FROM ibex_core.memories"))
        await remembered(MemoryRepository(other), home.agent_id, "Later.")
    lines += [line async for line in export]

    assert len(records(lines, "memory")) == 500
    assert b"Later." not in b"".join(lines)


# -- what is known already


async def test_importing_again_adds_nothing_and_changes_nothing(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    ids = await lived(memories, agent_id, vector)
    lines = await exported(memories)
    await memories.update(ids[0], usefulness_score=0.77)
    now = await exported(memories)

    done = await memories.import_(lines)

    assert done == Imported(known=8)
    assert body(await exported(memories)) == body(now)


async def test_what_another_row_says_already_is_a_duplicate_and_links_lead_to_that(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    said = [await remembered(memories, agent_id, content) for content in ("Tea.", "Coffee.", "Milk.")]
    await memories.relate(said[0], said[1], "related_to")
    await memories.supersede(said[2], by=said[0])
    lines = await exported(memories)
    for ident in said:
        await memories.erase(ident)
    tea = await remembered(memories, agent_id, "tea.")
    items: list[ImportedItem] = []

    done = await memories.import_(lines, include_erased=True, on_item=items.append)

    assert (done.created, done.duplicates, done.relationships) == (2, 1, 2)
    assert ImportedItem(str(said[0]), tea, ImportOutcome.DUPLICATE) in items
    assert [neighbor.memory.id for neighbor in await memories.neighbors(tea, types=["related_to"])] == [said[1]]
    assert (await memories.current(said[2])).id == tea


async def test_a_twin_that_has_expired_counts_as_gone(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await remembered(memories, agent_id, "Tea.")
    lines = await exported(memories)
    await memories.erase(ident)
    old = await remembered(memories, agent_id, "Tea.", expires_at=datetime.now(UTC) - timedelta(hours=1))

    done = await memories.import_(lines, include_erased=True)

    assert done.created == 1
    assert await memories.get_or_none(old) is None
    assert (await memories.get(ident)).content == "Tea."


# -- what was erased


async def test_an_erased_memory_is_refused_by_its_id_and_by_what_it_said(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    ident = await remembered(memories, agent_id, "Wears a wig.")
    kept = await remembered(memories, agent_id, "Likes tea.")
    lines = await exported(memories)
    await memories.update(ident, content="Is bald.", embedding=None)
    await memories.erase(ident)
    copied = await remembered(memories, agent_id, "Is bald!")
    await memories.update(copied, content="is  BALD.", embedding=None)
    other = await exported(memories)
    await memories.erase(copied)
    await memories.erase(kept)
    items: list[ImportedItem] = []

    by_id = await memories.import_(lines, on_item=items.append)
    by_hash = await memories.import_(other)

    assert (by_id.erased, by_id.created) == (2, 0)
    assert (by_hash.erased, by_hash.created) == (2, 0)
    assert ImportedItem(str(ident), None, ImportOutcome.ERASED) in items
    assert await memories.count(include_deleted=True) == 0
    assert (await memories.import_(lines, include_erased=True)).created == 2


async def test_an_erased_memory_does_not_come_back_under_another_agent(
    memories: MemoryRepository, session: ScopedSession, agent_id: UUID, other_agent_id: UUID
) -> None:
    await remembered(memories, agent_id, "Wears a wig.")
    lines = await exported(memories)
    await AgentRepository(session).erase(agent_id)

    done = await memories.import_(lines, agents={"support": other_agent_id})

    assert (done.erased, done.created) == (1, 0)


async def test_the_same_words_may_be_said_anew_and_by_others(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID
) -> None:
    ident = await remembered(memories, agent_id, "Likes tea.")
    theirs = await remembered(memories, other_agent_id, "Likes tea.")
    lines = await exported(memories, agents=[other_agent_id])
    await memories.erase(ident)
    await memories.session.execute(text("DELETE FROM ibex_core.memories"))

    assert (await memories.import_(lines)).created == 1
    assert (await memories.get(theirs)).agent_id == other_agent_id
    said = await memories.remember(agent_id=agent_id, content="Likes tea.", category="factual")
    assert said.created


async def test_erasing_waits_for_an_import_and_takes_what_it_brought(small_pool: Database, home: Home) -> None:
    async with small_pool.tenant(home.org_id) as session:
        ident = await remembered(MemoryRepository(session), home.agent_id, "Tea.")
        lines = await exported(MemoryRepository(session))
        await session.execute(text("DELETE FROM ibex_core.memories"))

    async def erase() -> int:
        async with small_pool.tenant(home.org_id) as session:
            return (await MemoryRepository(session).erase(ident))["memories"]

    async with small_pool.tenant(home.org_id) as session:
        await MemoryRepository(session).import_(lines)
        erasing = asyncio.create_task(asyncio.wait_for(erase(), 10))
        await asyncio.sleep(0.3)
        assert not erasing.done()

    assert await erasing == 1


# -- elsewhere


async def test_another_organization_gets_its_own_ids_the_same_each_time(
    ibex_db: Database, home: Home, other_home: Home, vector: Vector
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        ids = await lived(MemoryRepository(session), home.agent_id, vector)
        lines = await exported(MemoryRepository(session))

    async with ibex_db.tenant(other_home.org_id) as session:
        theirs = MemoryRepository(session)
        first, second = await theirs.import_(lines), await theirs.import_(lines)
        there = await exported(theirs)

    assert (first.created, first.relationships, first.dropped_links) == (8, len(records(lines, "relationship")), 0)
    assert second == Imported(known=8)
    found = records(there, "memory")
    assert not {record["id"] for record in found} & {str(ident) for ident in ids}
    assert {record["agent_id"] for record in found} == {str(other_home.agent_id)}

    def plain(record: dict[str, Any]) -> str:
        return json.dumps(
            {k: v for k, v in record.items() if k not in {"id", "agent_id", "superseded_by", "merged_into"}}
        )

    assert sorted(map(plain, found)) == sorted(map(plain, records(lines, "memory")))
    chains = [sum(record[name] is not None for record in found) for name in ("superseded_by", "merged_into")]
    assert chains == [2, 2]


@pytest.mark.parametrize("by", ["id to id", "slug to id", "slug to slug", "id to slug", "id as text"])
async def test_an_agents_memories_become_anothers(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, by: str
) -> None:
    await remembered(memories, agent_id, "Tea.")
    lines = await exported(memories)
    agents: dict[str, Mapping[UUID | str, UUID | str]] = {
        "id to id": {agent_id: other_agent_id},
        "slug to id": {"support": other_agent_id},
        "slug to slug": {"support": "sales"},
        "id to slug": {agent_id: "sales"},
        "id as text": {str(agent_id): str(other_agent_id)},
    }

    done = await memories.import_(lines, agents=agents[by])

    assert done.created == 1
    assert {record["agent_id"] for record in records(await exported(memories), "memory")} == {
        *(str(agent_id), str(other_agent_id))
    }


async def test_agents_that_are_not_here_are_named_or_made(
    ibex_db: Database, home: Home, other_home: Home, other_agent_id: UUID
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        await remembered(MemoryRepository(session), other_agent_id, "Tea.")
        lines = await exported(MemoryRepository(session))

    async with ibex_db.tenant(other_home.org_id) as session:
        theirs = MemoryRepository(session)
        with pytest.raises(InvalidInputError, match="create_agents"):
            await theirs.import_(lines)
        wrong: list[dict[UUID | str, UUID | str]] = [{"sales": "nobody"}, {"sales": uuid4()}, {"marketing": "sales"}]
        for agents in wrong:
            with pytest.raises(InvalidInputError):
                await theirs.import_(lines, agents=agents)
        assert (await theirs.import_(lines, create_agents=True)).created == 1
        assert (await theirs.import_(lines)).known == 1
        made = await AgentRepository(session).by_slug("sales")
        assert made is not None
        assert made.id != other_agent_id


async def test_a_session_that_is_not_here_is_left_out_and_counted(
    ibex_db: Database, home: Home, other_home: Home
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        run = await SessionRepository(session).start(agent_id=home.agent_id)
        ident = await remembered(MemoryRepository(session), home.agent_id, "Tea.", session_id=run.id)
        lines = await exported(MemoryRepository(session))
        await session.execute(text("DELETE FROM ibex_core.memories"))
        assert (await MemoryRepository(session).import_(lines)).dropped_sessions == 0
        assert (await MemoryRepository(session).get(ident)).session_id == run.id

    async with ibex_db.tenant(other_home.org_id) as session:
        done = await MemoryRepository(session).import_(lines)
    assert (done.created, done.dropped_sessions) == (1, 1)


async def test_pointers_in_a_circle_come_back(
    memories: MemoryRepository, agent_id: UUID, session: ScopedSession
) -> None:
    ids = [await remembered(memories, agent_id, f"Number {number}.") for number in range(3)]
    for at, ident in enumerate(ids):
        await session.execute(
            text("UPDATE ibex_core.memories SET superseded_by = :next, status = 'superseded' WHERE id = :id"),
            {"id": ident, "next": ids[(at + 1) % 3]},
        )
    lines = await exported(memories)
    await session.execute(text("DELETE FROM ibex_core.memories"))

    done = await memories.import_(lines, batch_size=1)

    assert (done.created, done.dropped_links) == (3, 0)
    again = records(await exported(memories), "memory")
    assert {record["id"]: record["superseded_by"] for record in again} == {
        str(ident): str(ids[(at + 1) % 3]) for at, ident in enumerate(ids)
    }


async def test_a_pointer_out_of_the_file_is_left_out_and_counted(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, session: ScopedSession
) -> None:
    old, new = await remembered(memories, agent_id, "Old."), await remembered(memories, other_agent_id, "New.")
    await memories.supersede(old, by=new)
    lines = await exported(memories, agents=[agent_id])
    await session.execute(text("DELETE FROM ibex_core.memories"))

    done = await memories.import_(lines)

    assert (done.created, done.dropped_links) == (1, 1)


# -- damage


async def test_a_file_that_was_cut_off_anywhere_leaves_nothing(ibex_db: Database, home: Home, vector: Vector) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        await lived(MemoryRepository(session), home.agent_id, vector)
        whole = b"".join(await exported(MemoryRepository(session)))
        await session.execute(text("DELETE FROM ibex_core.memories"))
        memories = MemoryRepository(session)
        ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
        cuts = sorted({0, 1, 100, *(end + step for end in ends[:-1] for step in (-1, 0, 1, 40)), len(whole) - 2})
        for cut in cuts:
            with pytest.raises(ExportDamagedError) as caught:
                await memories.import_(whole[:cut].splitlines(keepends=True), batch_size=2)
            assert caught.value.line <= len(ends)
        assert await memories.count(include_deleted=True) == 0
        assert (await memories.import_(whole.splitlines(keepends=True))).created == 8


Damage = Callable[[list[bytes]], list[bytes]]

_BARE_HEADER = b'{"kind": "header", "format": "ibex-db-memories", "version": 1, "dimensions": 384}'
DAMAGES: list[tuple[Damage, str]] = [
    (lambda lines: [*lines[:1], *lines[2:]], "missing"),
    (lambda lines: [*lines[:2], lines[1], *lines[2:]], "were read"),
    (lambda lines: [*lines[:-1], lines[-2], lines[-1]], "were read"),
    (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "SHA-256"),
    (lambda lines: [line.replace(b"Tea", b"Gin") for line in lines], "SHA-256"),
    (lambda lines: [*lines, lines[1]], "after the footer"),
    (lambda lines: lines[1:], "header"),
    (lambda lines: [*lines[:1], b"[]", *lines[1:]], "no JSON object"),
    (lambda lines: [*lines[:1], b'{"kind": "gossip"}', *lines[1:]], "gossip"),
    (lambda _: [b"\x89PNG\r\n"], "no export"),
    (lambda _: [_BARE_HEADER], "whole"),
    (lambda _: [b"[" * 100_000], "no export"),
]


@pytest.mark.parametrize(("damage", "why"), DAMAGES)
async def test_a_file_that_was_changed_leaves_nothing(
    memories: MemoryRepository, agent_id: UUID, damage: Damage, why: str
) -> None:
    for content in ("Tea.", "Coffee.", "Milk."):
        await remembered(memories, agent_id, content)
    lines = await exported(memories)
    await memories.session.execute(text("DELETE FROM ibex_core.memories"))

    with pytest.raises(ExportDamagedError, match=why):
        await memories.import_(damage(lines))
    assert await memories.count() == 0


async def test_newlines_of_another_system_do_no_harm(
    memories: MemoryRepository, agent_id: UUID, tmp_path: Path
) -> None:
    await remembered(memories, agent_id, "Tea.\r\nTwo lines.")
    lines = await exported(memories)
    (tmp_path / "unix").write_bytes(b"".join(lines))
    (tmp_path / "dos").write_bytes(b"".join(line.replace(b"\n", b"\r\n") for line in lines) + b"\r\n")

    with (tmp_path / "unix").open("rb") as unix, (tmp_path / "dos").open("rb") as dos:
        assert (await memories.import_(unix)).known == 1
        assert (await memories.import_(dos)).known == 1
    with (tmp_path / "unix").open(encoding="utf-8", newline="\n") as as_text:
        assert (await memories.import_(as_text)).known == 1

    async def streamed() -> AsyncIterator[bytes]:
        for line in lines:
            yield line

    assert (await memories.import_(streamed())).known == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embedding", "AAAA"),
        ("embedding", "%%%"),
        ("embedding", 7),
        ("content", ""),
        ("content", "x" * 8193),
        ("content", "a\x00b"),
        ("category", "gossip"),
        ("status", "asleep"),
        ("confidence", 1.5),
        ("confidence", "high"),
        ("created_at", "yesterday"),
        ("created_at", "2026-01-01T00:00:00"),
        ("valid_until", "1999-01-01T00:00:00Z"),
        ("metadata", []),
        ("metadata", {"a": "\x00"}),
        ("metadata", {"a": float("nan")}),
        ("tags", "drinks"),
        ("id", None),
        ("id", "one"),
        ("agent_id", str(UUID(int=7))),
        ("favourite", True),
        ("versions", {}),
        ("versions", [7]),
        ("retrieval_count", -1),
    ],
)
async def test_a_bad_value_is_told_with_its_line(
    memories: MemoryRepository, agent_id: UUID, field: str, value: object
) -> None:
    await remembered(memories, agent_id, "Tea.")
    await remembered(memories, agent_id, "Coffee.")
    lines = changed(await exported(memories), 2, **{field: value})
    await memories.session.execute(text("DELETE FROM ibex_core.memories"))

    with pytest.raises(InvalidInputError) as caught:
        await memories.import_(lines, batch_size=1)
    assert (caught.value.field, caught.value.index) == (field, 3)
    assert await memories.count() == 0


@pytest.mark.parametrize(("field", "value"), [("version", 2), ("dimensions", 1536)])
async def test_a_file_of_another_kind_of_store_is_told(memories: MemoryRepository, field: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=field):
        await memories.import_(changed(await exported(memories), 0, **{field: value}))


async def test_history_with_gaps_is_refused(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await remembered(memories, agent_id, "Tea.")
    await memories.update(ident, content="Green tea.", embedding=None)
    lines = await exported(memories)
    versions = records(lines, "memory")[0]["versions"]

    with pytest.raises(InvalidInputError, match="version_num"):
        await memories.import_(changed(lines, 1, versions=versions[1:]))


# -- beside others


async def test_one_file_imported_many_times_at_once_comes_in_once(
    small_pool: Database, home: Home, other_home: Home, vector: Vector, owner: asyncpg.Connection
) -> None:
    async with small_pool.tenant(home.org_id) as session:
        await lived(MemoryRepository(session), home.agent_id, vector)
        lines = await exported(MemoryRepository(session))

    async def bring(session: ScopedSession, size: int) -> Imported:
        return await MemoryRepository(session).import_(lines, batch_size=size)

    done = await asyncio.gather(*(small_pool.run(other_home.org_id, bring, 1 + at % 8) for at in range(8)))

    count = "SELECT count(*) FROM ibex_core.{} WHERE org_id = $1"
    assert sum(one.created for one in done) == 8
    assert all(one.memories == 8 for one in done)
    assert await owner.fetchval(count.format("memories"), other_home.org_id) == 8
    for table in ("memory_versions", "memory_tags", "memory_relationships"):
        of = [await owner.fetchval(count.format(table), org) for org in (home.org_id, other_home.org_id)]
        assert of[0] == of[1]


async def test_an_import_beside_writers_of_the_same_contents(
    small_pool: Database, home: Home, owner: asyncpg.Connection
) -> None:
    drafts = [{"agent_id": home.agent_id, "content": f"Number {n}.", "category": "factual"} for n in range(100)]
    async with small_pool.tenant(home.org_id) as session:
        await MemoryRepository(session).remember_many(drafts)
        lines = await exported(MemoryRepository(session))
        await session.execute(text("DELETE FROM ibex_core.memories"))

    async def bring(session: ScopedSession) -> int:
        return (await MemoryRepository(session).import_(lines, batch_size=30)).created

    async def write(session: ScopedSession) -> int:
        return (await MemoryRepository(session).remember_many(drafts, batch_size=30)).created

    made = await asyncio.gather(*(small_pool.run(home.org_id, one) for one in (bring, write, bring, write)))

    assert sum(made) == 100
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memories") == 100


async def test_memory_stays_flat_whatever_the_number(ibex_db: Database, home: Home, other_home: Home) -> None:
    padding = "words " * 40
    drafts = ({"agent_id": home.agent_id, "content": f"{n} {padding}", "category": "factual"} for n in range(12_000))
    async with ibex_db.tenant(home.org_id) as session:
        await MemoryRepository(session).remember_many(drafts)
    high: list[int] = []

    def note(done: int, _of: int) -> None:
        if done % 1000 == 0:
            high.append(tracemalloc.get_traced_memory()[0])

    async with ibex_db.tenant(home.org_id) as source, ibex_db.tenant(other_home.org_id) as target:
        tracemalloc.start()
        try:
            done = await MemoryRepository(target).import_(MemoryRepository(source).export(progress=note), progress=note)
        finally:
            tracemalloc.stop()

    # Lines and rows of 1 kB each that were kept would be 8 MB here.
    assert done.created == 12_000
    assert max(high[-4:]) - max(high[4:8]) < 1_000_000


async def test_an_agent_of_the_file_is_made_again_with_its_id_where_it_comes_home(
    ibex_db: Database, home: Home
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        ident = await remembered(MemoryRepository(session), home.agent_id, "Tea.")
        lines = await exported(MemoryRepository(session))
        await session.execute(text("DELETE FROM ibex_core.agents"))
        await MemoryRepository(session).import_(lines, create_agents=True)
        assert (await MemoryRepository(session).get(ident)).agent_id == home.agent_id
        assert await session.get(Agent, home.agent_id) is not None
