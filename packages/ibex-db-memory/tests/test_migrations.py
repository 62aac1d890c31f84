"""The first migration: partitions, ownership, HOT updates, and back again."""

import random

import asyncpg
import pytest
from homes import Home
from sqlalchemy import CheckConstraint, text

from ibex_db_core.base import Base
from ibex_db_core.database import Database
from ibex_db_core.errors import AccessDeniedError, MigrationError
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


async def test_words_of_before_their_index_are_found_and_an_index_that_is_there_is_taken(
    ibex_db: Database, home: Home, owner: asyncpg.Connection
) -> None:
    """What memory_0007 says of large tables: build a partition's indexes beforehand, and it does not do so again."""
    async with ibex_db.tenant(home.org_id) as session:
        await MemoryRepository(session).remember(agent_id=home.agent_id, content="Likes tea.", category="factual")
    made = await owner.fetchval("SELECT pg_get_functiondef('ibex_core.memories_word_keys'::regproc)")
    ready = "SELECT 'ibex_core.memories_words_idx_p03'::regclass::oid"
    async with ibex_db.migrator() as migrator:
        await migrator.downgrade("memory_0006")
        await owner.execute(f"SET ROLE ibex_owner; {made}; RESET ROLE")
        await owner.execute(
            "CREATE INDEX CONCURRENTLY memories_words_idx_p03 ON ibex_core.memories_p03 "
            "USING gin (ibex_core.memories_word_keys(org_id, search_vector)) WITH (fastupdate = off)"
        )
        built = await owner.fetchval(ready)
        await migrator.upgrade()

        assert await migrator.check() == []
    async with ibex_db.tenant(home.org_id) as session:
        hits = await MemoryRepository(session).search(text="tea")

    assert [hit.memory.content for hit in hits] == ["Likes tea."]
    assert await owner.fetchval(ready) == built
