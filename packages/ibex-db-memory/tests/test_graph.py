"""Relationships: walks that end, and the tip of a chain."""

import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Uuid, bindparam, insert, select, text

from ibex_db_core.database import Database
from ibex_db_core.errors import ForeignKeyError, InvalidInputError, NotFoundError
from ibex_db_memory import Direction, MemoryRelationship, MemoryRepository, Neighbor, RelationshipType
from ibex_db_memory.repositories.memory.graph import WALKS

Sent = Callable[[], AbstractContextManager[list[str]]]


async def remembered(memories: MemoryRepository, agent_id: UUID, count: int) -> list[UUID]:
    done = await memories.remember_many(
        {"agent_id": agent_id, "content": f"Number {n}.", "category": "factual"} for n in range(count)
    )
    return [outcome.id for outcome in done.outcomes]


async def draw(memories: MemoryRepository, *edges: tuple[UUID, UUID]) -> None:
    await memories.session.execute(
        insert(MemoryRelationship),
        [
            {
                "org_id": memories.org_id,
                "source_memory_id": source,
                "target_memory_id": target,
                "relationship_type": RelationshipType.RELATED_TO,
            }
            for source, target in edges
        ],
    )


def told(neighbors: Sequence[Neighbor]) -> list[tuple[UUID, int]]:
    return [(neighbor.memory.id, neighbor.depth) for neighbor in neighbors]


# -- relate, unrelate


