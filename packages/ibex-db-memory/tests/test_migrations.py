"""The first migration: partitions, ownership, HOT updates, and back again."""

import asyncio
import random

import asyncpg
import pytest
from alone import ALONE
from homes import Home
from sqlalchemy import CheckConstraint, text

from ibex_db_core.base import Base
from ibex_db_core.database import Database
from ibex_db_core.errors import AccessDeniedError, MigrationBlockedError, MigrationError
from ibex_db_core.migrations import Migrator
from ibex_db_core.tenant import ScopedSession
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import MemoryRepository

TABLES = (
    "sessions",
    "checkpoints",
    "memories",
    "memory_versions",
    "memory_relationships",
    "memory_tags",
    "embedding_spaces",
    "memory_vectors",
)

_PARTITIONS = """
SELECT c.relname, c.relrowsecurity, c.relforcerowsecurity, c.reloptions, c.relowner::regrole::text AS owner,
    has_table_privilege('ibex_app', c.oid, 'SELECT, INSERT, UPDATE, DELETE')
    OR has_table_privilege('ibex_platform', c.oid, 'SELECT, INSERT, UPDATE, DELETE') AS open,
    (SELECT a.attstorage FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'embedding') AS storage
FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
WHERE i.inhparent = 'ibex_core.memories'::regclass ORDER BY 1
"""

_PARTITION_INDEXES = """
SELECT child.relname, parent.relname AS parent
FROM pg_inherits i JOIN pg_class child ON child.oid = i.inhrelid JOIN pg_class parent ON parent.oid = i.inhparent
WHERE child.relkind = 'i'
"""

_BULK = """
INSERT INTO ibex_core.memories (org_id, agent_id, content, content_hash, category, embedding)
SELECT :org, :agent, repeat('tea ', :words) || i,
    encode(sha256(i::text::bytea), 'hex'), 'factual',
    (SELECT array_agg(random() - 0.5) FROM generate_series(1, 384) WHERE i = i)::vector(384)
FROM generate_series(1, 400) i
"""

_BUMP = """
UPDATE ibex_core.memories SET retrieval_count = retrieval_count + 1, last_retrieved_at = now()
WHERE org_id = :org AND id = ANY(:ids)
"""

_STATS = """
SELECT sum(n_tup_upd), sum(n_tup_hot_upd) FROM pg_stat_user_tables
WHERE schemaname = 'ibex_core' AND relname LIKE 'memories_p%'
"""


async def test_up_and_down_and_up_again(ibex_db: Database) -> None:
    async with ibex_db.migrator() as migrator:
        await migrator.downgrade("memory@base", allow_destructive=True)
        assert [step.id for step in await migrator.upgrade()] == [
            "memory_0001",
            "memory_0002",
            "memory_0003",
            "memory_0004",
            "memory_0005",
            "memory_0006",
            "memory_0007",
            "memory_0008",
            "memory_0009",
            "memory_0010",
            "memory_0011",
            "memory_0012",
            "memory_0013",
        ]

        assert await migrator.check() == []


async def test_models_and_database_agree_on_every_check(session: ScopedSession) -> None:
    found = await session.execute(
        text(
            "SELECT c.conrelid::regclass::text, c.conname FROM pg_constraint c"
            " WHERE c.contype = 'c' AND c.connamespace = 'ibex_core'::regnamespace AND c.conparentid = 0"
            " AND NOT (SELECT relispartition FROM pg_class WHERE oid = c.conrelid)"
        )
    )
    of_database = {(table.removeprefix("ibex_core."), name) for table, name in found}
    of_models = {
        (table.name, str(constraint.name))
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }

    for table in TABLES:
        assert {name for of, name in of_database if of == table} == {name for of, name in of_models if of == table}


async def test_partitions_are_closed_tight_and_roomy(session: ScopedSession) -> None:
    rows = (await session.execute(text(_PARTITIONS))).all()

    assert [row.relname for row in rows] == [f"memories_p{number:02d}" for number in range(16)]
    for row in rows:
        assert (row.relrowsecurity, row.relforcerowsecurity, row.open) == (True, True, False)
        assert (row.reloptions, row.storage, row.owner) == (["fillfactor=60"], b"m", "ibex_owner")


async def test_an_index_of_a_partition_is_named_after_its_parent(session: ScopedSession) -> None:
    rows = (await session.execute(text(_PARTITION_INDEXES))).all()

    assert len(rows) == 16 * (10 + 7)
    assert all(row.relname[: -len("_p00")] == row.parent for row in rows)


