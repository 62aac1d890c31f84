"""Remembering one memory: created, or known already; nothing else may happen."""

import asyncio
import unicodedata
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import selectinload, undefer

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, DatabaseError, ForeignKeyError
from ibex_db_core.tenant import ScopedSession
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import (
    Kept,
    Memory,
    MemoryCategory,
    MemoryRepository,
    MemorySource,
    MemoryStatus,
    SessionRepository,
    content_hash,
)

Sent = Callable[[], AbstractContextManager[list[str]]]
Vector = Callable[[int], list[float]]

TEA = "Prefers tea over coffee."
NOW = datetime.now(UTC)
PAST = NOW - timedelta(hours=1)
FUTURE = NOW + timedelta(days=30)


async def tea(memories: MemoryRepository, agent_id: UUID, **more: object) -> Kept:
    fields: dict[str, object] = {"content": TEA, "category": MemoryCategory.PREFERENCE, **more}
    return await memories.remember(agent_id=agent_id, **fields)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_what_is_new_is_created(memories: MemoryRepository, org_id: UUID, agent_id: UUID, vector: Vector) -> None:
    kept = await tea(memories, agent_id, embedding=vector(1))

    assert kept.created
    assert kept.near_duplicate is None
    assert (kept.memory.org_id, kept.memory.agent_id) == (org_id, agent_id)
    assert (kept.memory.content, kept.memory.content_hash) == (TEA, content_hash(TEA))
    assert kept.memory.category is MemoryCategory.PREFERENCE


async def test_what_is_left_out_gets_the_documented_defaults(memories: MemoryRepository, agent_id: UUID) -> None:
    memory = (await tea(memories, agent_id)).memory

    assert (memory.source, memory.status) == (MemorySource.EXTRACTED, MemoryStatus.ACTIVE)
    assert (memory.confidence, memory.usefulness_score) == (Decimal("0.800"), Decimal("0.500"))
    assert (memory.retrieval_count, memory.metadata_) == (0, {})
    assert memory.valid_from == memory.created_at == memory.updated_at
    assert (memory.session_id, memory.embedding_model, memory.valid_until, memory.expires_at) == (None,) * 4
    assert (memory.last_retrieved_at, memory.last_injected_at, memory.deleted_at) == (None,) * 3


async def test_every_field_is_stored(
    memories: MemoryRepository, sessions: SessionRepository, agent_id: UUID, vector: Vector
) -> None:
    run = await sessions.start(agent_id=agent_id)
    ident = uuid4()
    kept = await memories.remember(
        agent_id=agent_id,
        content=TEA,
        category="episodic",
        embedding=np.array(vector(1), dtype=np.float64),
        embedding_model="minilm",
        source="user_provided",
        status=MemoryStatus.PENDING_REVIEW,
        session_id=run.id,
        confidence=0.12345,
        tags=["Drinks", "  hot   drinks ", "drinks"],
        metadata={"turn": 3, "said": {"by": "her", "at": [1, 2.5, None, True]}},
        valid_from=PAST,
        valid_until=FUTURE,
        expires_at=FUTURE,
        id=ident,
    )

    memory = await memories.get(ident, options=[selectinload(Memory.tags), undefer(Memory.embedding)])
    assert kept.created
    assert kept.memory is memory
    assert (memory.category, memory.source, memory.status) == ("episodic", "user_provided", "pending_review")
    assert (memory.session_id, memory.confidence, memory.embedding_model) == (run.id, Decimal("0.123"), "minilm")
    assert [tag.tag for tag in memory.tags] == ["drinks", "hot drinks"]
    assert memory.metadata_ == {"turn": 3, "said": {"by": "her", "at": [1, 2.5, None, True]}}
    assert (memory.valid_from, memory.valid_until, memory.expires_at) == (PAST, FUTURE, FUTURE)
    np.testing.assert_array_equal(np.array(memory.embedding, dtype=np.float32), np.array(vector(1), dtype=np.float32))


@pytest.mark.parametrize(
    "same",
    [TEA, TEA.upper(), "  Prefers\ttea\n over coffee.  ", "Prefers\u00a0tea\u2003over coffee."],
    ids=["as it is", "other case", "other white space", "other kinds of white space"],
)
async def test_the_same_statement_is_a_duplicate(memories: MemoryRepository, agent_id: UUID, same: str) -> None:
    first = await tea(memories, agent_id)
    again = await tea(memories, agent_id, content=same)

    assert not again.created
    assert again.memory is first.memory
    assert again.memory.content == TEA


