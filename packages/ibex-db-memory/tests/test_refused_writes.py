"""What only a verb may write, no update(), no draft and no assignment writes by halves."""

from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, InvalidInputError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import Memory, MemoryRepository, MemoryStatus, SessionRepository

SOON = timedelta(days=1)


async def tea(memories: MemoryRepository, agent_id: UUID, content: str = "Tea.", **more: Any) -> Memory:
    return (await memories.remember(agent_id=agent_id, content=content, category="factual", **more)).memory


async def expired(memories: MemoryRepository, agent_id: UUID, content: str = "Tea.") -> UUID:
    return (await tea(memories, agent_id, content, expires_at=datetime.now(UTC) - SOON)).id


# -- what update, a draft and an assignment may say


@pytest.mark.parametrize(
    ("field", "value", "way_out"),
    [
        ("superseded_by", uuid4(), "supersede()"),
        ("superseded_by", None, "supersede()"),
        ("merged_into", uuid4(), "merge()"),
        ("deleted_at", datetime.now(UTC), "forget()"),
        ("agent_id", uuid4(), "remember()"),
        ("retrieval_count", 7, "record_retrieval()"),
        ("positive_feedback", 7, "give_feedback()"),
        ("last_injected_at", None, "record_injection()"),
        ("tags", ["drinks"], "tag()"),
    ],
)
async def test_update_leaves_to_the_verbs_what_is_theirs(
    memories: MemoryRepository, agent_id: UUID, field: str, value: object, way_out: str
) -> None:
    memory = await tea(memories, agent_id)

    with pytest.raises(InvalidInputError) as caught:
        await memories.update(memory.id, confidence=0.1, **{field: value})
    assert caught.value.field == field
    assert way_out in caught.value.rule
    assert float((await memories.get(memory.id)).confidence) == 0.8


async def test_update_takes_metadata_by_its_name(memories: MemoryRepository, agent_id: UUID) -> None:
    memory = await tea(memories, agent_id)

    assert (await memories.update(memory.id, metadata={"turn": 1})).metadata_ == {"turn": 1}
    with pytest.raises(InvalidInputError) as caught:
        await memories.update(memory.id, metadata="{}")
    assert caught.value.field == "metadata"


@pytest.mark.parametrize(("status", "verb"), [("superseded", "supersede"), ("merged", "merge")])
async def test_a_draft_has_no_status_that_needs_a_pointer(
    memories: MemoryRepository, agent_id: UUID, status: str, verb: str
) -> None:
    with pytest.raises(InvalidInputError, match=verb) as caught:
        await tea(memories, agent_id, status=status)
    assert caught.value.field == "status"


@pytest.mark.parametrize("pointer", ["superseded_by", "merged_into"])
async def test_a_pointer_goes_with_its_status(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID, pointer: str
) -> None:
    memory, other = await tea(memories, agent_id), await tea(memories, agent_id, "Coffee.")

    with pytest.raises(InvalidInputError) as caught:
        async with session.begin_nested():
            new: Any = {"agent_id": agent_id, "content": "New.", "category": "factual", pointer: other.id}
            await memories.add(Memory(**new))
    assert caught.value.field == pointer
    setattr(memory, pointer, other.id)
    with pytest.raises(InvalidInputError) as caught:
        async with session.begin_nested():
            await session.flush()
    assert caught.value.field == pointer


async def test_a_pointer_is_not_taken_from_its_status(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID
) -> None:
    memory, other = await tea(memories, agent_id), await tea(memories, agent_id, "Coffee.")
    await memories.supersede(memory.id, by=other.id)

    memory.superseded_by = None
    with pytest.raises(InvalidInputError, match="restore"):
        async with session.begin_nested():
            await session.flush()


async def test_a_memory_stays_with_its_agent(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID
) -> None:
    memory = await tea(memories, agent_id)

    memory.agent_id = other_agent_id
    with pytest.raises(InvalidInputError, match="forget"):
        async with session.begin_nested():
            await session.flush()


async def test_a_content_is_not_assigned_without_its_vector(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID
) -> None:
    old = [1.0, *[0.0] * 383]
    memory = await tea(memories, agent_id, embedding=old)

    with pytest.raises(InvalidInputError, match="must come with content") as caught:
        async with session.begin_nested():
            memory.content = "Coffee."
            await session.flush()
    assert caught.value.field == "embedding"
    await session.refresh(memory)
    memory.content, memory.embedding = "Coffee.", None
    await session.flush()
    assert list(await memories.search(embedding=old)) == []


# -- an expired twin counts as gone


