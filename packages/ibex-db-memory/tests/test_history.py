"""Versions: what a memory said after each change, written by the database itself."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, NotFoundError
from ibex_db_memory import MemoryRepository, content_hash


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