async def test_composed_and_decomposed_characters_are_the_same_statement(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    composed = "Likes the café in Ångström street."
    first = await tea(memories, agent_id, content=composed)
    again = await tea(memories, agent_id, content=unicodedata.normalize("NFD", composed))

    assert not again.created
    assert again.memory.id == first.memory.id


async def test_a_duplicate_leaves_everything_as_it_was(
    ibex_db: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    async with ibex_db.tenant(org_id) as session:
        await tea(MemoryRepository(session), agent_id, tags=["drinks"], metadata={"first": True})
    rows = "SELECT ctid, tableoid::regclass, xmin, * FROM ibex_core.memories"
    before = await owner.fetch(rows)
    async with ibex_db.tenant(org_id) as session:
        again = await tea(
            MemoryRepository(session),
            agent_id,
            content=TEA.upper(),
            tags=["other"],
            metadata={"first": False},
            confidence=1,
        )

    # ctid and xmin say that the row was not even written anew with the same values.
    assert not again.created
    assert await owner.fetch(rows) == before
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memory_versions") == 1
    assert await owner.fetchval("SELECT array_agg(tag) FROM ibex_core.memory_tags") == ["drinks"]


async def test_a_duplicate_writes_no_dead_row(
    ibex_db: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    for _ in range(5):
        async with ibex_db.tenant(org_id) as session:
            await tea(MemoryRepository(session), agent_id)
    async with ibex_db.tenant(org_id) as session:
        await tea(MemoryRepository(session), agent_id, content="Another.")

    # A dead row would have taken a line pointer of the page, and the next row would come further along.
    assert await owner.fetchval("SELECT array_agg(ctid::text ORDER BY ctid) FROM ibex_core.memories") == [
        "(0,1)",
        "(0,2)",
    ]


async def test_another_agent_may_know_the_same(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID
) -> None:
    mine = await tea(memories, agent_id)
    theirs = await tea(memories, other_agent_id)

    assert mine.created
    assert theirs.created
    assert mine.memory.id != theirs.memory.id


async def test_another_organization_may_know_the_same(
    ibex_db: Database, memories: MemoryRepository, agent_id: UUID, rival_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(rival_id) as session:
        await tea(MemoryRepository(session), rival_agent_id)

    assert (await tea(memories, agent_id)).created


@pytest.mark.parametrize(
    "change",
    [
        {"deleted_at": NOW},
        {"status": MemoryStatus.SUPERSEDED},
        {"status": MemoryStatus.MERGED},
        {"status": MemoryStatus.ARCHIVED},
        {"status": MemoryStatus.PENDING_REVIEW},
    ],
    ids=["deleted", "superseded", "merged", "archived", "pending_review"],
)
async def test_a_twin_that_is_not_live_swallows_nothing(
    memories: MemoryRepository, agent_id: UUID, change: dict[str, object]
) -> None:
    gone = await memories.add(Memory(agent_id=agent_id, content=TEA, category=MemoryCategory.PREFERENCE, **change))
    again = await tea(memories, agent_id)

    assert again.created
    assert again.memory.id != gone.id


async def test_only_active_memories_have_duplicates(memories: MemoryRepository, agent_id: UUID) -> None:
    first = await tea(memories, agent_id)
    proposed = [await tea(memories, agent_id, status="pending_review") for _ in range(2)]

    assert [kept.created for kept in proposed] == [True, True]
    assert len({first.memory.id, *(kept.memory.id for kept in proposed)}) == 3


async def test_an_expired_twin_is_retired_and_the_statement_kept_anew(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    old = (await tea(memories, agent_id, expires_at=PAST)).memory
    new = await tea(memories, agent_id, expires_at=FUTURE)

    assert new.created
    assert new.memory.id != old.id
    await memories.session.refresh(old)
    assert old.deleted_at is not None
    assert [memory.id for memory in await memories.find()] == [new.memory.id]


async def test_a_twin_that_has_yet_to_expire_is_a_twin(memories: MemoryRepository, agent_id: UUID) -> None:
    old = await tea(memories, agent_id, expires_at=FUTURE)

    assert (await tea(memories, agent_id)).memory is old.memory


async def test_remembering_with_an_id_again_is_a_duplicate(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = uuid4()
    first = await tea(memories, agent_id, id=ident)
    again = await tea(memories, agent_id, id=ident)

    assert (first.created, again.created) == (True, False)
    assert again.memory.id == ident


async def test_an_id_that_is_taken_by_another_statement_is_a_conflict(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    ident = (await tea(memories, agent_id)).memory.id

    with pytest.raises(ConflictError) as caught:
        await tea(memories, agent_id, content="Another.", id=ident)
    assert caught.value.constraint == "memories_pkey"


async def test_a_near_duplicate_is_reported_and_the_memory_kept(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, vector: Vector
) -> None:
    near = np.array(vector(1)) + 0.1 * np.array(vector(2))
    first = await tea(memories, agent_id, embedding=vector(1), near_duplicate_threshold=0.9)
    await tea(memories, agent_id, content="Unlike.", embedding=vector(3))
    await tea(memories, other_agent_id, embedding=near)
    second = await tea(memories, agent_id, content="Tea, please.", embedding=near, near_duplicate_threshold=0.9)

    assert first.near_duplicate is None
    assert second.created
    assert second.near_duplicate is not None
    assert second.near_duplicate.memory is first.memory
    expected = np.dot(vector(1), near) / np.linalg.norm(vector(1)) / np.linalg.norm(near)
    assert second.near_duplicate.similarity == pytest.approx(expected, abs=1e-5)


async def test_what_is_less_alike_than_the_threshold_is_not_reported(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await tea(memories, agent_id, embedding=vector(1))
    near = np.array(vector(1)) + np.array(vector(2))
    kept = await tea(memories, agent_id, content="Tea, please.", embedding=near, near_duplicate_threshold=0.9)

    assert kept.near_duplicate is None


async def test_a_duplicate_may_have_a_near_duplicate_but_not_itself(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await tea(memories, agent_id, embedding=vector(1))
    alone = await tea(memories, agent_id, embedding=vector(1), near_duplicate_threshold=0.9)
    other = await tea(memories, agent_id, content="Tea, please.", embedding=vector(1))
    again = await tea(memories, agent_id, embedding=vector(1), near_duplicate_threshold=0.9)

    assert (alone.created, alone.near_duplicate) == (False, None)
    assert again.near_duplicate is not None
    assert again.near_duplicate.memory is other.memory


@pytest.mark.parametrize("model", [None, "minilm"])
async def test_near_duplicates_are_looked_for_among_vectors_of_the_same_model(
    memories: MemoryRepository, agent_id: UUID, vector: Vector, model: str | None
) -> None:
    await tea(memories, agent_id, content="1", embedding=vector(1), embedding_model="other")
    await tea(memories, agent_id, content="2", embedding=vector(1), embedding_model="minilm" if model is None else None)
    kept = await tea(memories, agent_id, embedding=vector(1), embedding_model=model, near_duplicate_threshold=0.5)

    assert kept.created
    assert kept.near_duplicate is None


async def test_an_agent_of_another_organization_is_refused(memories: MemoryRepository, rival_agent_id: UUID) -> None:
    with pytest.raises(ForeignKeyError) as caught:
        await tea(memories, rival_agent_id)

    assert caught.value.constraint == "memories_org_id_agent_id_fkey"


async def test_a_session_of_another_organization_is_refused(
    ibex_db: Database, memories: MemoryRepository, agent_id: UUID, rival_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        run = await SessionRepository(rival).start(agent_id=rival_agent_id)

    with pytest.raises(ForeignKeyError) as caught:
        await tea(memories, agent_id, session_id=run.id)
    assert caught.value.constraint == "memories_org_id_session_id_fkey"


@pytest.mark.parametrize("tags", [(), ("a", "b")])
async def test_a_new_memory_is_one_statement_and_a_twin_is_looked_at_by_another(
    memories: MemoryRepository, agent_id: UUID, sent: Sent, vector: Vector, tags: tuple[str, ...]
) -> None:
    # New; over an expired twin, which is met, seen and retired before the INSERT is run again; over a live one.
    for fields, expected in (({"expires_at": PAST}, 1), ({}, 4), ({}, 2)):
        with sent() as statements:
            await tea(memories, agent_id, tags=tags, embedding=vector(1), **fields)

        assert len(statements) == expected


async def test_pending_objects_are_known_already(session: ScopedSession, agent_id: UUID) -> None:
    mine = Memory(agent_id=agent_id, content=TEA, category=MemoryCategory.PREFERENCE)
    session.add(mine)
    kept = await tea(MemoryRepository(session), agent_id)

    assert not kept.created
    assert kept.memory is mine


async def test_a_failure_that_was_caught_is_told_at_the_end_for_it_undid_the_rest(
    ibex_db: Database, org_id: UUID, agent_id: UUID, rival_agent_id: UUID
) -> None:
    with pytest.raises(DatabaseError, match="nothing was committed"):
        async with ibex_db.tenant(org_id) as session:
            await tea(MemoryRepository(session), agent_id)
            with pytest.raises(ForeignKeyError):
                await tea(MemoryRepository(session), rival_agent_id)

    async with ibex_db.tenant(org_id) as session:
        assert await MemoryRepository(session).count() == 0


async def test_a_failure_within_a_savepoint_undoes_itself_only(
    ibex_db: Database, org_id: UUID, agent_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(org_id) as session:
        await tea(MemoryRepository(session), agent_id)
        with pytest.raises(ForeignKeyError):
            async with session.begin_nested():
                await tea(MemoryRepository(session), rival_agent_id)

    async with ibex_db.tenant(org_id) as session:
        assert await MemoryRepository(session).count() == 1


# -- many writers at once


async def test_fifty_writers_of_one_statement_make_one_row(
    small_pool: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    async def write() -> tuple[UUID, bool]:
        async with small_pool.tenant(org_id) as session:
            kept = await tea(MemoryRepository(session), agent_id, tags=["drinks"])
            return kept.memory.id, kept.created

    found = await asyncio.gather(*(write() for _ in range(50)))

    ids = await owner.fetch("SELECT id FROM ibex_core.memories")
    assert {ident for ident, _ in found} == {row["id"] for row in ids}
    assert len(ids) == 1
    assert sum(created for _, created in found) == 1
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memory_tags") == 1


async def test_fifty_writers_over_an_expired_twin_make_one_live_row(
    small_pool: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    async with small_pool.tenant(org_id) as session:
        old = (await tea(MemoryRepository(session), agent_id, expires_at=PAST)).memory.id

    async def write() -> tuple[UUID, bool]:
        async with small_pool.tenant(org_id) as session:
            kept = await tea(MemoryRepository(session), agent_id)
            return kept.memory.id, kept.created

    found = await asyncio.gather(*(write() for _ in range(50)))

    live = await owner.fetch("SELECT id FROM ibex_core.memories WHERE deleted_at IS NULL")
    assert {ident for ident, _ in found} == {row["id"] for row in live}
    assert len(live) == 1
    assert old not in {ident for ident, _ in found}
    assert sum(created for _, created in found) == 1


async def test_a_writer_that_waited_for_one_who_gave_up_keeps_its_own(
    ibex_db: Database, org_id: UUID, agent_id: UUID
) -> None:
    started = asyncio.Event()

    async def give_up() -> None:
        async with ibex_db.tenant(org_id) as session:
            await tea(MemoryRepository(session), agent_id)
            started.set()
            await asyncio.sleep(0.2)
            await session.rollback()

    async def write() -> Kept:
        await started.wait()
        async with ibex_db.tenant(org_id) as session:
            return await tea(MemoryRepository(session), agent_id)

    _, kept = await asyncio.gather(give_up(), write())

    assert kept.created


# -- sessions that are not ours


@pytest_asyncio.fixture
async def plain(ibex_test_database: TestDatabase) -> AsyncIterator[AsyncSession]:
    """A service's own engine, whose vectors travel as text."""
    database = ibex_test_database.connect()
    url = database.engine.url
    await database.close()
    engine = create_async_engine(url)
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()


async def test_a_plain_session_of_a_plain_engine_will_do(
    plain: AsyncSession, org_id: UUID, agent_id: UUID, vector: Vector
) -> None:
    memories = MemoryRepository(plain, org_id)
    first = await tea(memories, agent_id, embedding=vector(1), tags=["drinks"], metadata={"a": 1})
    again = await tea(memories, agent_id, embedding=vector(1))
    many = await memories.remember_many(
        [
            {"agent_id": agent_id, "content": TEA, "category": "factual"},
            {"agent_id": agent_id, "content": "New.", "category": "factual", "embedding": vector(2), "tags": ["x"]},
        ]
    )
    hits = await memories.search(embedding=vector(2), agent_id=agent_id)

    assert (first.created, again.created, many.created) == (True, False, 1)
    assert [hit.memory.content for hit in hits] == ["New.", TEA]
    assert hits[0].similarity == pytest.approx(1.0)
    await plain.rollback()
    assert await memories.count() == 0