async def test_an_expired_twin_does_not_stand_in_the_way_of_approval(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    asked = await tea(memories, agent_id, status="pending_review")
    twin = await expired(memories, agent_id)

    assert (await memories.approve(asked.id)).status is MemoryStatus.ACTIVE
    assert await memories.get_or_none(twin) is None


async def test_an_expired_twin_does_not_stand_in_the_way_of_other_words(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    other, twin = await tea(memories, agent_id, "Coffee."), await expired(memories, agent_id)

    assert (await memories.update(other.id, content="Tea.", embedding=None)).content == "Tea."
    assert await memories.get_or_none(twin) is None


async def test_an_expired_twin_does_not_stand_in_the_way_of_restoring(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    forgotten = await tea(memories, agent_id)
    await memories.forget(forgotten.id)
    twin = await expired(memories, agent_id)

    assert (await memories.restore(forgotten.id)).deleted_at is None
    assert await memories.get_or_none(twin) is None
    await memories.archive(forgotten.id)
    twin = await expired(memories, agent_id)
    assert (await memories.restore(forgotten.id)).status is MemoryStatus.ACTIVE
    assert await memories.get_or_none(twin) is None


async def test_an_expired_twin_does_not_stand_in_the_way_of_reverting(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    changed = await tea(memories, agent_id)
    await memories.update(changed.id, content="Coffee.", embedding=None)
    twin = await expired(memories, agent_id)

    assert (await memories.revert(changed.id, 1)).content == "Tea."
    assert await memories.get_or_none(twin) is None


async def test_an_expired_memory_is_not_its_own_twin_and_a_live_one_stays(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    gone = await expired(memories, agent_id)
    live = await tea(memories, agent_id, "Coffee.")

    assert (await memories.update(gone, content="tea.", embedding=None)).deleted_at is None
    with pytest.raises(ConflictError):
        await memories.update(gone, content="Coffee.", embedding=None)
    assert live.deleted_at is None


# -- sessions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "abandoned"),
        ("status", "suspended"),
        ("checkpoint_sequence", 0),
        ("ended_at", None),
        ("turn_count", 3),
        ("last_error", "x"),
    ],
)
async def test_the_books_of_a_session_are_its_verbs(
    sessions: SessionRepository, agent_id: UUID, field: str, value: object
) -> None:
    run = await sessions.start(agent_id=agent_id)

    with pytest.raises(InvalidInputError) as caught:
        await sessions.update(run.id, **{field: value})
    assert caught.value.field == field
    assert (await sessions.update(run.id, metadata={"a": 1})).metadata_ == {"a": 1}


async def test_a_checkpoint_is_numbered_after_the_last_whatever_the_books_say(
    session: ScopedSession, sessions: SessionRepository, agent_id: UUID
) -> None:
    run = await sessions.start(agent_id=agent_id)
    await sessions.checkpoint(run.id, {"step": 1})
    await session.execute(text("UPDATE ibex_core.sessions SET checkpoint_sequence = 0"))

    assert (await sessions.checkpoint(run.id, {"step": 2})).sequence_number == 2


async def test_turns_stay_at_the_highest_count(sessions: SessionRepository, agent_id: UUID) -> None:
    run = await sessions.start(agent_id=agent_id)
    for turns in (2**31 - 1, 2**31 - 1):
        assert (await sessions.heartbeat(run.id, turns=turns)).turn_count == 2**31 - 1


@pytest.mark.parametrize("bad", [timedelta.max, timedelta(0), 5, None])
async def test_how_old_is_stale_has_bounds(sessions: SessionRepository, bad: Any) -> None:
    for sweep in (sessions.find_stale, sessions.abandon_stale):
        with pytest.raises(InvalidInputError) as caught:
            await sweep(older_than=bad)
        assert caught.value.field == "older_than"
    assert list(await sessions.find_stale(older_than=timedelta(days=36_500))) == []


# -- what is no list of ids


@pytest.mark.parametrize("bad", [UUID(int=1), None, 5, str(UUID(int=1))])
async def test_one_id_or_none_is_no_list_of_ids(memories: MemoryRepository, agent_id: UUID, bad: Any) -> None:
    for field, call in (
        ("idents", lambda: memories.merge(bad, into=agent_id)),
        ("idents", lambda: memories.record_retrieval(bad)),
        ("idents", lambda: memories.record_injection(bad)),
        ("helpful", lambda: memories.give_feedback(helpful=bad)),
        ("idents", lambda: memories.embeddings(bad)),
        ("idents", lambda: memories.get_many(bad)),
        ("lines", lambda: memories.import_(bad)),
        ("agents", lambda: anext(memories.export(agents=cast("Any", bad or 5)))),
        ("weights", lambda: memories.hot(agent_id, weights=cast("Any", bad or "x"))),
    ):
        with pytest.raises(InvalidInputError) as caught:
            await cast("Awaitable[object]", call())
        assert caught.value.field == field


async def test_supersede_and_merge_take_an_id_as_text(memories: MemoryRepository, agent_id: UUID) -> None:
    one, two, three = [await tea(memories, agent_id, word) for word in ("One.", "Two.", "Three.")]
    texts: list[Any] = [str(two.id), str(three.id)]

    assert (await memories.supersede(one.id, by=texts[0])).id == two.id
    assert (await memories.merge([two.id], into=texts[1])).id == three.id
    bad: Any = {"agent_id": agent_id, "content": " ", "category": "factual"}
    for wrong, field in (("z", "by"), (bad, "content")):
        with pytest.raises(InvalidInputError) as caught:
            await memories.supersede(three.id, by=cast("Any", wrong))
        assert (caught.value.field, caught.value.index) == (field, None)


# -- what a search remembers of a scope


async def test_a_search_sees_how_much_was_just_remembered(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        assert (await memories.search(text="tea")).plan.scope_rows == 0
        await tea(memories, agent_id)
        assert (await memories.search(text="tea")).plan.scope_rows == 1
        await memories.remember_many(
            {"agent_id": agent_id, "content": f"Tea {n}.", "category": "factual"} for n in range(300)
        )
        assert (await memories.search(text="tea")).plan.scope_rows == 301
        await tea(memories, agent_id, "One more.")
        assert (await memories.search(text="tea")).plan.scope_rows == 301  # not worth a count
