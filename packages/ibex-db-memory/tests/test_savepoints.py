"""What verbs wrote in a savepoint that is rolled back is gone from the session's objects as well."""

from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import inspect, text

from ibex_db_core.database import Database
from ibex_db_core.engine import EngineSettings
from ibex_db_core.errors import NotFoundError
from ibex_db_core.tenant import ScopedSession
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import Memory, MemoryRepository, SessionRepository, SessionStatus

Verb = Callable[[MemoryRepository, UUID, UUID], Awaitable[object]]

# By name, as a failure should tell which; of each memory, the second is for verbs that take two.
VERBS: dict[str, Verb] = {
    "update": lambda memories, one, _: memories.update(one, confidence=0.125),
    "record_retrieval": lambda memories, one, _: memories.record_retrieval([one]),
    "record_injection": lambda memories, one, _: memories.record_injection([one]),
    "give_feedback": lambda memories, one, _: memories.give_feedback(helpful=[one]),
    "archive": lambda memories, one, _: memories.archive(one),
    "forget": lambda memories, one, _: memories.forget(one),
    "merge": lambda memories, one, two: memories.merge([one], into=two),
    "update of metadata": lambda memories, one, _: memories.update(one, metadata={"seen": True}),
}
SHOWN = (
    "confidence",
    "retrieval_count",
    "positive_feedback",
    "usefulness_score",
    "last_injected_at",
    "status",
    "merged_into",
    "deleted_at",
    "metadata",
    "updated_at",
)


class UndoError(Exception):
    """Whatever makes a savepoint go wrong."""


@pytest_asyncio.fixture
async def warm(ibex_test_database: TestDatabase, org_id: UUID) -> AsyncIterator[Database]:
    """One connection in the pool, so that statements go straight to the driver."""
    async with ibex_test_database.connect(EngineSettings(pool_size=1, max_overflow=0)) as database:
        async with database.tenant(org_id):
            pass
        yield database


async def two(memories: MemoryRepository, agent_id: UUID) -> list[UUID]:
    said = ("Prefers tea over coffee.", "Prefers tea.")
    return [
        (await memories.remember(agent_id=agent_id, content=content, category="preference")).memory.id
        for content in said
    ]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("loaded", ["before", "after"])
async def test_a_memory_shows_what_the_database_has(
    warm: Database, org_id: UUID, agent_id: UUID, verb: str, loaded: str
) -> None:
    async with warm.tenant(org_id) as session:
        ids = await two(MemoryRepository(session), agent_id)

    async with warm.tenant(org_id) as session:
        memories = MemoryRepository(session)
        held: list[Memory] = list(await memories.get_many(ids)) if loaded == "before" else []
        with pytest.raises(UndoError):
            async with session.begin_nested():
                await VERBS[verb](memories, ids[0], ids[1])
                held = held or list(await memories.get_many(ids, include_deleted=True))
                raise UndoError

        found = await memories.get(ids[0])
        columns = ", ".join(f"CAST({name} AS text)" for name in SHOWN)
        row = text(f"SELECT {columns} FROM ibex_core.memories WHERE id = :id")
        before = (await session.execute(row, {"id": ids[0]})).one()
        session.expunge_all()
        anew = await MemoryRepository(session).get(ids[0])
        names = [name if name != "metadata" else "metadata_" for name in SHOWN]
        assert {name: getattr(found, name) for name in names} == {name: getattr(anew, name) for name in names}
        assert found in held
        assert before.status == "active"  # nothing of it was kept


async def test_a_memory_that_was_kept_in_it_is_no_longer_of_the_session(
    warm: Database, org_id: UUID, agent_id: UUID
) -> None:
    async with warm.tenant(org_id) as session:
        memories = MemoryRepository(session)
        await memories.count()
        savepoint = await session.begin_nested()
        kept = await memories.remember(agent_id=agent_id, content="Has a cat.", category="factual")
        await savepoint.rollback()

        assert inspect(kept.memory).transient  # as what add() was given
        assert kept.memory.content == "Has a cat."
        assert await session.get(Memory, kept.memory.id) is None
        with pytest.raises(NotFoundError):
            await memories.get(kept.memory.id)


async def test_a_run_and_its_checkpoint_that_began_in_it_are_not_either(
    session: ScopedSession, sessions: SessionRepository, agent_id: UUID
) -> None:
    run = await sessions.start(agent_id=agent_id)
    savepoint = await session.begin_nested()
    other = await sessions.get_or_start("thread-1", agent_id=agent_id)
    checkpoint = await sessions.checkpoint(run.id, {"step": 1})
    await sessions.complete(run.id)
    await savepoint.rollback()

    assert inspect(other).transient
    assert inspect(checkpoint).transient
    assert (await sessions.get(run.id)).status is SessionStatus.ACTIVE
