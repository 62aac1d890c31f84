"""Steps of a memory's life: statuses, pointers, relationships and versions move together or not at all."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import select, text

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, DatabaseError, IllegalTransitionError, InvalidInputError, NotFoundError
from ibex_db_memory import Memory, MemoryDraft, MemoryRelationship, MemoryRepository, MemoryStatus, RelationshipType

Edges = set[tuple[UUID, str, UUID]]
Work = Callable[[MemoryRepository], Awaitable[object]]


async def remembered(memories: MemoryRepository, agent_id: UUID, content: str, **fields: str) -> UUID:
    draft = {"agent_id": agent_id, "content": content, "category": "factual", **fields}
    return (await memories.remember_many([draft])).outcomes[0].id


async def edges(memories: MemoryRepository) -> Edges:
    rows = (await memories.session.execute(select(MemoryRelationship))).scalars()
    return {(row.source_memory_id, row.relationship_type.value, row.target_memory_id) for row in rows}


async def operations(memories: MemoryRepository, ident: UUID) -> list[str]:
    return [version.operation.value for version in await memories.history(ident)]


async def together(db: Database, org_id: UUID, *works: Work) -> list[object]:
    """Run each in a transaction of its own, all at once; what they return or raise."""

    async def one(work: Work) -> object:
        async with db.tenant(org_id) as session:
            return await work(MemoryRepository(session))

    return list(await asyncio.gather(*(one(work) for work in works), return_exceptions=True))


async def pair(db: Database, org_id: UUID, agent_id: UUID, count: int = 2) -> list[UUID]:
    async with db.tenant(org_id) as session:
        return [await remembered(MemoryRepository(session), agent_id, f"Number {n}.") for n in range(count)]


def superseding(old: UUID, new: UUID) -> Work:
    return lambda memories: memories.supersede(old, by=new)


# -- supersede


async def test_superseding_moves_status_pointer_edge_and_version(memories: MemoryRepository, agent_id: UUID) -> None:
    old, new = [await remembered(memories, agent_id, content) for content in ("Has a cat.", "Has a dog.")]
    actor = uuid4()

    successor = await memories.supersede(old, by=new, reason="she said so", actor=actor)

    before = await memories.get(old)
    assert (successor.id, successor.status) == (new, MemoryStatus.ACTIVE)
    assert (before.status, before.superseded_by) == (MemoryStatus.SUPERSEDED, new)
    assert before.updated_at is not None
    assert await edges(memories) == {(new, "supersedes", old)}
    *_, last = await memories.history(old)
    assert (last.operation, last.status, last.change_reason, last.changed_by) == (
        "superseded",
        "superseded",
        "she said so",
        actor,
    )
    assert await operations(memories, new) == ["created"]


async def test_a_draft_becomes_the_successor(memories: MemoryRepository, agent_id: UUID) -> None:
    old = await remembered(memories, agent_id, "Has a cat.")
    draft = MemoryDraft(agent_id=agent_id, content="Has a dog.", category="factual", tags=["pets"])

    new = await memories.supersede(old, by=draft, reason="moved on")

    assert (new.content, new.status, (await memories.get(old)).superseded_by) == ("Has a dog.", "active", new.id)
    (made,) = await memories.history(new.id)
    assert (made.operation, made.change_reason) == ("created", "moved on")


async def test_a_draft_that_is_known_already_names_the_memory_that_says_it(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    old, known = [await remembered(memories, agent_id, content) for content in ("Has a cat.", "Has a dog.")]

    new = await memories.supersede(old, by={"agent_id": agent_id, "content": "has a DOG.", "category": "factual"})

    assert new.id == known
    assert await memories.count() == 2


async def test_none_supersedes_itself(memories: MemoryRepository, agent_id: UUID) -> None:
    old = await remembered(memories, agent_id, "Has a cat.")

    for by in (old, {"agent_id": agent_id, "content": "has a cat.", "category": "factual"}):
        with pytest.raises(InvalidInputError, match="none supersedes itself"):
            await memories.supersede(old, by=by)
    assert (await memories.get(old)).status is MemoryStatus.ACTIVE


@pytest.mark.parametrize("status", ["archived", "pending_review"])
async def test_a_successor_must_be_active(memories: MemoryRepository, agent_id: UUID, status: str) -> None:
    old = await remembered(memories, agent_id, "Has a cat.")
    by = await remembered(memories, agent_id, "Has a dog.", status=status)

    with pytest.raises(IllegalTransitionError) as caught:
        await memories.supersede(old, by=by)
    assert (caught.value.entity, caught.value.from_state) == (f"memory {by}", status)
    with pytest.raises(IllegalTransitionError, match=status):
        await memories.supersede(
            old, by={"agent_id": agent_id, "content": "Has a fish.", "category": "factual", "status": status}
        )
    assert await memories.count() == 2
    assert (await memories.get(old)).superseded_by is None


async def test_of_two_supersessions_at_once_one_wins(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    old, first, second = await pair(ibex_db, org_id, agent_id, 3)

    done = await together(ibex_db, org_id, lambda m: m.supersede(old, by=first), lambda m: m.supersede(old, by=second))

    (winner,) = [one for one in done if isinstance(one, Memory)]
    (loser,) = [one for one in done if isinstance(one, Exception)]
    assert isinstance(loser, IllegalTransitionError)
    assert (loser.from_state, loser.to_state) == ("superseded", "superseded")
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        assert (await memories.get(old)).superseded_by == winner.id
        assert await edges(memories) == {(winner.id, "supersedes", old)}
        assert await operations(memories, old) == ["created", "superseded"]


async def test_of_ten_drafts_at_once_one_is_kept(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    (old,) = await pair(ibex_db, org_id, agent_id, 1)

    def by(number: int) -> Work:
        return lambda m: m.supersede(
            old, by={"agent_id": agent_id, "content": f"Draft {number % 5}.", "category": "factual"}
        )

    done = await together(ibex_db, org_id, *(by(number) for number in range(10)))

    assert sorted(type(one).__name__ for one in done) == [*["IllegalTransitionError"] * 9, "Memory"]
    async with ibex_db.tenant(org_id) as session:
        assert await MemoryRepository(session).count() == 2


async def test_each_by_the_other_at_once_makes_no_circle(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    for _ in range(5):
        a, b = await pair(ibex_db, org_id, agent_id)

        done = await together(ibex_db, org_id, superseding(a, b), superseding(b, a))

        assert sorted(type(one).__name__ for one in done) == ["IllegalTransitionError", "Memory"]
        async with ibex_db.tenant(org_id) as session:
            memories = MemoryRepository(session)
            tips = {(await memories.current(ident)).id for ident in (a, b)}
            assert len(tips) == 1
            for ident in (a, b):
                await memories.erase(ident)


async def test_drafts_of_each_others_content_at_once_make_no_circle(
    ibex_db: Database, org_id: UUID, agent_id: UUID
) -> None:
    a, b = await pair(ibex_db, org_id, agent_id)

    def by(ident: UUID, content: str) -> Work:
        return lambda m: m.supersede(ident, by={"agent_id": agent_id, "content": content, "category": "factual"})

    done = await together(ibex_db, org_id, by(a, "Number 1."), by(b, "Number 0."))

    # The second is told, or, where it began after the first was done, says anew what no longer holds.
    assert {type(one) for one in done} <= {Memory, IllegalTransitionError}
    async with ibex_db.tenant(org_id) as session:
        assert {(await MemoryRepository(session).current(ident)).status.value for ident in (a, b)} == {"active"}


async def test_a_successor_that_a_draft_names_is_held(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    """Or it could be archived before the supersession commits."""
    old, known = await pair(ibex_db, org_id, agent_id)
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        await memories.supersede(old, by={"agent_id": agent_id, "content": "Number 1.", "category": "factual"})
        async with ibex_db.tenant(org_id) as other:
            await other.execute(text("SET LOCAL lock_timeout = '100ms'"))
            with pytest.raises(Exception, match="lock"):
                await MemoryRepository(other).archive(known)
            await other.rollback()


def _of_number_one(agent_id: UUID) -> dict[str, object]:
    return {"agent_id": agent_id, "content": "Number 1.", "category": "factual"}


@pytest.mark.parametrize("verb", ["supersede", "merge"])
@pytest.mark.parametrize("lost", ["supersede", "archive", "forget", "erase"])
async def test_a_draft_whose_twin_loses_its_standing_at_that_moment_is_made(
    ibex_db: Database, org_id: UUID, agent_id: UUID, verb: str, lost: str
) -> None:
    """The twin was active when it was found, and is locked by whoever is about to commit its end."""
    old, twin, third = await pair(ibex_db, org_id, agent_id, 3)

    async def step() -> Memory:
        async with ibex_db.tenant(org_id) as session:
            memories = MemoryRepository(session)
            if verb == "supersede":
                return await memories.supersede(old, by=_of_number_one(agent_id))
            return await memories.merge([old], into=_of_number_one(agent_id))

    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        if lost == "supersede":
            await memories.supersede(twin, by=third)
        else:
            await getattr(memories, lost)(twin)
        waiting = asyncio.create_task(step())
        await asyncio.sleep(0.3)
        assert not waiting.done()
    successor = await waiting

    assert successor.content == "Number 1."
    assert successor.id != twin
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        assert (await memories.get(successor.id)).status is MemoryStatus.ACTIVE
        assert (await memories.current(old)).id == successor.id


async def test_a_successor_that_is_named_by_its_id_is_not_replaced(
    ibex_db: Database, org_id: UUID, agent_id: UUID
) -> None:
    old, twin = await pair(ibex_db, org_id, agent_id)

    async def step() -> Memory:
        async with ibex_db.tenant(org_id) as session:
            return await MemoryRepository(session).supersede(old, by=twin)

    async with ibex_db.tenant(org_id) as session:
        await MemoryRepository(session).archive(twin)
        waiting = asyncio.create_task(step())
        await asyncio.sleep(0.3)
    with pytest.raises(IllegalTransitionError, match="is archived"):
        await waiting


# -- merge


async def test_merging_moves_statuses_pointers_edges_and_versions(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b, c = [await remembered(memories, agent_id, f"Likes tea {n}.") for n in range(3)]
    actor = uuid4()

    target = await memories.merge([a, b, a, c], into=c, reason="the same", actor=actor)

    assert (target.id, target.status, target.merged_into) == (c, "active", None)
    for ident in (a, b):
        merged = await memories.get(ident)
        assert (merged.status, merged.merged_into, merged.superseded_by) == ("merged", c, None)
        last = (await memories.history(ident))[-1]
        assert (last.operation, last.change_reason, last.changed_by) == ("merged", "the same", actor)
    assert await edges(memories) == {(c, "merged_from", a), (c, "merged_from", b)}
    assert await operations(memories, c) == ["created"]


async def test_merging_into_a_draft_that_one_of_them_says_already(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b = [await remembered(memories, agent_id, f"Likes tea {n}.") for n in range(2)]

    target = await memories.merge([a, b], into={"agent_id": agent_id, "content": "likes tea 1.", "category": "factual"})

    assert target.id == b
    assert (await memories.get(a)).merged_into == b
    assert await memories.count() == 2


async def test_merging_into_a_new_draft(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b = [await remembered(memories, agent_id, f"Likes tea {n}.") for n in range(2)]

    target = await memories.merge([a, b], into=MemoryDraft(agent_id=agent_id, content="Tea.", category="factual"))

    assert {(await memories.get(ident)).merged_into for ident in (a, b)} == {target.id}


async def test_merging_nothing_is_refused(memories: MemoryRepository, agent_id: UUID) -> None:
    a = await remembered(memories, agent_id, "Likes tea.")

    with pytest.raises(InvalidInputError, match="at least one"):
        await memories.merge([], into=a)


async def test_a_target_must_be_active(memories: MemoryRepository, agent_id: UUID) -> None:
    a = await remembered(memories, agent_id, "Likes tea.")
    target = await remembered(memories, agent_id, "Tea.", status="archived")

    with pytest.raises(IllegalTransitionError, match="is archived and cannot become the target of a merge"):
        await memories.merge([a], into=target)


async def test_thousands_are_merged_at_once(memories: MemoryRepository, agent_id: UUID) -> None:
    done = await memories.remember_many(
        {"agent_id": agent_id, "content": f"Tea {n}.", "category": "factual"} for n in range(9000)
    )
    ids = [outcome.id for outcome in done.outcomes]

    await memories.merge(ids, into=ids[0])

    assert await memories.count(Memory.merged_into == ids[0]) == 8999
    assert len(await edges(memories)) == 8999


async def test_merging_while_one_is_superseded(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    a, b, target, successor = await pair(ibex_db, org_id, agent_id, 4)

    done = await together(
        ibex_db, org_id, lambda m: m.merge([b, a], into=target), lambda m: m.supersede(a, by=successor)
    )

    assert sorted(type(one).__name__ for one in done) == ["IllegalTransitionError", "Memory"]
    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        one, other = await memories.get_many([a, b])
        if one.status is MemoryStatus.MERGED:
            assert (other.status, await edges(memories)) == (
                "merged",
                {(target, "merged_from", a), (target, "merged_from", b)},
            )
        else:
            assert (one.status, other.status) == ("superseded", "active")
            assert await edges(memories) == {(successor, "supersedes", a)}


async def test_merges_in_opposite_orders_do_not_wait_for_each_other(
    ibex_db: Database, org_id: UUID, agent_id: UUID
) -> None:
    ids = await pair(ibex_db, org_id, agent_id, 20)

    done = await together(
        ibex_db,
        org_id,
        lambda m: m.merge(ids[1:], into=ids[0]),
        lambda m: m.merge(ids[:-1], into=ids[-1]),
        lambda m: m.merge(ids[::-1], into=ids[10]),
    )

    assert sorted(type(one).__name__ for one in done) == ["IllegalTransitionError"] * 2 + ["Memory"]


# -- archive, approve, restore, forget


@pytest.mark.parametrize(
    ("status", "legal"),
    [
        ("active", {"supersede", "merge", "archive", "forget"}),
        ("pending_review", {"archive", "approve", "forget"}),
        ("archived", {"restore", "forget"}),
        ("superseded", {"restore", "forget"}),
        ("merged", {"restore", "forget"}),
    ],
)
async def test_every_other_step_is_refused_naming_both_states(
    memories: MemoryRepository, agent_id: UUID, status: str, legal: set[str]
) -> None:
    other = await remembered(memories, agent_id, "Another.")
    verbs: dict[str, tuple[Callable[[UUID], Awaitable[object]], str]] = {
        "supersede": (lambda ident: memories.supersede(ident, by=other), "superseded"),
        "merge": (lambda ident: memories.merge([ident], into=other), "merged"),
        "archive": (memories.archive, "archived"),
        "approve": (memories.approve, "active"),
        "restore": (memories.restore, "active"),
        "forget": (memories.forget, ""),
    }

    for name, (verb, to) in verbs.items():
        row = Memory(agent_id=agent_id, content=f"To {name}.", category="factual", status=status)
        ident = (await memories.add(row)).id
        if name in legal:
            await verb(ident)
        else:
            with pytest.raises(IllegalTransitionError) as caught:
                await verb(ident)
            assert (caught.value.from_state, caught.value.to_state) == (status, to)
            assert (await memories.get(ident)).status == status
            assert len(await memories.history(ident)) == 1


async def test_each_step_says_why_by_whom_and_how(memories: MemoryRepository, agent_id: UUID) -> None:
    ident, actor = await remembered(memories, agent_id, "Nuts?", status="pending_review"), uuid4()
    await memories.approve(ident, reason="checked", actor=actor)
    await memories.archive(ident, reason="old")
    await memories.restore(ident, actor=actor)

    assert [
        (version.operation, version.status, version.change_reason, version.changed_by)
        for version in await memories.history(ident)
    ] == [
        ("created", "pending_review", None, None),
        ("approved", "active", "checked", actor),
        ("archived", "archived", "old", None),
        ("restored", "active", None, actor),
    ]


async def test_the_reason_is_not_told_of_later_or_earlier_changes(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b, c = [await remembered(memories, agent_id, f"Number {n}.") for n in range(3)]
    (await memories.get(b)).confidence = 0.1  # type: ignore[assignment] # not flushed yet
    await memories.archive(a, reason="old", actor=uuid4())
    await memories.update(c, confidence=0.2)
    made = await remembered(memories, agent_id, "Later.")

    for ident, operation in ((b, "updated"), (c, "updated"), (made, "created")):
        last = (await memories.history(ident))[-1]
        assert (last.operation, last.change_reason, last.changed_by) == (operation, None, None)


async def test_a_step_that_fails_leaves_no_reason_behind(memories: MemoryRepository, agent_id: UUID) -> None:
    a = await remembered(memories, agent_id, "Number 1.")
    with pytest.raises(IllegalTransitionError):
        await memories.approve(a, reason="checked")
    await memories.update(a, confidence=0.2)

    last = (await memories.history(a))[-1]
    assert (last.operation, last.change_reason) == ("updated", None)


async def test_what_raw_sql_said_before_holds_again_afterwards(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b = [await remembered(memories, agent_id, f"Number {n}.") for n in range(2)]
    await memories.session.execute(text("SELECT set_config('app.change_reason', 'nightly job', true)"))
    await memories.archive(a, reason="old")
    await memories.update(b, confidence=0.2)

    assert [(await memories.history(ident))[-1].change_reason for ident in (a, b)] == ["old", "nightly job"]


@pytest.mark.parametrize("reason", ["", "a\x00b"])
async def test_a_reason_says_something(memories: MemoryRepository, agent_id: UUID, reason: str) -> None:
    with pytest.raises(InvalidInputError):
        await memories.archive(await remembered(memories, agent_id, "Number 1."), reason=reason)


async def test_restoring_a_superseded_memory_removes_pointer_and_edge(
    memories: MemoryRepository, agent_id: UUID
) -> None:
    old, new, other = [await remembered(memories, agent_id, f"Number {n}.") for n in range(3)]
    await memories.supersede(old, by=new)
    await memories.supersede(other, by=new)
    await memories.relate(new, old, "contradicts")

    back = await memories.restore(old, reason="it did hold")

    assert (back.status, back.superseded_by) == ("active", None)
    assert (await memories.get(new)).status == "active"
    assert await edges(memories) == {(new, "supersedes", other), (new, "contradicts", old)}
    assert await operations(memories, old) == ["created", "superseded", "restored"]
    assert (await memories.supersede(new, by=old)).id == old


async def test_restoring_a_merged_memory_removes_pointer_and_edge(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b, c = [await remembered(memories, agent_id, f"Number {n}.") for n in range(3)]
    await memories.merge([a, b], into=c)

    back = await memories.restore(a)

    assert (back.status, back.merged_into) == ("active", None)
    assert await edges(memories) == {(c, "merged_from", b)}


async def test_restoring_when_the_successor_was_erased(memories: MemoryRepository, agent_id: UUID) -> None:
    old, new = [await remembered(memories, agent_id, f"Number {n}.") for n in range(2)]
    await memories.supersede(old, by=new)
    await memories.erase(new)

    assert (await memories.restore(old)).status == "active"


@pytest.mark.parametrize("gone", ["archive", "forget", "supersede"])
async def test_restoring_beside_an_active_twin_is_a_conflict(
    memories: MemoryRepository, agent_id: UUID, gone: str
) -> None:
    old, other = [await remembered(memories, agent_id, content) for content in ("Has a cat.", "Other.")]
    await (memories.supersede(old, by=other) if gone == "supersede" else getattr(memories, gone)(old))
    twin = await remembered(memories, agent_id, "has a CAT.")
    before = await edges(memories)

    with pytest.raises(ConflictError) as caught:
        await memories.restore(old)

    assert caught.value.constraint == "memories_content_hash_org"
    assert twin != old
    still = await memories.get(old, include_deleted=True)
    assert (still.deleted_at is not None) == (gone == "forget")
    assert (still.status == "superseded", await edges(memories)) == (gone == "supersede", before)


async def test_approving_beside_an_active_twin_is_a_conflict(memories: MemoryRepository, agent_id: UUID) -> None:
    asked = await remembered(memories, agent_id, "Has a cat.", status="pending_review")
    await remembered(memories, agent_id, "Has a cat.")

    with pytest.raises(ConflictError):
        await memories.approve(asked)
    assert (await memories.get(asked)).status == "pending_review"


async def test_a_forgotten_memory_comes_back_as_it_was(memories: MemoryRepository, agent_id: UUID) -> None:
    old, new = [await remembered(memories, agent_id, f"Number {n}.") for n in range(2)]
    await memories.supersede(old, by=new)
    await memories.forget(old)

    back = await memories.restore(old)

    assert (back.deleted_at, back.status, back.superseded_by) == (None, "superseded", new)
    assert await edges(memories) == {(new, "supersedes", old)}


# -- all or nothing


async def test_an_error_in_the_middle_leaves_all_as_it_was(
    ibex_db: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    a, b, c = await pair(ibex_db, org_id, agent_id, 3)
    await owner.execute(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON ibex_core.memory_relationships"
        " FOR EACH ROW EXECUTE FUNCTION public.refuse()"
    )

    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        draft = {"agent_id": agent_id, "content": "New.", "category": "factual"}
        for attempt in (
            memories.supersede(a, by=b, reason="r"),
            memories.supersede(a, by=draft, reason="r"),
            memories.merge([a, b], into=c, reason="r"),
            memories.merge([a, b], into=draft, reason="r"),
        ):
            with pytest.raises(DatabaseError, match="not today"):
                await attempt
        await memories.update(c, confidence=0.3)  # the caller goes on, and commits

    async with ibex_db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        rows = await memories.find()
        assert {row.id for row in rows} == {a, b, c}
        assert {(row.status.value, row.superseded_by, row.merged_into) for row in rows} == {("active", None, None)}
        assert [len(await memories.history(ident)) for ident in (a, b, c)] == [1, 1, 2]
        assert (await memories.history(c))[-1].change_reason is None


async def test_one_illegal_source_leaves_the_others_unmerged(memories: MemoryRepository, agent_id: UUID) -> None:
    a, b, c = [await remembered(memories, agent_id, f"Number {n}.") for n in range(3)]
    await memories.archive(b)

    with pytest.raises(IllegalTransitionError, match=f"memory {b} is archived and cannot become merged"):
        await memories.merge([a, b], into={"agent_id": agent_id, "content": "New.", "category": "factual"})

    assert {row.status.value for row in await memories.get_many([a, c])} == {"active"}
    assert (await memories.count(), await edges(memories)) == (3, set())


async def test_what_is_forgotten_or_another_organizations_is_not_found(
    ibex_db: Database, memories: MemoryRepository, agent_id: UUID, rival_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        foreign = await remembered(MemoryRepository(rival), rival_agent_id, "Theirs.")
    own, gone = [await remembered(memories, agent_id, f"Number {n}.") for n in range(2)]
    await memories.forget(gone)

    for ident in (foreign, gone, uuid4()):
        for attempt in (
            memories.supersede(ident, by=own),
            memories.supersede(own, by=ident),
            memories.merge([own, ident], into=own),
            memories.merge([own], into=ident),
            memories.archive(ident),
            memories.approve(ident),
            memories.forget(ident),
        ):
            with pytest.raises(NotFoundError):
                await attempt
        if ident != gone:
            with pytest.raises(NotFoundError):
                await memories.restore(ident)
    assert (await memories.get(own)).status == "active"
    async with ibex_db.tenant(rival_id) as rival:
        assert (await MemoryRepository(rival).get(foreign)).status == "active"


async def test_an_edge_drawn_by_hand_is_no_obstacle(memories: MemoryRepository, agent_id: UUID) -> None:
    old, new = [await remembered(memories, agent_id, f"Number {n}.") for n in range(2)]
    await memories.relate(new, old, RelationshipType.SUPERSEDES, notes="by hand")

    await memories.supersede(old, by=new)

    assert await edges(memories) == {(new, "supersedes", old)}
