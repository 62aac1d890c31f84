"""A memory's status moves by legal steps whoever moves it: a verb, update(), an assignment, raw SQL."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_core.errors import IllegalTransitionError, RuleViolationError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import MEMORY_STEPS, Memory, MemoryRepository, MemoryStatus

PAIRS = [(found, to) for found in MemoryStatus for to in MemoryStatus if found is not to]
POINTING = {MemoryStatus.SUPERSEDED: "superseded_by", MemoryStatus.MERGED: "merged_into"}


async def standing(memories: MemoryRepository, agent_id: UUID, status: MemoryStatus, content: str = "To move.") -> UUID:
    """Return a memory of a status, as the lifecycle leaves it."""
    made = [
        {"agent_id": agent_id, "content": content, "category": "factual", "status": status},
        {"agent_id": agent_id, "content": "Another.", "category": "factual"},
    ]
    if status not in POINTING:
        return (await memories.remember_many(made[:1])).outcomes[0].id
    ident, other = [
        one.id for one in (await memories.remember_many([{**made[0], "status": "active"}, made[1]])).outcomes
    ]
    if status is MemoryStatus.SUPERSEDED:
        await memories.supersede(ident, by=other)
    else:
        await memories.merge([ident], into=other)
    return ident


@pytest.mark.parametrize(("found", "to"), PAIRS)
async def test_update_takes_the_steps_that_need_no_pointer(
    memories: MemoryRepository, agent_id: UUID, found: MemoryStatus, to: MemoryStatus
) -> None:
    ident = await standing(memories, agent_id, found)

    if to in MEMORY_STEPS[found] and not {found, to} & POINTING.keys():
        assert (await memories.update(ident, status=to, confidence=0.5)).status is to
    else:
        with pytest.raises(IllegalTransitionError) as caught:
            await memories.update(ident, status=to, confidence=0.5)
        assert (caught.value.from_state, caught.value.to_state) == (found, to)
        assert caught.value.entity == f"memory {ident}"
        kept = await memories.get(ident)
        assert (kept.status, str(kept.confidence)) == (found, "0.800")


@pytest.mark.parametrize(
    ("found", "to", "hint"),
    [
        ("active", "superseded", r"supersede\(\) and merge\(\)"),
        ("superseded", "active", r"restore\(\)"),
        ("archived", "superseded", "it may become active"),
    ],
)
async def test_the_error_of_update_says_what_to_do(
    memories: MemoryRepository, agent_id: UUID, found: str, to: str, hint: str
) -> None:
    ident = await standing(memories, agent_id, MemoryStatus(found))

    with pytest.raises(IllegalTransitionError, match=f"is {found} and cannot become {to}: .*{hint}"):
        await memories.update(ident, status=to)


async def test_the_same_status_is_no_step(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await standing(memories, agent_id, MemoryStatus.SUPERSEDED)

    assert (await memories.update(ident, status="superseded", confidence=0.1)).status is MemoryStatus.SUPERSEDED


@pytest.mark.parametrize(("found", "to"), PAIRS)
async def test_an_assignment_is_held_to_the_steps_and_to_the_pointers(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID, found: MemoryStatus, to: MemoryStatus
) -> None:
    memory = await memories.get(await standing(memories, agent_id, found))

    memory.status = to
    if to in MEMORY_STEPS[found] and not {found, to} & POINTING.keys():
        await session.flush()
        return
    with pytest.raises(IllegalTransitionError) as caught:
        async with session.begin_nested():
            await session.flush()
    assert (caught.value.from_state, caught.value.to_state) == (found, to)


async def test_an_assignment_that_moves_the_pointer_along_passes(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID
) -> None:
    other = await standing(memories, agent_id, MemoryStatus.ACTIVE, "The newer.")
    memory = await memories.get(await standing(memories, agent_id, MemoryStatus.ACTIVE))

    memory.status, memory.superseded_by = MemoryStatus.SUPERSEDED, other
    await session.flush()
    memory.status, memory.superseded_by = MemoryStatus.ACTIVE, None
    await session.flush()
    assert (await memories.get(memory.id)).status is MemoryStatus.ACTIVE


@pytest.mark.parametrize(("found", "to"), PAIRS)
async def test_raw_sql_is_held_to_the_steps(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID, found: MemoryStatus, to: MemoryStatus
) -> None:
    ident = await standing(memories, agent_id, found)
    change = text("UPDATE ibex_core.memories SET status = :to WHERE id = :id")

    if to in MEMORY_STEPS[found]:
        await session.execute(change, {"to": to.value, "id": ident})
    else:
        with pytest.raises(RuleViolationError, match=f"is {found} cannot become {to}") as caught:
            await session.execute(change, {"to": to.value, "id": ident})
        assert caught.value.constraint == "memories_legal_step"


async def test_an_assignment_from_a_status_of_long_ago_is_refused_by_the_database(
    ibex_db: Database, org_id: UUID, agent_id: UUID
) -> None:
    """The object was loaded as active; meanwhile another transaction has archived the row."""
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        ident, other = [await standing(memories, agent_id, MemoryStatus.ACTIVE, word) for word in ("One.", "Two.")]

    async with ibex_db.tenant(org_id) as session:
        memory = await MemoryRepository(session).get(ident)
        async with ibex_db.tenant(org_id) as elsewhere:
            await MemoryRepository(elsewhere).archive(ident)
        memory.status, memory.superseded_by = MemoryStatus.SUPERSEDED, other
        with pytest.raises(RuleViolationError, match="is archived cannot become superseded"):
            await session.flush()
        await session.rollback()
    async with ibex_db.tenant(org_id) as session:
        kept = await MemoryRepository(session).get(ident)
        assert (kept.status, kept.superseded_by) == (MemoryStatus.ARCHIVED, None)


async def test_a_new_row_may_have_any_status(session: ScopedSession, agent_id: UUID) -> None:
    for status in MemoryStatus:
        session.add(Memory(id=uuid4(), agent_id=agent_id, content=f"Is {status}.", category="factual", status=status))

    await session.flush()