async def test_an_edge_has_its_facts(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b = await remembered(memories, agent_id, 2)

    edge = await memories.relate(a, b, "contradicts", confidence=0.25, notes="she changed her mind")

    assert (edge.source_memory_id, edge.target_memory_id) == (a, b)
    assert (edge.relationship_type, edge.confidence, edge.notes) == (
        RelationshipType.CONTRADICTS,
        Decimal("0.250"),
        "she changed her mind",
    )


async def test_relating_twice_updates_confidence_and_notes(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b = await remembered(memories, agent_id, 2)
    first = await memories.relate(a, b, "contradicts", confidence=0.25, notes="maybe")
    again = await memories.relate(a, b, RelationshipType.CONTRADICTS, confidence=Decimal("0.75"))

    assert (again.id, again.confidence, again.notes) == (first.id, Decimal("0.750"), None)
    assert (first.confidence, first.created_at) == (again.confidence, again.created_at)
    assert len((await memories.session.execute(select(MemoryRelationship))).all()) == 1


async def test_two_may_stand_to_each_other_in_several_ways(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b = await remembered(memories, agent_id, 2)
    for kind in RelationshipType:
        await memories.relate(a, b, kind)
        await memories.relate(b, a, kind)

    assert await memories.unrelate(a, b, "contradicts") == 1
    assert await memories.unrelate(a, b, "contradicts") == 0
    assert await memories.unrelate(a, b) == len(RelationshipType) - 1
    assert len((await memories.session.execute(select(MemoryRelationship))).all()) == len(RelationshipType)


async def test_bad_edges_are_refused_before_sql(memories: MemoryRepository, agent_id: UUID, sent: Sent) -> None:
    a, b = await remembered(memories, agent_id, 2)

    with sent() as statements:
        for attempt, field in (
            (memories.relate(a, a, "contradicts"), "target"),
            (memories.relate(a, b, "likes"), "relationship_type"),
            (memories.relate(a, b, "contradicts", confidence=1.5), "confidence"),
            (memories.relate(a, b, "contradicts", notes="a\x00b"), "notes"),
            (memories.unrelate(a, b, "likes"), "relationship_type"),
        ):
            with pytest.raises(InvalidInputError) as caught:
                await attempt
            assert caught.value.field == field
    assert statements == []


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["supersedes", "merged_from"])
async def test_the_edge_of_a_step_that_stands_stays_until_the_step_is_taken_back(
    memories: MemoryRepository, agent_id: UUID, kind: str, *, named: bool
) -> None:
    old, new = await remembered(memories, agent_id, 2)
    if kind == "supersedes":
        await memories.supersede(old, by=new)
    else:
        await memories.merge([old], into=new)
    await memories.relate(new, old, "related_to")

    with pytest.raises(InvalidInputError, match=f"relationship_type is the edge of a step that stands: .*{kind}"):
        await memories.unrelate(new, old, kind if named else None)
    assert [one.relationship_type.value for one in await memories.neighbors(old, types=[kind])] == [kind]
    assert await memories.unrelate(new, old, "related_to") == 1
    await memories.restore(old)
    assert await memories.neighbors(old) == []


async def test_an_edge_of_such_a_type_that_no_step_drew_may_go(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b = await remembered(memories, agent_id, 2)
    await memories.relate(a, b, "supersedes")

    assert await memories.unrelate(a, b) == 1


async def test_an_edge_to_another_organizations_memory_is_refused(
    ibex_db: Database, memories: MemoryRepository, agent_id: UUID, rival_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        theirs, second = await remembered(MemoryRepository(rival), rival_agent_id, 2)
        await MemoryRepository(rival).relate(theirs, second, "related_to")
    (own,) = await remembered(memories, agent_id, 1)

    for source, target in ((own, theirs), (theirs, own), (own, uuid4())):
        with pytest.raises(ForeignKeyError):
            async with memories.session.begin_nested():
                await memories.relate(source, target, "related_to")
    assert await memories.unrelate(theirs, second) == 0
    assert await memories.neighbors(theirs) == []


# -- neighbors


async def test_a_walk_follows_its_direction(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b, c, d = await remembered(memories, agent_id, 4)
    await draw(memories, (a, b), (b, c), (d, b))

    assert told(await memories.neighbors(b, direction="out")) == [(c, 1)]
    assert sorted(told(await memories.neighbors(b, direction=Direction.IN))) == sorted([(a, 1), (d, 1)])
    assert sorted(told(await memories.neighbors(b))) == sorted([(a, 1), (c, 1), (d, 1)])
    assert told(await memories.neighbors(a, direction="out", depth=2)) == [(b, 1), (c, 2)]
    assert told(await memories.neighbors(a, direction="in", depth=2)) == []
    assert {ident for ident, depth in told(await memories.neighbors(a, depth=2)) if depth == 2} == {c, d}


async def test_a_neighbor_tells_how_it_was_reached(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b, c = await remembered(memories, agent_id, 3)
    await memories.relate(a, b, "derived_from")
    await memories.relate(c, b, "contradicts")
    await memories.relate(c, b, "specializes")

    near, far = await memories.neighbors(a, depth=2)

    assert (near.memory.id, near.via, near.outgoing, near.relationship_type) == (b, a, True, "derived_from")
    assert (far.memory.id, far.via, far.outgoing, far.relationship_type) == (c, b, False, "contradicts")
    assert far.memory.content == "Number 2."


async def test_a_walk_follows_the_types_that_are_named(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b, c, d = await remembered(memories, agent_id, 4)
    await memories.relate(a, b, "derived_from")
    await memories.relate(b, c, "contradicts")
    await memories.relate(b, d, "related_to")

    assert told(await memories.neighbors(a, depth=3, types=["derived_from", "contradicts"])) == [(b, 1), (c, 2)]
    assert told(await memories.neighbors(a, depth=3, types="derived_from")) == [(b, 1)]
    assert told(await memories.neighbors(a, depth=3, types={RelationshipType.CONTRADICTS})) == []


async def test_the_shortest_way_counts(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b, c, d = await remembered(memories, agent_id, 4)
    await draw(memories, (a, b), (b, c), (c, d), (a, d))

    found = {neighbor.memory.id: neighbor for neighbor in await memories.neighbors(a, depth=5, direction="out")}

    assert {ident: neighbor.depth for ident, neighbor in found.items()} == {b: 1, c: 2, d: 1}
    assert found[d].via == a


async def test_a_circle_ends_and_the_start_is_no_neighbor(memories: MemoryRepository, agent_id: UUID) -> None:
    ids = await remembered(memories, agent_id, 5)
    await draw(memories, *zip(ids, [*ids[1:], ids[0]], strict=True))

    assert told(await memories.neighbors(ids[0], depth=10, direction="out")) == list(
        zip(ids[1:], range(1, 5), strict=True)
    )
    assert sorted(depth for _, depth in told(await memories.neighbors(ids[0], depth=10))) == [1, 1, 2, 2]


async def test_a_walk_goes_ten_edges_far(memories: MemoryRepository, agent_id: UUID) -> None:
    ids = await remembered(memories, agent_id, 13)
    await draw(memories, *itertools.pairwise(ids))

    assert told(await memories.neighbors(ids[0], depth=10)) == [(ids[n], n) for n in range(1, 11)]


async def test_a_forgotten_memory_is_left_out_but_led_through(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b, c = await remembered(memories, agent_id, 3)
    await draw(memories, (a, b), (b, c))
    await memories.forget(b)

    assert told(await memories.neighbors(a)) == []
    (far,) = await memories.neighbors(a, depth=2)
    assert (far.memory.id, far.depth, far.via) == (c, 2, b)


async def test_forgotten_memories_do_not_use_up_the_limit(memories: MemoryRepository, agent_id: UUID) -> None:
    start, *others = await remembered(memories, agent_id, 9)
    await draw(memories, *((start, other) for other in others))
    for other in sorted(others)[:4]:
        await memories.forget(other)

    assert told(await memories.neighbors(start, limit=3)) == [(ident, 1) for ident in sorted(others)[4:7]]


async def test_the_nearest_come_first_up_to_the_limit(memories: MemoryRepository, agent_id: UUID) -> None:
    start, *near, far = await remembered(memories, agent_id, 6)
    await draw(memories, *((start, ident) for ident in near), (near[0], far))

    found = told(await memories.neighbors(start, depth=2))
    assert found == [*((ident, 1) for ident in sorted(near)), (far, 2)]
    assert told(await memories.neighbors(start, depth=2, limit=2)) == found[:2]


@pytest.mark.parametrize(
    "bad", [{"depth": 0}, {"depth": 11}, {"limit": 0}, {"limit": 1001}, {"types": []}, {"types": ["likes"]},
            {"direction": "sideways"}],
)  # fmt: skip
async def test_bad_walks_are_refused(memories: MemoryRepository, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await memories.neighbors(uuid4(), **bad)
    assert caught.value.field in bad


async def test_a_dense_graph_costs_its_edges_times_the_depth(memories: MemoryRepository, agent_id: UUID) -> None:
    """40 memories, each related to each: paths are beyond counting, 40 * 39 edges are not."""
    ids = await remembered(memories, agent_id, 40)
    await draw(memories, *((a, b) for a in ids for b in ids if a != b))
    assert sorted(told(await memories.neighbors(ids[0], depth=10))) == sorted((ident, 1) for ident in ids[1:])

    walk = WALKS[Direction.BOTH, False]
    plan = await memories.session.execute(
        text(f"EXPLAIN (ANALYZE, FORMAT JSON) {walk.text}").bindparams(
            bindparam("org_id", type_=Uuid()), bindparam("start", type_=Uuid())
        ),
        {"org_id": memories.org_id, "start": ids[0], "depth": 10, "limit": 100},
    )
    found_plan = plan.scalar_one()
    rows = _rows((json.loads(found_plan) if isinstance(found_plan, str) else found_plan)[0]["Plan"])
    edges_both_ways = 2 * 40 * 39
    assert edges_both_ways < max(rows) <= 10 * edges_both_ways


def _rows(plan: Any) -> list[float]:
    """How many rows each step of a plan has handled."""
    inner = [rows for below in plan.get("Plans", []) for rows in _rows(below)]
    return [plan["Actual Rows"] * plan["Actual Loops"], *inner]


# -- current


async def test_what_was_not_superseded_is_current(memories: MemoryRepository, agent_id: UUID) -> None:
    (ident,) = await remembered(memories, agent_id, 1)

    assert (await memories.current(ident)).id == ident


async def test_the_tip_of_a_chain_through_supersessions_and_merges(memories: MemoryRepository, agent_id: UUID) -> None:
    ids = await remembered(memories, agent_id, 6)
    for step, (old, new) in enumerate(itertools.pairwise(ids)):
        await (memories.merge([old], into=new) if step % 2 else memories.supersede(old, by=new))

    assert {(await memories.current(ident)).id for ident in ids} == {ids[-1]}


async def test_a_chain_of_thousands_is_followed_to_its_end(memories: MemoryRepository, agent_id: UUID) -> None:
    ids = await remembered(memories, agent_id, 2500)
    await _point(memories, *itertools.pairwise(ids))

    assert (await memories.current(ids[0])).id == ids[-1]


async def test_a_forgotten_link_is_passed_and_a_forgotten_tip_is_not_found(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    ids = await remembered(memories, agent_id, 3)
    for old, new in itertools.pairwise(ids):
        await memories.supersede(old, by=new)
    await memories.forget(ids[1])
    assert (await memories.current(ids[0])).id == ids[2]

    await memories.forget(ids[2])
    with pytest.raises(NotFoundError):
        await memories.current(ids[0])


async def test_a_circle_made_by_raw_sql_has_no_tip_and_does_not_hang(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    ids = await remembered(memories, agent_id, 4)
    await _point(memories, *zip(ids, [*ids[1:], ids[1]], strict=True))

    for ident in ids:
        with pytest.raises(NotFoundError):
            await memories.current(ident)


async def test_another_organizations_memory_has_no_tip_here(
    ibex_db: Database, memories: MemoryRepository, rival_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        (theirs,) = await remembered(MemoryRepository(rival), rival_agent_id, 1)

    for ident in (theirs, uuid4()):
        with pytest.raises(NotFoundError):
            await memories.current(ident)


async def _point(memories: MemoryRepository, *links: tuple[UUID, UUID]) -> None:
    await memories.session.execute(
        text(
            "UPDATE ibex_core.memories m SET superseded_by = l.next, status = 'superseded'"
            " FROM unnest(CAST(:old AS uuid[]), CAST(:new AS uuid[])) AS l (id, next) WHERE m.id = l.id"
        ),
        {"old": [old for old, _ in links], "new": [new for _, new in links]},
    )
    memories.session.expire_all()
