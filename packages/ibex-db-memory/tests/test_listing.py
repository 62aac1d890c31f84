"""Listing newest first reads an index from where the page begins, and no more of it than the page."""

from uuid import UUID

import asyncpg
from homes import Home
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_memory import MemoryRepository

_READ = """
SELECT sum(idx_scan)::int AS scans, sum(idx_tup_read)::int AS entries FROM pg_stat_user_indexes
WHERE indexrelname LIKE 'memories\\_newest\\_idx\\_p%'
"""


async def fill(database: Database, home: Home, owner: asyncpg.Connection, count: int) -> list[UUID]:
    """Keep memories that were made a minute apart; return their ids, newest first."""
    async with database.tenant(home.org_id) as session:
        done = await MemoryRepository(session).remember_many(
            {"agent_id": home.agent_id, "content": f"Number {n}.", "category": "factual"} for n in range(count)
        )
        ids = [outcome.id for outcome in done.outcomes]
        await session.execute(
            text(
                "UPDATE ibex_core.memories m SET created_at = now() - n.n * interval '1 minute' "
                "FROM unnest(CAST(:ids AS uuid[])) WITH ORDINALITY AS n (id, n) WHERE m.org_id = :org AND m.id = n.id"
            ),
            {"ids": ids, "org": home.org_id},
        )
        await session.execute(text("SELECT pg_stat_force_next_flush()"))  # what this read is not what a page reads
    await owner.execute("VACUUM (ANALYZE) ibex_core.memories")
    return ids


async def test_pages_are_read_from_the_index_and_start_at_the_cursor(
    ibex_db: Database, home: Home, owner: asyncpg.Connection
) -> None:
    ids = await fill(ibex_db, home, owner, 2000)
    before = await owner.fetchrow(_READ)
    seen: list[UUID] = []
    cursor = None
    for _ in range(4):
        async with ibex_db.tenant(home.org_id) as session:
            page = await MemoryRepository(session).list(limit=20, cursor=cursor)
            await session.execute(text("SELECT pg_stat_force_next_flush()"))
        seen += [memory.id for memory in page.items]
        cursor = page.next_cursor

    read = await owner.fetchrow(_READ)
    assert seen == ids[:80]
    assert read is not None
    assert before is not None
    assert read["scans"] - before["scans"] == 4
    # One row more than the page tells that there is another; one or two are the cursor's own.
    assert read["entries"] - before["entries"] <= 4 * 23


async def test_counting_does_not_touch_the_order(ibex_db: Database, home: Home, owner: asyncpg.Connection) -> None:
    ids = await fill(ibex_db, home, owner, 30)
    async with ibex_db.tenant(home.org_id) as session:
        memories = MemoryRepository(session)
        await memories.record_retrieval(ids[10:20])

        assert [memory.id for memory in (await memories.list(limit=30)).items] == ids
