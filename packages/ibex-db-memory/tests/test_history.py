"""Versions: what a memory said after each change, written by the database itself."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, InvalidInputError, NotFoundError
from ibex_db_memory import Memory, MemoryRepository, content_hash

Vector = Callable[[int], list[float]]


async def remembered(memories: MemoryRepository, agent_id: UUID, content: str = "Tea.") -> UUID:
    return (await memories.remember(agent_id=agent_id, content=content, category="factual")).memory.id


async def test_the_first_version_is_the_memory_as_it_was_made(memories: MemoryRepository, agent_id: UUID) -> None:
    (version,) = await memories.history(await remembered(memories, agent_id))

    assert (version.version_num, version.operation, version.content) == (1, "created", "Tea.")
    assert (version.category, version.status, version.confidence) == ("factual", "active", Decimal("0.800"))
    assert (version.metadata_, version.change_reason, version.changed_by) == ({}, None, None)


async def test_each_change_is_a_version_oldest_first(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await remembered(memories, agent_id)
    await memories.update(ident, content="Coffee.", embedding=None, confidence=0.9)
    await memories.update(ident, category="preference")
    await memories.update(ident, metadata_={"turn": 1})
    await memories.update(ident, status="archived")

    versions = await memories.history(ident)
    assert [version.version_num for version in versions] == [1, 2, 3, 4, 5]
    assert [version.operation for version in versions] == ["created", *["updated"] * 3, "status_changed"]
    assert [version.content for version in versions] == ["Tea.", *["Coffee."] * 4]
    assert [version.confidence for version in versions][1] == Decimal("0.900")
    assert [version.metadata_ for version in versions] == [{}, {}, {}, {"turn": 1}, {"turn": 1}]
    assert versions[-1].status == "archived"


async def test_what_changes_nothing_that_is_told_is_no_version(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await remembered(memories, agent_id)
    await memories.update(ident, usefulness_score=0.9)
    await memories.update(ident, content="Tea.", embedding=None)
    await memories.update(ident, expires_at=datetime.now(UTC))

    assert len(await memories.history(ident)) == 1


async def test_a_changed_content_has_its_own_hash(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await remembered(memories, agent_id)
    changed = await memories.update(ident, content="Coffee.", embedding=None)
    tea = await memories.remember(agent_id=agent_id, content="tea.", category="factual")
    coffee = await memories.remember(agent_id=agent_id, content="COFFEE.", category="factual")

    assert changed.content_hash == content_hash("Coffee.")
    assert (tea.created, coffee.created) == (True, False)
    assert coffee.memory.id == ident


async def test_a_change_into_what_the_agent_knows_already_is_a_conflict(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    ident = await remembered(memories, agent_id)
    await remembered(memories, agent_id, "Coffee.")

    with pytest.raises(ConflictError) as caught:
        await memories.update(ident, content="coffee.", embedding=None)
    assert caught.value.constraint == "memories_content_hash_org"


async def test_a_deleted_memory_has_its_history(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await remembered(memories, agent_id)
    await memories.delete(ident)

    assert len(await memories.history(ident)) == 1


async def test_a_memory_that_is_not_there_has_none(
    ibex_db: Database, memories: MemoryRepository, rival_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        foreign = await remembered(MemoryRepository(rival), rival_agent_id)

    for ident in (foreign, uuid4()):
        with pytest.raises(NotFoundError):
            await memories.history(ident)


# -- a new content and its vector


async def vector_of(memories: MemoryRepository, ident: UUID) -> list[float] | None:
    found = (await memories.session.execute(select(Memory.embedding).where(Memory.id == ident))).scalar_one()
    return None if found is None else list(found)


async def embedded(memories: MemoryRepository, agent_id: UUID, vector: Vector) -> UUID:
    kept = await memories.remember(agent_id=agent_id, content="Tea.", category="factual", embedding=vector(1))
    return kept.memory.id


async def test_a_new_content_must_come_with_its_vector(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    ident = await embedded(memories, agent_id, vector)

    with pytest.raises(InvalidInputError, match="must come with content") as caught:
        await memories.update(ident, content="Coffee.")
    assert caught.value.field == "embedding"
    assert (await memories.get(ident)).content == "Tea."

    await memories.update(ident, content="Coffee.", embedding=vector(2))
    assert await vector_of(memories, ident) == vector(2)
    await memories.update(ident, confidence=0.5)
    assert await vector_of(memories, ident) == vector(2)
    await memories.update(ident, content="Water.", embedding=None)
    assert await vector_of(memories, ident) is None


# -- as_of


async def test_as_of_tells_what_was_said_at_each_moment(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    before = await now(ibex_db, org_id)
    async with ibex_db.tenant(org_id) as session:
        ident = await remembered(MemoryRepository(session), agent_id, "Number 0.")
    moments: list[datetime] = []
    for n in range(1, 4):
        moments.append(await now(ibex_db, org_id))
        async with ibex_db.tenant(org_id) as session:
            await MemoryRepository(session).update(ident, content=f"Number {n}.", embedding=None)
    moments.append(await now(ibex_db, org_id))
    async with ibex_db.tenant(org_id) as session:
        await MemoryRepository(session).forget(ident)

    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        said = [(await memories.as_of(ident, moment)).content for moment in moments]
        assert said == [f"Number {n}." for n in range(4)]
        for version in await memories.history(ident):  # to the microsecond
            assert (await memories.as_of(ident, version.created_at)).version_num == version.version_num
        with pytest.raises(NotFoundError):
            await memories.as_of(ident, before)
        with pytest.raises(InvalidInputError):
            await memories.as_of(ident, before.replace(tzinfo=None))


async def test_of_several_changes_in_one_transaction_the_last_counts(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    ident = await remembered(memories, agent_id)
    await memories.update(ident, confidence=0.1)
    await memories.update(ident, confidence=0.2)

    assert (await memories.as_of(ident, datetime.now(UTC))).version_num == 3


async def test_another_organizations_memory_has_no_past_here(
    ibex_db: Database, memories: MemoryRepository, rival_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        foreign = await remembered(MemoryRepository(rival), rival_agent_id)

    with pytest.raises(NotFoundError):
        await memories.as_of(foreign, datetime.now(UTC))
    with pytest.raises(NotFoundError):
        await memories.revert(foreign, 1)


async def now(db: Database, org_id: UUID) -> datetime:
    """A moment between two transactions, by the server's clock."""
    async with db.tenant(org_id) as session:
        return cast("datetime", (await session.execute(text("SELECT clock_timestamp()"))).scalar_one())


