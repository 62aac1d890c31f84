"""An organization that came after the statistics is read by what is asked for; counted in rows, never timed.

Of an organization that a partition's statistics do not know the planner expects one row: by any index that begins
with the organization all its rows then cost what one row by the primary key does.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from homes import Home, neighbour_of
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_memory import EMBEDDING_DIMENSIONS, MemoryRepository, Session, SessionRepository, TagCount

ROWS = 600
# Rows and entries that are read for one that is asked for: it, what points at it, what it points at.
A_HANDFUL = 12
ASKED = 10
EDGES = 2

# What the indexes gave, and what scans of whole tables did; an index-only scan counts, too.
READ = """
SELECT ((SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname ~ tables)
    + (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname ~ tables))::int
FROM (VALUES ('^(memories_p|memory_tags|memory_relationships|memory_versions|sessions)')) AS of (tables)
"""

Work = Callable[[MemoryRepository, list[UUID]], Awaitable[object]]


@dataclass(frozen=True)
class Late:
    """An organization, its memories in the order of their making, and its sessions."""

    home: Home
    ids: list[UUID]
    sessions: list[UUID]


async def fill(database: Database, home: Home) -> Late:
    async with database.tenant(home.org_id) as session:
        memories = MemoryRepository(session)
        kept = await memories.remember_many(
            {"agent_id": home.agent_id, "content": f"Row {n}.", "category": "factual", "tags": ["row"]}
            for n in range(ROWS)
        )
        ids = [outcome.id for outcome in kept.outcomes]
        await session.execute(
            text(
                "INSERT INTO ibex_core.memory_relationships "
                "(org_id, source_memory_id, target_memory_id, relationship_type) "
                "SELECT :org, a, b, 'derived_from' FROM unnest(CAST(:a AS uuid[]), CAST(:b AS uuid[])) AS edge (a, b)"
            ),
            {"org": home.org_id, "a": ids[1:], "b": ids[:-1]},
        )
        rows = [Session(agent_id=home.agent_id) for _ in range(ROWS // 4)]
        session.add_all(rows)
    return Late(home, ids, [row.id for row in rows])


@pytest_asyncio.fixture
async def late(ibex_db: Database, home: Home, owner: asyncpg.Connection) -> AsyncIterator[Late]:
    """The statistics know one organization of the partition, and think that it is all there is."""
    leaves = (
        "SELECT relid::regclass::text AS name FROM pg_partition_tree('ibex_core.memories') WHERE isleaf UNION ALL "
        "SELECT 'ibex_core.' || unnest(ARRAY['memory_tags', 'memory_relationships', 'memory_versions', 'sessions'])"
    )
    for table in await owner.fetch(leaves):
        await owner.execute(f"ALTER TABLE {table['name']} SET (autovacuum_enabled = off)")
    await fill(ibex_db, await neighbour_of(ibex_db, home, owner))
    await owner.execute("ANALYZE")
    yield await fill(ibex_db, home)


async def read_by(database: Database, owner: asyncpg.Connection, late: Late, work: Work) -> int:
    """Do it for ten memories of here and there; return how many rows and entries were read."""
    async with database.tenant(late.home.org_id) as session:
        await session.execute(text("SELECT pg_stat_force_next_flush()"))
    before = await owner.fetchval(READ)
    async with database.tenant(late.home.org_id) as session:
        await work(MemoryRepository(session), late.ids[5 :: ROWS // ASKED][:ASKED])
        await session.execute(text("SELECT pg_stat_force_next_flush()"))
    read: int = await owner.fetchval(READ) - before
    return read


async def _get(memories: MemoryRepository, ids: list[UUID]) -> None:
    for ident in ids:
        await memories.get(ident)


async def _archive(memories: MemoryRepository, ids: list[UUID]) -> None:
    for ident in ids:
        await memories.archive(ident)


async def _forget(memories: MemoryRepository, ids: list[UUID]) -> None:
    for ident in ids:
        await memories.forget(ident)


async def _relate(memories: MemoryRepository, ids: list[UUID]) -> None:
    for source, target in pairwise(ids):
        await memories.relate(source, target, "related_to")


async def _unrelate(memories: MemoryRepository, ids: list[UUID]) -> None:
    for ident in ids:
        await memories.unrelate(ident, ids[0])


async def _untag(memories: MemoryRepository, ids: list[UUID]) -> None:
    for ident in ids:
        assert await memories.untag(ident, "row") == ["row"]


async def _current(memories: MemoryRepository, ids: list[UUID]) -> None:
    for ident in ids:
        await memories.current(ident)


async def _neighbors(memories: MemoryRepository, ids: list[UUID]) -> None:
    for ident in ids:
        assert len(await memories.neighbors(ident)) == EDGES


async def _update(memories: MemoryRepository, ids: list[UUID]) -> None:
    for ident in ids:
        await memories.update(ident, confidence=0.5)


async def _history(memories: MemoryRepository, ids: list[UUID]) -> None:
    for ident in ids:
        await memories.history(ident)


async def _remember(memories: MemoryRepository, ids: list[UUID]) -> None:
    agent = (await memories.get(ids[0])).agent_id
    for number in range(ASKED):
        await memories.remember(agent_id=agent, content=f"New {number}.", category="factual", tags=["new"])


async def _tag(memories: MemoryRepository, ids: list[UUID]) -> None:
    for ident in ids:
        await memories.tag(ident, "seen")


ONE_BY_ONE = {
    "get": _get,
    "archive": _archive,
    "forget": _forget,
    "relate": _relate,
    "unrelate": _unrelate,
    "tag": _tag,
    "untag": _untag,
    "current": _current,
    "update": _update,
    "history": _history,
    "remember": _remember,
}


async def _remember_many(memories: MemoryRepository, ids: list[UUID]) -> None:
    agent = (await memories.get(ids[0])).agent_id
    found = await memories.remember_many(
        {"agent_id": agent, "content": f"New {number}.", "category": "factual"} for number in range(ASKED)
    )
    assert all(outcome.created for outcome in found.outcomes)


async def _remember_twins(memories: MemoryRepository, ids: list[UUID]) -> None:
    agent = (await memories.get(ids[0])).agent_id
    found = await memories.remember_many(
        {"agent_id": agent, "content": f"Row {number}.", "category": "factual"} for number in range(ASKED)
    )
    assert not any(outcome.created for outcome in found.outcomes)


AT_ONCE: dict[str, Work] = {
    "neighbors": _neighbors,
    "get_many": lambda memories, ids: memories.get_many(ids),
    "merge": lambda memories, ids: memories.merge(ids[1:], into=ids[0]),
    "record_retrieval": lambda memories, ids: memories.record_retrieval(ids),
    "record_injection": lambda memories, ids: memories.record_injection(ids),
    "give_feedback": lambda memories, ids: memories.give_feedback(helpful=ids[:5], unhelpful=ids[5:]),
}


@pytest.mark.parametrize("verb", ONE_BY_ONE)
async def test_one_memory_is_read_by_its_id(
    ibex_db: Database, owner: asyncpg.Connection, late: Late, verb: str
) -> None:
    assert await read_by(ibex_db, owner, late, ONE_BY_ONE[verb]) <= ASKED * A_HANDFUL


@pytest.mark.parametrize("verb", AT_ONCE)
async def test_several_are_read_by_theirs(ibex_db: Database, owner: asyncpg.Connection, late: Late, verb: str) -> None:
    if await owner.fetchval("SELECT current_setting('server_version_num')::int") < 170000:
        pytest.skip("before 17 the primary key itself is read for its first column, and filtered")

    assert await read_by(ibex_db, owner, late, AT_ONCE[verb]) <= ASKED * A_HANDFUL


@pytest.mark.parametrize("work", [_remember_many, _remember_twins])
async def test_a_batch_reads_the_organization_once_at_most(
    ibex_db: Database, owner: asyncpg.Connection, late: Late, work: Work
) -> None:
    if await owner.fetchval("SELECT current_setting('server_version_num')::int") < 170000:
        pytest.skip("before 17 expired twins are looked for in the whole organization")

    assert await read_by(ibex_db, owner, late, work) <= ROWS + ASKED * A_HANDFUL


async def _expire_due(memories: MemoryRepository, _ids: list[UUID]) -> None:
    assert await memories.expire_due() == ROWS


async def _tags_all(memories: MemoryRepository, _ids: list[UUID]) -> None:
    found = await memories.search(embedding=[1.0] * EMBEDDING_DIMENSIONS, tags_all=["row"], limit=ASKED)
    assert len(found) == ASKED


async def _tags(memories: MemoryRepository, ids: list[UUID]) -> None:
    agent = (await memories.get(ids[0])).agent_id
    assert await memories.tags() == await memories.tags(agent_id=agent) == [TagCount("row", ROWS)]


EVERYTHING: dict[str, Work] = {
    "tags": _tags,
    "rename_tag": lambda memories, _ids: memories.rename_tag("row", "line"),
    "expire_due": _expire_due,
    "tags_all": _tags_all,
}
# What a verb is about, of all the late organization's memories.
MADE = {
    "expire_due": "expires_at = now() - interval '1 hour'",
    "tags_all": f"embedding = (SELECT array_agg(1) FROM generate_series(1, {EMBEDDING_DIMENSIONS}))::vector",
}


@pytest.mark.parametrize("verb", EVERYTHING)
async def test_what_is_about_all_of_them_reads_each_a_few_times(
    ibex_db: Database, owner: asyncpg.Connection, late: Late, verb: str
) -> None:
    if verb in MADE:
        await owner.execute(f"UPDATE ibex_core.memories SET {MADE[verb]} WHERE org_id = $1", late.home.org_id)

    assert await read_by(ibex_db, owner, late, EVERYTHING[verb]) <= ROWS * A_HANDFUL


async def test_a_session_is_read_by_its_id(ibex_db: Database, owner: asyncpg.Connection, late: Late) -> None:
    async def get(memories: MemoryRepository, _ids: list[UUID]) -> None:
        sessions = SessionRepository(memories.session)
        for ident in late.sessions[:ASKED]:
            await sessions.get(ident)

    assert await read_by(ibex_db, owner, late, get) <= ASKED * A_HANDFUL


async def test_a_page_of_the_newest_is_read_from_its_index(
    ibex_db: Database, owner: asyncpg.Connection, late: Late
) -> None:
    async def page(memories: MemoryRepository, _ids: list[UUID]) -> None:
        assert len((await memories.list(limit=ASKED)).items) == ASKED

    assert await read_by(ibex_db, owner, late, page) <= ASKED + 1


async def test_the_counters_would_show_an_open_index(ibex_db: Database, owner: asyncpg.Connection, late: Late) -> None:
    await owner.execute("CREATE INDEX seen_by_all ON ibex_core.memories (org_id, agent_id)")

    assert await read_by(ibex_db, owner, late, _get) >= ASKED * ROWS