async def test_a_partition_cannot_be_read_past_its_parent(session: ScopedSession) -> None:
    with pytest.raises(AccessDeniedError):
        await session.execute(text("SELECT * FROM ibex_core.memories_p00"))


async def test_tables_and_functions_belong_to_the_owner_role(session: ScopedSession) -> None:
    tables = await session.scalars(
        text("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'ibex_core' AND tablename = ANY(:names)"),
        {"names": list(TABLES)},
    )
    functions = await session.scalars(
        text(
            "SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'ibex_core'::regnamespace"
            " AND proname IN ('memories_first_version', 'memories_next_version', 'sessions_refuse_step')"
        )
    )

    assert list(tables) == ["ibex_owner"]
    assert list(functions) == ["ibex_owner"]


@ALONE
@pytest.mark.parametrize("words", [1, 8, 40])
async def test_bumping_counters_is_hot_every_time_however_short_the_rows(
    ibex_db: Database, home: Home, words: int
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        await session.execute(text("SET LOCAL maintenance_work_mem = '64MB'"))
        await session.execute(text(_BULK), {"org": home.org_id, "agent": home.agent_id, "words": words})
        ids = list(await session.scalars(text("SELECT id FROM ibex_core.memories ORDER BY ctid")))
    chance = random.Random(7)  # noqa: S311 - no secret
    bumps = [chance.sample(ids, 10) for _ in range(20)] + [ids[at : at + 10] for at in range(0, 390, 10)]

    for bump in bumps:
        async with ibex_db.tenant(home.org_id) as session:
            await session.execute(text(_BUMP), {"org": home.org_id, "ids": bump})
            await session.execute(text("SELECT pg_stat_force_next_flush()"))

    async with ibex_db.tenant(home.org_id) as session:
        updates, hot = (await session.execute(text(_STATS))).one()
    assert (updates, hot) == (10 * len(bumps), 10 * len(bumps))


@pytest.mark.parametrize("given", ["0", "1025", "-1", "many", "1.5", ""])
async def test_a_bad_number_of_partitions_is_refused(
    ibex_db: Database, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("IBEX_MEMORY_PARTITIONS", given)
    async with ibex_db.migrator() as migrator:
        await migrator.downgrade("memory@base", allow_destructive=True)

        with pytest.raises(MigrationError, match="IBEX_MEMORY_PARTITIONS"):
            await migrator.upgrade()


async def test_the_number_of_partitions_is_chosen_at_creation(
    ibex_test_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IBEX_MEMORY_PARTITIONS", "3")
    async with ibex_test_database.connect() as database:
        async with database.migrator() as migrator:
            await migrator.downgrade("memory@base", allow_destructive=True)
            await migrator.upgrade()
            assert await migrator.check() == []
        async with database.platform(reason="look at the catalog") as session:
            rows = (await session.execute(text(_PARTITIONS))).all()

    assert [row.relname for row in rows] == ["memories_p00", "memories_p01", "memories_p02"]


async def test_an_agents_rows_go_with_it(ibex_db: Database, home: Home) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        await session.execute(text(_BULK), {"org": home.org_id, "agent": home.agent_id, "words": 8})

        await session.execute(text("DELETE FROM ibex_core.agents"))

        for table in ("memories", "memory_versions"):
            assert await session.scalar(text(f"SELECT count(*) FROM ibex_core.{table}")) == 0


# -- the index of words, in a database that is in use

_INDEXES = """
SELECT c.relname, c.oid, x.indisvalid AS whole FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
WHERE c.relname ~ '^memories_(words|created_at|newest|search_vector)_idx' ORDER BY 1
"""
_HALF = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ibex_core.{}'::regclass"
_WORDS_OF_P03 = (
    "CREATE INDEX CONCURRENTLY memories_words_idx_p03 ON ibex_core.memories_p03 "
    "USING gin (ibex_core.memories_word_keys(org_id, search_vector)) WITH (fastupdate = off)"
)
_OLD_OF_P05 = "CREATE INDEX memories_search_vector_idx_p05 ON ibex_core.memories_p05 USING gin (search_vector)"


async def _said(database: Database, home: Home) -> list[str]:
    async with database.tenant(home.org_id) as session:
        return [hit.memory.content for hit in await MemoryRepository(session).search(text="tea")]


async def _remember_tea(database: Database, home: Home) -> None:
    async with database.tenant(home.org_id) as session:
        await MemoryRepository(session).remember(agent_id=home.agent_id, content="Likes tea.", category="factual")


async def _plan(owner: asyncpg.Connection, words: str) -> str:
    """Return how the search role finds words by the expression that an index may be over."""
    async with owner.transaction():
        await owner.execute("SET LOCAL ROLE ibex_search; SET LOCAL enable_seqscan = off")
        rows = await owner.fetch(f"EXPLAIN SELECT id FROM ibex_core.memories WHERE {words}")
    return "\n".join(row[0] for row in rows)


async def test_words_are_found_by_an_index_at_each_step_to_the_new_one_and_back(
    ibex_db: Database, home: Home, owner: asyncpg.Connection
) -> None:
    await _remember_tea(ibex_db, home)
    body = "SELECT prosrc FROM pg_proc WHERE oid = 'ibex_core.memories_bm25'::regproc"
    # What the function of each revision looks rows up by.
    expressions = {
        True: "ibex_core.memories_word_keys(org_id, search_vector) @> ARRAY['\\x00'::bytea]",
        False: "search_vector @@ 'tea'::tsquery",
    }
    async with ibex_db.migrator() as migrator:
        for revision in ("memory_0009", "memory_0008", "memory_0007", "memory_0006"):
            await migrator.downgrade(revision)
            assert await _said(ibex_db, home) == ["Likes tea."], revision
            if revision != "memory_0009":  # which comes down without the old index, and searches the new one
                assert "memories_search_vector_idx" in await _plan(owner, expressions[False])
        for revision in ("memory_0007", "memory_0008", "memory_0009", "memory_0010", "memory_0012"):
            await migrator.upgrade(revision)
            new = "memories_word_keys" in await owner.fetchval(body)
            assert new == (revision >= "memory_0009")
            wanted = "memories_words_idx" if new else "memories_search_vector_idx"
            assert wanted in await _plan(owner, expressions[new]), revision
            assert await _said(ibex_db, home) == ["Likes tea."], revision


async def test_an_index_of_a_partition_that_is_there_is_taken_and_half_a_one_is_built_anew(
    ibex_db: Database, home: Home, owner: asyncpg.Connection
) -> None:
    await _remember_tea(ibex_db, home)
    async with ibex_db.migrator() as migrator:
        await migrator.downgrade("memory_0007")
        await owner.execute("SET ROLE ibex_owner")
        await owner.execute(_WORDS_OF_P03)
        await owner.execute(_WORDS_OF_P03.replace("p03", "p05"))
        await owner.execute("RESET ROLE")
        await owner.execute(_HALF.format("memories_words_idx_p05"))
        built = {row["relname"]: row["oid"] for row in await owner.fetch(_INDEXES)}
        await migrator.upgrade()

        assert await migrator.check() == []
    after = {row["relname"]: row for row in await owner.fetch(_INDEXES)}
    assert len(after) == 2 * 17
    assert all(row["whole"] for row in after.values())
    assert after["memories_words_idx_p03"]["oid"] == built["memories_words_idx_p03"]
    assert after["memories_words_idx_p05"]["oid"] != built["memories_words_idx_p05"]
    assert await _said(ibex_db, home) == ["Likes tea."]


async def test_a_build_that_died_can_be_taken_back_and_a_way_back_that_died_can_be_left(
    ibex_db: Database, owner: asyncpg.Connection
) -> None:
    async with ibex_db.migrator() as migrator:
        await migrator.downgrade("memory_0009")
        # The old index, half built, and then somebody upgrades instead.
        await owner.execute(f"SET ROLE ibex_owner; {_OLD_OF_P05}; RESET ROLE")
        await owner.execute(_HALF.format("memories_search_vector_idx_p05"))
        await migrator.upgrade()
        assert await migrator.check() == []
        # The new one, half built, and then somebody goes back instead.
        await migrator.downgrade("memory_0007")
        await owner.execute("SET ROLE ibex_owner")
        await owner.execute(_WORDS_OF_P03)
        await owner.execute("RESET ROLE")
        await migrator.downgrade("memory_0006")

        left = [row["relname"] for row in await owner.fetch(_INDEXES)]
        assert len(left) == 17
        assert all(name.startswith("memories_search_vector_idx") for name in left)
        await migrator.upgrade()
        assert await migrator.check() == []


# -- indexes that are hidden from those who ask by id

_OPEN = """
SELECT c.relname FROM pg_class c WHERE c.relkind IN ('i', 'I') AND c.relname ~
    '^(memories_agent_id|memories_created_at|sessions_agent_id|memory_tags_tag|memory_relationships_target)_idx'
"""
_HIDDEN = """
SELECT count(*) FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid WHERE x.indisvalid AND c.relname ~
    '^(memories_by_agent|memories_newest|sessions_by_agent|memory_tags_by_tag|memory_relationships_by_target)_idx'
"""
_AGENTS_OF_P03 = """
SET ROLE ibex_owner;
DROP INDEX ibex_core.memories_agent_id_idx;
CREATE INDEX memories_agent_id_idx_p03 ON ibex_core.memories_p03 (org_id, agent_id);
RESET ROLE
"""
_OF_ALL_TABLES = 2 * (16 + 1) + 3


async def test_a_way_back_to_open_indexes_that_died_can_be_left_or_run_again(
    ibex_test_database: TestDatabase, ibex_db: Database, owner: asyncpg.Connection
) -> None:
    url = ibex_test_database.cluster.url(ibex_test_database.name).render_as_string(hide_password=False)
    reader = await asyncpg.connect(url)

    async with ibex_db.migrator() as migrator:
        for again in (True, False):
            async with reader.transaction():
                await reader.execute("LOCK TABLE ONLY ibex_core.memories IN ACCESS SHARE MODE")
                with pytest.raises(MigrationBlockedError):
                    await migrator.downgrade("memory_0010", lock_timeout=0.3, attempts=1)
            assert len(await owner.fetch(_OPEN)) == _OF_ALL_TABLES
            assert await owner.fetchval(_HIDDEN) == _OF_ALL_TABLES
            # As a build that was killed in a partition leaves it.
            await owner.execute(_AGENTS_OF_P03)
            await owner.execute(_HALF.format("memories_agent_id_idx_p03"))
            if again:
                await migrator.downgrade("memory_0010")
                assert await owner.fetchval(_HIDDEN) == 0
            await migrator.upgrade()

            assert await owner.fetch(_OPEN) == []
            assert await owner.fetchval(_HIDDEN) == _OF_ALL_TABLES
            assert await migrator.check() == []
    await reader.close()


# -- who locks what first

_WAITS = """
SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database
WHERE d.datname = current_database() AND NOT l.granted AND l.relation = 'ibex_core.memories'::regclass
"""
# By anything stronger than what CREATE INDEX CONCURRENTLY and a writer hold.
_HELD = """
SELECT l.relation::regclass::text || ' ' || l.mode FROM pg_locks l
WHERE l.pid = $1 AND l.granted AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
    'AccessExclusiveLock') AND l.locktype = 'relation' AND EXISTS (
        SELECT FROM pg_class c WHERE c.oid = l.relation AND c.relkind IN ('r', 'p') AND c.relname <> 'alembic_version')
"""


async def test_no_revision_holds_a_partition_while_it_waits_for_memories(
    ibex_test_database: TestDatabase, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services lock memories first and then a partition: whoever does it the other way round has one of them fail."""
    monkeypatch.setenv("IBEX_MEMORY_PARTITIONS", "2")
    url = ibex_test_database.cluster.url(ibex_test_database.name).render_as_string(hide_password=False)
    # Asks nothing itself: a concurrent build would wait for its snapshot.
    reader = await asyncpg.connect(url)
    async with ibex_test_database.connect() as database, database.migrator() as migrator:
        await migrator.downgrade("memory@base", allow_destructive=True)
        steps = [step.id for step in await migrator.upgrade() if step.wheel == "memory"]
        waited: set[str] = set()

        async def move(revision: str, name: str, *, down: bool) -> None:
            reading = reader.transaction()
            await reading.start()
            await reader.execute("LOCK TABLE ONLY ibex_core.memories IN ACCESS SHARE MODE")
            moving = asyncio.create_task(
                migrator.downgrade(revision, allow_destructive=True, lock_timeout=0)
                if down
                else _upgrade(migrator, revision)
            )
            try:
                while not moving.done():
                    for (pid,) in await owner.fetch(_WAITS):
                        assert [row[0] for row in await owner.fetch(_HELD, pid)] == [], name
                        waited.add(name)
                        return
                    await asyncio.sleep(0.01)
            finally:
                await reading.rollback()
                await moving

        for before, step in zip(reversed(steps[:-1]), reversed(steps[1:]), strict=True):
            await move(before, f"{step} back", down=True)
        for step in steps[1:]:
            await move(step, step, down=False)
        assert await migrator.check() == []
    await reader.close()

    assert waited >= {"memory_0009", "memory_0009 back", "memory_0010", "memory_0011 back", "memory_0012"}
    assert waited >= {"memory_0005", "memory_0002 back"}


async def _upgrade(migrator: Migrator, revision: str) -> None:
    await migrator.upgrade(revision, lock_timeout=0)