# -- revert


async def test_every_version_can_be_gone_back_to(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await remembered(memories, agent_id)
    await memories.update(ident, content="Coffee.", embedding=None, confidence=0.9)
    await memories.update(ident, category="preference", metadata_={"turn": 1})
    await memories.archive(ident)
    actor = uuid4()

    for version in list(await memories.history(ident)):
        back = await memories.revert(ident, version.version_num, reason="it was right", actor=actor)
        assert (back.content, back.category, back.confidence, back.metadata_) == (
            version.content,
            version.category,
            version.confidence,
            version.metadata_,
        )
        assert (back.status, back.content_hash) == ("archived", content_hash(version.content))
    # 1 and 2 and 3 were changes, 4 said what 3 said.
    told = [(v.operation.value, v.change_reason, v.changed_by) for v in await memories.history(ident)]
    assert told[4:] == [("reverted", "it was right", actor)] * 3


async def test_a_content_that_comes_back_has_the_vector_that_is_given_or_none(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    ident = await embedded(memories, agent_id, vector)
    await memories.update(ident, content="Coffee.", embedding=vector(2))

    await memories.revert(ident, 1)
    assert await vector_of(memories, ident) is None
    await memories.revert(ident, 2, embedding=vector(3))
    assert await vector_of(memories, ident) == vector(3)


async def test_a_content_that_stays_keeps_its_vector(
    memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    ident = await embedded(memories, agent_id, vector)
    await memories.update(ident, confidence=0.1)

    with pytest.raises(InvalidInputError, match="must be left out"):
        await memories.revert(ident, 1, embedding=vector(2))
    assert (await memories.revert(ident, 1)).confidence == Decimal("0.800")
    assert await vector_of(memories, ident) == vector(1)


async def test_going_back_beside_an_active_twin_is_a_conflict(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await remembered(memories, agent_id)
    await memories.update(ident, content="Coffee.", embedding=None)
    await remembered(memories, agent_id, "TEA.")

    with pytest.raises(ConflictError) as caught:
        await memories.revert(ident, 1, reason="r")

    assert caught.value.constraint == "memories_content_hash_org"
    assert (await memories.get(ident)).content == "Coffee."
    await memories.update(ident, confidence=0.1)
    assert (await memories.history(ident))[-1].change_reason is None


async def test_a_version_that_is_not_there_is_not_gone_back_to(memories: MemoryRepository, agent_id: UUID) -> None:
    ident, gone = await remembered(memories, agent_id), await remembered(memories, agent_id, "Gone.")
    await memories.forget(gone)

    for wrong, number in ((ident, 2), (gone, 1), (uuid4(), 1)):
        with pytest.raises(NotFoundError):
            await memories.revert(wrong, number)
    with pytest.raises(InvalidInputError):
        await memories.revert(ident, 0)


async def test_changes_at_once_get_a_version_each(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        ident = await remembered(MemoryRepository(session), agent_id)

    async def change(n: int) -> None:
        async with ibex_db.tenant(org_id) as session:
            memories = MemoryRepository(session)
            await (memories.update(ident, confidence=n / 100) if n % 2 else memories.revert(ident, 1))

    await asyncio.gather(*(change(n) for n in range(12)))

    async with ibex_db.tenant(org_id) as session:
        versions = await MemoryRepository(session).history(ident)
    assert [version.version_num for version in versions] == list(range(1, len(versions) + 1))
    assert len(versions) >= 7
