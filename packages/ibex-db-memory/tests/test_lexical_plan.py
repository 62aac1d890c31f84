"""Words are looked up in their index, whatever statistics believe; counted in entries, never timed."""

import random
from uuid import UUID

import asyncpg
import pytest
from homes import Home, neighbour_of
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_memory import MemoryRepository

WORDS = [
    first + second + third for first in "bdfgklmp" for second in ("an", "el", "or") for third in ("zak", "mip", "tov")
]
ASKED = " ".join(WORDS[:12])
FUNCTION = "ibex_core.memories_bm25(text, uuid[], bigint, float8, float8, float8)"

# Entries of the index of words, and of the indexes that begin with the organization.
READ = """
SELECT COALESCE(sum(idx_tup_read) FILTER (WHERE indexrelname LIKE 'memories\\_words\\_idx%'), 0)::int AS of_words,
    COALESCE(sum(idx_tup_read) FILTER (WHERE indexrelname NOT LIKE 'memories\\_words\\_idx%'), 0)::int AS of_rows,
    (SELECT COALESCE(sum(seq_tup_read), 0)::int FROM pg_stat_user_tables
        WHERE relname LIKE 'memories\\_p%') AS of_tables
FROM pg_stat_user_indexes WHERE relname LIKE 'memories\\_p%'
"""


async def fill(database: Database, home: Home, rows: int) -> int:
    """Store that many memories of 40 words each; return how often one says one of the words that are asked for."""
    draw = random.Random(rows)  # noqa: S311 - test data
    said = [draw.sample(WORDS, 40) for _ in range(rows)]
    async with database.tenant(home.org_id) as session:
        await MemoryRepository(session).remember_many(
            {"agent_id": home.agent_id, "content": f"Row {n}: {' '.join(words)}", "category": "factual"}
            for n, words in enumerate(said)
        )
        await session.execute(text("SELECT pg_stat_force_next_flush()"))
    return sum(word in ASKED.split() for words in said for word in words)


async def read_by(database: Database, owner: asyncpg.Connection, org_id: UUID) -> tuple[int, int, int]:
    """Call the function; return the entries it read of the index of words and of others, and the rows of tables."""
    before = await owner.fetchrow(READ)
    async with database.tenant(org_id) as session:
        call = f"SELECT count(*) FROM {FUNCTION.partition('(')[0]}(:words, NULL, 100, 5, 0.6, 0.3)"
        await session.execute(text(call), {"words": ASKED})
        await session.execute(text("SELECT pg_stat_force_next_flush()"))
    after = await owner.fetchrow(READ)
    assert before is not None
    assert after is not None
    words, rows, tables = (now - then for now, then in zip(after, before, strict=True))
    return words, rows, tables


async def never_analyze(owner: asyncpg.Connection) -> None:
    """Keep autovacuum from knowing by chance what the test says nobody knows."""
    leaves = "SELECT relid::regclass::text AS name FROM pg_partition_tree('ibex_core.memories') WHERE isleaf"
    for partition in await owner.fetch(leaves):
        await owner.execute(f"ALTER TABLE {partition['name']} SET (autovacuum_enabled = off)")


@pytest.mark.parametrize("rows", [100, 300, 1000])
async def test_a_new_organizations_words_are_found_by_their_index(
    ibex_db: Database, home: Home, owner: asyncpg.Connection, rows: int
) -> None:
    await never_analyze(owner)
    said = await fill(ibex_db, home, rows)

    assert await read_by(ibex_db, owner, home.org_id) == (said, 0, 0)


@pytest.mark.parametrize("rows", [100, 1000])
async def test_so_are_those_of_an_organization_that_came_after_the_statistics(
    ibex_db: Database, home: Home, owner: asyncpg.Connection, rows: int
) -> None:
    """The one that the statistics know is all that there is, they say: of any other the planner expects one row."""
    await never_analyze(owner)
    neighbour = await neighbour_of(ibex_db, home, owner)
    await fill(ibex_db, neighbour, 1500)
    await owner.execute("ANALYZE ibex_core.memories")
    said = await fill(ibex_db, home, rows)

    assert await read_by(ibex_db, owner, home.org_id) == (said, 0, 0)


async def test_a_plan_that_was_kept_of_an_empty_table_is_the_right_one_when_it_is_full(
    ibex_db: Database, home: Home, owner: asyncpg.Connection
) -> None:
    """The function keeps its plan in each session: the second call, of the same one, has that of the first."""
    await never_analyze(owner)
    backend = text("SELECT pg_backend_pid()")
    async with ibex_db.tenant(home.org_id) as session:
        empty = (await session.execute(backend)).scalar_one()
    assert await read_by(ibex_db, owner, home.org_id) == (0, 0, 0)
    said = await fill(ibex_db, home, 1000)

    assert await read_by(ibex_db, owner, home.org_id) == (said, 0, 0)
    async with ibex_db.tenant(home.org_id) as session:
        assert (await session.execute(backend)).scalar_one() == empty


async def test_the_counters_would_show_another_plan(ibex_db: Database, home: Home, owner: asyncpg.Connection) -> None:
    await never_analyze(owner)
    await fill(ibex_db, home, 100)
    await owner.execute(f"ALTER FUNCTION {FUNCTION} RESET cpu_index_tuple_cost")
    of_words, of_rows, of_tables = await read_by(ibex_db, owner, home.org_id)

    assert of_words == 0
    assert of_rows + of_tables >= 100
