"""Edges between memories."""

from decimal import Decimal

import pytest
from homes import Home, MakeMemory
from sqlalchemy import select, text
from sqlalchemy.orm import selectinload

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, ForeignKeyError, InvalidInputError, RuleViolationError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import Memory, MemoryRelationship, RelationshipType


@pytest.mark.parametrize(("field", "value"), [("relationship_type", "friend_of"), ("confidence", 1.5)])
def test_bad_input_is_refused_on_assignment(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError):
        MemoryRelationship(**{field: value})


async def test_an_edge_knows_both_ends(session: ScopedSession, home: Home, make_memory: MakeMemory) -> None:
    source, target = make_memory("new"), make_memory("old")
    session.add(MemoryRelationship(source=source, target=target, relationship_type="supersedes"))
    await session.flush()
    session.expunge_all()

    edge = (
        await session.scalars(
            select(MemoryRelationship).options(
                selectinload(MemoryRelationship.source), selectinload(MemoryRelationship.target)
            )
        )
    ).one()

    assert (edge.source.content, edge.target.content) == ("new", "old")
    assert (edge.relationship_type, edge.confidence) == (RelationshipType.SUPERSEDES, Decimal("1.000"))
    assert edge.org_id == home.org_id


async def test_an_edge_exists_once(session: ScopedSession, make_memory: MakeMemory) -> None:
    source, target = make_memory("a"), make_memory("b")
    for _ in range(2):
        session.add(MemoryRelationship(source=source, target=target, relationship_type="related_to"))

    with pytest.raises(ConflictError) as caught:
        await session.flush()

    assert caught.value.constraint == "memory_relationships_edge_key"


async def test_a_memory_is_not_related_to_itself(session: ScopedSession, make_memory: MakeMemory) -> None:
    memory = make_memory()
    session.add(MemoryRelationship(source=memory, target=memory, relationship_type="related_to"))

    with pytest.raises(RuleViolationError) as caught:
        await session.flush()

    assert caught.value.constraint == "memory_relationships_no_self_loop"


@pytest.mark.parametrize("end", ["a", "b"])
async def test_an_edge_goes_with_either_end(session: ScopedSession, make_memory: MakeMemory, end: str) -> None:
    session.add(MemoryRelationship(source=make_memory("a"), target=make_memory("b"), relationship_type="contradicts"))
    await session.flush()

    await session.execute(text("DELETE FROM ibex_core.memories WHERE content = :end"), {"end": end})

    assert await session.scalar(text("SELECT count(*) FROM ibex_core.memory_relationships")) == 0


async def test_no_edge_leads_to_another_organization(
    ibex_db: Database, home: Home, other_home: Home, make_memory: MakeMemory
) -> None:
    theirs = Memory(agent_id=other_home.agent_id, content="secret", category="factual")
    async with ibex_db.tenant(other_home.org_id) as session:
        session.add(theirs)

    with pytest.raises(ForeignKeyError):
        async with ibex_db.tenant(home.org_id) as session:
            session.add(
                MemoryRelationship(source=make_memory(), target_memory_id=theirs.id, relationship_type="related_to")
            )
