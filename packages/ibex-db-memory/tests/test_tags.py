"""Tags: one spelling, counted where they count."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import selectinload

from ibex_db_core.database import Database
from ibex_db_core.errors import ForeignKeyError, InvalidInputError
from ibex_db_memory import Memory, MemoryRepository, TagCount


async def remembered(memories: MemoryRepository, agent_id: UUID, content: str = "Tea.", *tags: str) -> UUID:
    kept = await memories.remember(agent_id=agent_id, content=content, category="factual", tags=tags)
    return kept.memory.id


async def tags_of(memories: MemoryRepository, ident: UUID) -> list[str]:
    memory = await memories.get(ident, options=[selectinload(Memory.tags)])
    return [tag.tag for tag in memory.tags]


async def test_a_tag_has_one_spelling(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await remembered(memories, agent_id)

    added = await memories.tag(ident, "  Hot   Drinks ", "hot drinks", "HOT DRINKS", "Ärger")

    assert added == ["hot drinks", "ärger"]
    assert await memories.tag(ident, "Hot drinks", "tea") == ["tea"]
    assert await memories.untag(ident, "HOT drinks", "none") == ["hot drinks"]
    assert await tags_of(memories, ident) == ["tea", "ärger"]


@pytest.mark.parametrize("bad", [(), (" ",), ("x" * 65,), ("a\x00",), (3,)])
async def test_bad_tags_are_refused(memories: MemoryRepository, agent_id: UUID, bad: tuple[str, ...]) -> None:
    ident = await remembered(memories, agent_id)

    for attempt in (memories.tag(ident, *bad), memories.untag(ident, *bad)):
        with pytest.raises(InvalidInputError):
            await attempt


async def test_another_organizations_memory_is_not_tagged(
    ibex_db: Database, memories: MemoryRepository, rival_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        theirs = await remembered(MemoryRepository(rival), rival_agent_id, "Tea.", "theirs")

    for ident in (theirs, uuid4()):
        assert await memories.untag(ident, "theirs") == []
        with pytest.raises(ForeignKeyError):
            async with memories.session.begin_nested():
                await memories.tag(ident, "mine")
    assert (await memories.tags(), await memories.rename_tag("theirs", "mine")) == ([], 0)
    async with ibex_db.tenant(rival_id) as rival:
        assert await MemoryRepository(rival).tags() == [TagCount("theirs", 1)]


async def test_only_memories_that_are_found_count(memories: MemoryRepository, agent_id: UUID) -> None:
    keep, gone, old, aside, late, asked = [
        await remembered(memories, agent_id, f"Number {n}.", "tea", f"n{n}") for n in range(6)
    ]
    await memories.forget(gone)
    await memories.supersede(old, by=keep)
    await memories.archive(aside)
    await memories.update(late, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await memories.update(asked, expires_at=datetime.now(UTC) + timedelta(days=1))

    assert await memories.tags() == [TagCount("tea", 2), TagCount("n0", 1), TagCount("n5", 1)]


async def test_the_most_used_come_first_for_one_agent_or_all(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID
) -> None:
    for n in range(3):
        await remembered(memories, agent_id, f"Number {n}.", "b", *["a"][: n // 2])
    await remembered(memories, other_agent_id, "Other.", "a", "c")

    assert await memories.tags() == [TagCount("b", 3), TagCount("a", 2), TagCount("c", 1)]
    assert await memories.tags(limit=1) == [TagCount("b", 3)]
    assert await memories.tags(agent_id=other_agent_id) == [TagCount("a", 1), TagCount("c", 1)]
    with pytest.raises(InvalidInputError):
        await memories.tags(limit=0)


async def test_renaming_leaves_one_where_both_were(memories: MemoryRepository, agent_id: UUID) -> None:
    both = await remembered(memories, agent_id, "Both.", "musik", "music", "x")
    old = await remembered(memories, agent_id, "Old.", "musik")
    new = await remembered(memories, agent_id, "New.", "music")

    assert await memories.rename_tag(" MUSIK", "Music") == 2
    assert await memories.rename_tag("musik", "music") == 0
    assert [await tags_of(memories, ident) for ident in (both, old, new)] == [["music", "x"], ["music"], ["music"]]


async def test_a_tag_is_not_renamed_to_itself(memories: MemoryRepository) -> None:
    with pytest.raises(InvalidInputError, match="another tag"):
        await memories.rename_tag("Music", " music ")


async def test_tagging_at_once_in_any_order_is_tagging_once(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        ident = await remembered(MemoryRepository(session), agent_id)
    names = [f"tag {n:02}" for n in range(40)]

    async def tag(order: list[str]) -> list[str]:
        async with ibex_db.tenant(org_id) as session:
            return list(await MemoryRepository(session).tag(ident, *order))

    added = await asyncio.gather(*(tag(names[::step]) for step in (1, -1) * 4))

    assert sorted(name for some in added for name in some) == names
    async with ibex_db.tenant(org_id) as session:
        assert await tags_of(MemoryRepository(session), ident) == names


async def test_a_tag_is_renamed_beside_an_erasure(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    """Whoever erases holds the memory first and then its tags: a renaming must take them in this order, too."""
    async with ibex_db.tenant(org_id) as session:
        for word in ("One.", "Two."):
            kept = await MemoryRepository(session).remember(
                agent_id=agent_id, content=word, category="factual", tags=["old"]
            )
    ident = kept.memory.id

    async def rename() -> int:
        async with ibex_db.tenant(org_id) as session:
            return await MemoryRepository(session).rename_tag("old", "new")

    async with ibex_db.tenant(org_id) as session:
        held = text("SELECT FROM ibex_core.memories WHERE id = :id FOR UPDATE")
        await session.execute(held, {"id": ident})
        renaming = asyncio.create_task(rename())
        await asyncio.sleep(0.5)  # until it waits for the memory
        await MemoryRepository(session).erase(ident)

    assert await renaming == 1
