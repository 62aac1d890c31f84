"""Erasing memories, agents, users and organizations: wholly, counted, with a receipt."""

import asyncio
from collections.abc import Mapping
from itertools import pairwise
from uuid import UUID, uuid4

import asyncpg
import pytest
from homes import Home
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_core.errors import (
    AccessDeniedError,
    ForeignKeyError,
    IbexError,
    InvalidInputError,
    NotFoundError,
    TenantError,
)
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import Memory, MemoryRepository, SessionRepository, content_hash
from ibex_db_tenancy import (
    Agent,
    AgentRepository,
    Erased,
    ErasureReceipt,
    ErasureRepository,
    Organization,
    OrganizationRepository,
    User,
    UserRepository,
)

TABLES = ("memories", "memory_versions", "memory_relationships", "memory_tags", "sessions", "checkpoints")


async def rows(owner: asyncpg.Connection, *tables: str) -> dict[str, int]:
    return {table: await owner.fetchval(f"SELECT count(*) FROM ibex_core.{table}") for table in tables or TABLES}


async def remembered(memories: MemoryRepository, agent_id: UUID, content: str = "Tea.", **fields: object) -> UUID:
    draft: Mapping[str, object] = {"agent_id": agent_id, "content": content, "category": "factual", **fields}
    return (await memories.remember_many([draft])).outcomes[0].id


async def busy(memories: MemoryRepository, agent_id: UUID) -> tuple[UUID, UUID]:
    """Make two memories: one of three versions, two tags and two relationships with the other."""
    one = await remembered(memories, agent_id, "Wears a wig.", tags=["secret", "hair"], embedding=[1.0] * 384)
    other = await remembered(memories, agent_id, "Likes tea.")
    await memories.update(one, content="Wears a red wig.", embedding=None)
    await memories.update(one, confidence=0.9)
    await memories.relate(one, other, "related_to")
    await memories.relate(other, one, "derived_from", notes="of the wig")
    return one, other


async def test_a_memory_goes_with_all_that_hangs_on_it_and_the_receipt_counts_it(
    memories: MemoryRepository, agent_id: UUID, session: ScopedSession, owner: asyncpg.Connection
) -> None:
    one, _ = await busy(memories, agent_id)
    actor = uuid4()

    gone = await memories.erase(one, reason="asked for it", actor=actor)
    await session.commit()

    assert dict(gone) == {
        "memories": 1,
        "memory_versions": 3,
        "memory_relationships": 2,
        "memory_tags": 2,
        "memory_vectors": 0,
    }
    assert (gone.subject_kind, gone.subject_id, gone.rows) == ("memory", one, 8)
    assert (gone.reason, gone.erased_by) == ("asked for it", actor)
    left = {"memories": 1, "memory_versions": 1, "memory_relationships": 0, "memory_tags": 0}
    assert await rows(owner, *left) == left
    receipt = await ErasureRepository(session).get(gone.receipt_id)
    assert receipt.counts == dict(gone)
    assert (receipt.subject_kind, receipt.subject_id, receipt.erased_at) == ("memory", one, gone.erased_at)
    assert (receipt.reason, receipt.erased_by, receipt.fingerprint) == ("asked for it", actor, gone.fingerprint)


async def test_nothing_shows_anything_of_an_erased_memory(
    memories: MemoryRepository, agent_id: UUID, session: ScopedSession
) -> None:
    one, other = await busy(memories, agent_id)
    await memories.get(one)

    await memories.erase(one)

    assert [hit.memory.id for hit in await memories.search(embedding=[1.0] * 384, include_deleted=True)] == []
    assert await memories.get_or_none(one, include_deleted=True) is None
    assert await session.get(Memory, one) is None
    assert await memories.neighbors(other, depth=3) == []
    assert await memories.tags() == []
    with pytest.raises(NotFoundError):
        await memories.history(one)
    with pytest.raises(NotFoundError):
        await memories.erase(one)


async def test_nothing_of_what_it_said_is_kept(
    memories: MemoryRepository, agent_id: UUID, session: ScopedSession, owner: asyncpg.Connection
) -> None:
    one, _ = await busy(memories, agent_id)
    await memories.erase(one)
    await session.commit()

    kept = [
        str(tuple(row))
        for table in ("erasure_receipts", "erasure_tombstones")
        for row in await owner.fetch(f"SELECT * FROM ibex_core.{table}")
    ]
    assert len(kept) == 2
    for said in ("wig", "secret", "hair", content_hash("Wears a red wig."), content_hash("Wears a wig.")):
        assert said not in " ".join(kept)


async def test_a_receipt_proves_what_it_is_of_to_whoever_knows_the_content(
    memories: MemoryRepository, agent_id: UUID, session: ScopedSession
) -> None:
    one = await remembered(memories, agent_id, "Wears a wig.")
    gone = await memories.erase(one)

    erasures = ErasureRepository(session)
    assert await erasures.is_of(gone.receipt_id, agent_id, content_hash("wears a WIG."))
    assert not await erasures.is_of(gone.receipt_id, agent_id, content_hash("Wears a hat."))
    assert [receipt.id for receipt in await erasures.of(one)] == [gone.receipt_id]


async def test_the_same_content_has_another_fingerprint_in_another_organization(
    ibex_db: Database, home: Home, other_home: Home, owner: asyncpg.Connection
) -> None:
    for one in (home, other_home):
        async with ibex_db.tenant(one.org_id) as session:
            memories = MemoryRepository(session)
            await memories.erase(await remembered(memories, one.agent_id))

    keys = await owner.fetch("SELECT key FROM ibex_core.erasure_keys")
    assert len({row["key"] for row in keys}) == 2
    async with ibex_db.tenant(home.org_id) as session:
        assert await session.scalar(text("SELECT count(*) FROM ibex_core.erasure_keys")) == 1


async def test_a_forgotten_memory_can_be_erased(memories: MemoryRepository, agent_id: UUID) -> None:
    ident = await remembered(memories, agent_id)
    await memories.forget(ident)

    assert (await memories.erase(ident))["memories"] == 1


async def test_what_an_erased_memory_superseded_keeps_its_standing(memories: MemoryRepository, agent_id: UUID) -> None:
    old = await remembered(memories, agent_id, "Has a cat.")
    new = await memories.supersede(old, by={"agent_id": agent_id, "content": "Has a dog.", "category": "factual"})

    gone = await memories.erase(new.id)

    kept = await memories.current(old)
    assert (kept.id, kept.status.value) == (old, "superseded")
    assert gone["memory_relationships"] == 1


async def test_another_organizations_memory_is_not_found(
    memories: MemoryRepository, ibex_db: Database, rival_id: UUID, rival_agent_id: UUID, owner: asyncpg.Connection
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        theirs = await remembered(MemoryRepository(rival), rival_agent_id)

    with pytest.raises(NotFoundError):
        await memories.erase(theirs)
    assert (await rows(owner, "memories"))["memories"] == 1


@pytest.mark.parametrize(("field", "value"), [("reason", 7), ("reason", "x" * 10_001), ("actor", "ada")])
async def test_a_bad_reason_or_actor_is_refused_before_anything_goes(
    memories: MemoryRepository, agent_id: UUID, field: str, value: object
) -> None:
    ident = await remembered(memories, agent_id)

    with pytest.raises(InvalidInputError):
        await memories.erase(ident, **{field: value})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert (await memories.get(ident)).id == ident


async def test_rolled_back_to_a_savepoint_it_is_all_there(
    memories: MemoryRepository, agent_id: UUID, session: ScopedSession
) -> None:
    one, _ = await busy(memories, agent_id)
    savepoint = await session.begin_nested()
    await memories.erase(one)
    await savepoint.rollback()

    assert len(await memories.history(one)) == 3
    assert await ErasureRepository(session).count() == 0


async def test_receipts_and_tombstones_are_never_changed_or_deleted(
    memories: MemoryRepository, agent_id: UUID, session: ScopedSession
) -> None:
    await memories.erase(await remembered(memories, agent_id))

    for table in ("erasure_receipts", "erasure_tombstones", "erasure_keys"):
        for statement in (f"DELETE FROM ibex_core.{table}", f"UPDATE ibex_core.{table} SET org_id = org_id"):
            with pytest.raises(IbexError):
                async with session.begin_nested():
                    await session.execute(text(statement))


# -- agents, users, organizations


@pytest.fixture
async def user_id(ibex_db: Database, org_id: UUID) -> UUID:
    async with ibex_db.tenant(org_id) as session:
        return (await UserRepository(session).add(User(email="Ann@acme.example", name="Ann"))).id


async def held(session: ScopedSession, agent_id: UUID, user_id: UUID | None) -> tuple[UUID, UUID]:
    """Hold a session of two checkpoints, in which a memory is learned."""
    sessions, memories = SessionRepository(session), MemoryRepository(session)
    run = await sessions.start(agent_id=agent_id, user_id=user_id)
    await sessions.checkpoint(run.id, {"turn": 1})
    await sessions.checkpoint(run.id, {"turn": 2})
    return run.id, await remembered(memories, agent_id, f"Learned in {run.id}.", session_id=run.id, tags=["t"])


async def test_an_agent_goes_with_sessions_and_memories(
    session: ScopedSession, agent_id: UUID, other_agent_id: UUID, owner: asyncpg.Connection
) -> None:
    memories = MemoryRepository(session)
    run, learned = await held(session, agent_id, None)
    one, _ = await busy(memories, agent_id)
    theirs = await remembered(memories, other_agent_id, "Stays.", session_id=run)
    await memories.relate(theirs, one, "related_to")

    gone = await AgentRepository(session).erase(agent_id, reason="contract ended")
    await session.commit()

    expected = {"agents": 1, "sessions": 1, "checkpoints": 2, "memories": 3, "memory_versions": 5}
    assert dict(gone) == expected | {"memory_relationships": 3, "memory_tags": 3, "memory_vectors": 0, "tokens": 0}
    left = {"memories": 1, "memory_versions": 1, "memory_relationships": 0, "memory_tags": 0}
    assert await rows(owner) == left | {"sessions": 0, "checkpoints": 0}
    assert (await memories.get(theirs)).session_id is None
    assert await session.get(Memory, learned) is None
    tombstones = await owner.fetch("SELECT subject_id FROM ibex_core.erasure_tombstones")
    assert len(tombstones) == 3
    assert await ErasureRepository(session).is_of(gone.receipt_id, "support")


async def test_many_go_in_batches_and_are_counted_to_the_last(
    session: ScopedSession, agent_id: UUID, monkeypatch: pytest.MonkeyPatch, owner: asyncpg.Connection
) -> None:
    monkeypatch.setattr("ibex_db_tenancy.erasure.BATCH", 7)
    memories = MemoryRepository(session)
    drafts = [{"agent_id": agent_id, "content": f"{n}.", "category": "factual", "tags": ["t"]} for n in range(50)]
    ids = [outcome.id for outcome in (await memories.remember_many(drafts)).outcomes]
    for one, other in pairwise(ids):
        await memories.relate(one, other, "related_to")

    gone = await AgentRepository(session).erase(agent_id)
    await session.commit()

    counted = ("memories", "memory_versions", "memory_tags", "memory_relationships")
    assert [gone[table] for table in counted] == [50, 50, 50, 49]
    assert set((await rows(owner)).values()) == {0}
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.erasure_tombstones") == 50


async def test_a_user_goes_wholly_with_sessions_and_what_was_learned_in_them(
    session: ScopedSession, agent_id: UUID, user_id: UUID, owner: asyncpg.Connection
) -> None:
    memories = MemoryRepository(session)
    _, learned = await held(session, agent_id, user_id)
    _, kept = await held(session, agent_id, None)
    await memories.relate(kept, learned, "related_to")
    bot = await AgentRepository(session).add(Agent(name="Bot", slug="bot", created_by=user_id))

    gone = await UserRepository(session).erase(user_id)
    await session.commit()

    expected = {"users": 1, "tokens": 0, "sessions": 1, "checkpoints": 2, "memories": 1, "memory_versions": 1}
    assert dict(gone) == expected | {"memory_relationships": 1, "memory_tags": 1, "memory_vectors": 0}
    assert await memories.get_or_none(learned) is None
    assert (await memories.get(kept)).session_id is not None
    assert await owner.fetchval("SELECT created_by FROM ibex_core.agents WHERE id = $1", bot.id) is None
    assert await ErasureRepository(session).is_of(gone.receipt_id, "ann@acme.example")
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.erasure_tombstones WHERE subject_id = $1", learned) == 1


async def test_a_user_may_go_and_leave_sessions_and_memories_without_the_name(
    session: ScopedSession, agent_id: UUID, user_id: UUID
) -> None:
    run, learned = await held(session, agent_id, user_id)

    gone = await UserRepository(session).erase(user_id, wholly=False)

    assert dict(gone) == {"users": 1, "tokens": 0}
    await session.commit()
    assert await session.scalar(text("SELECT user_id FROM ibex_core.sessions WHERE id = :id"), {"id": run}) is None
    assert (await MemoryRepository(session).get(learned)).session_id == run


async def test_an_organization_goes_wholly_and_its_receipt_outlives_it(
    ibex_db: Database, home: Home, user_id: UUID, other_home: Home, owner: asyncpg.Connection
) -> None:
    org_id, agent_id = home.org_id, home.agent_id
    async with ibex_db.tenant(org_id) as session:
        await held(session, agent_id, user_id)
        await busy(MemoryRepository(session), agent_id)
        await MemoryRepository(session).erase(await remembered(MemoryRepository(session), agent_id))
    async with ibex_db.tenant(other_home.org_id) as session:
        await remembered(MemoryRepository(session), other_home.agent_id)
    tables = [row["relname"] for row in await owner.fetch(_WITH_ORG)]
    before = {
        table: await owner.fetchval(f"SELECT count(*) FROM ibex_core.{table} WHERE org_id = $1", org_id)
        for table in tables
    }

    async with ibex_db.platform(reason="test") as platform:
        gone = await OrganizationRepository(platform).erase(org_id, reason="contract ended")

    assert dict(gone) == before | {"organizations": 1}
    assert gone["memories"] == 3
    assert gone["erasure_receipts"] == gone["erasure_tombstones"] == gone["erasure_keys"] == 1
    for table in tables:
        assert await owner.fetchval(f"SELECT count(*) FROM ibex_core.{table} WHERE org_id = $1", org_id) == 0
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memories") == 1
    async with ibex_db.platform(reason="test") as platform:
        [kept] = await OrganizationRepository(platform).erasures(org_id)
        assert [receipt.id for receipt in await OrganizationRepository(platform).erasures()] == [kept.id]
    assert (kept.id, kept.counts, kept.reason) == (gone.receipt_id, dict(gone), "contract ended")
    assert (kept.erased_at, kept.fingerprint) == (gone.erased_at, gone.fingerprint)


_WITH_ORG = """
    SELECT c.relname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'ibex_core'::regnamespace AND a.attname = 'org_id' AND c.relkind IN ('r', 'p')
      AND NOT c.relispartition
"""


async def test_no_organization_erases_itself_and_none_is_erased_twice(
    ibex_db: Database, session: ScopedSession, org_id: UUID
) -> None:
    with pytest.raises(TenantError, match="platform"):
        await OrganizationRepository(session).erase(org_id)

    async with ibex_db.platform(reason="test") as platform:
        organizations = OrganizationRepository(platform)
        await organizations.erase(org_id)
        with pytest.raises(NotFoundError):
            await organizations.erase(org_id)
        assert await platform.get(Organization, org_id) is None


async def test_receipts_of_organizations_are_the_platforms_alone(
    ibex_db: Database, rival_id: UUID, org_id: UUID
) -> None:
    async with ibex_db.platform(reason="test") as platform:
        await OrganizationRepository(platform).erase(org_id)
        for statement in ("DELETE FROM", "UPDATE"):
            rest = " SET reason = ''" if statement == "UPDATE" else ""
            with pytest.raises(IbexError):
                async with platform.begin_nested():
                    await platform.execute(text(f"{statement} ibex_core.organization_erasures{rest}"))

    with pytest.raises(AccessDeniedError):
        async with ibex_db.tenant(rival_id) as session:
            await OrganizationRepository(session).erasures()


async def test_a_platform_session_erases_in_the_organization_that_the_row_is_of(
    ibex_db: Database, org_id: UUID, agent_id: UUID
) -> None:
    async with ibex_db.platform(reason="test") as platform:
        gone = await AgentRepository(platform).erase(agent_id)

    assert gone.org_id == org_id
    async with ibex_db.tenant(org_id) as session:
        assert await ErasureRepository(session).count(ErasureReceipt.id == gone.receipt_id) == 1


# -- beside others


async def test_erasing_waits_for_a_writer_and_counts_what_it_wrote(
    small_pool: Database, org_id: UUID, agent_id: UUID
) -> None:
    async with small_pool.tenant(org_id) as session:
        ident = await remembered(MemoryRepository(session), agent_id)
        other = await remembered(MemoryRepository(session), agent_id, "Coffee.")

    async with small_pool.tenant(org_id) as writer:
        await MemoryRepository(writer).update(ident, content="Green tea.", embedding=None)
        await MemoryRepository(writer).relate(other, ident, "related_to")
        erasing = asyncio.create_task(_erase(small_pool, org_id, ident))
        await asyncio.sleep(0.3)
        assert not erasing.done()
    gone = await erasing

    assert (gone["memory_versions"], gone["memory_relationships"]) == (2, 1)


async def test_a_writer_who_comes_later_waits_and_is_told(small_pool: Database, org_id: UUID, agent_id: UUID) -> None:
    async with small_pool.tenant(org_id) as session:
        ident = await remembered(MemoryRepository(session), agent_id)
        other = await remembered(MemoryRepository(session), agent_id, "Coffee.")

    async def relate() -> None:
        async with small_pool.tenant(org_id) as session:
            await MemoryRepository(session).relate(other, ident, "related_to")

    async def change() -> None:
        async with small_pool.tenant(org_id) as session:
            await MemoryRepository(session).update(ident, content="Green tea.", embedding=None)

    async with small_pool.tenant(org_id) as eraser:
        gone = await MemoryRepository(eraser).erase(ident)
        late = [asyncio.create_task(relate()), asyncio.create_task(change())]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in late)
    told = await asyncio.gather(*late, return_exceptions=True)

    assert [type(exc) for exc in told] == [ForeignKeyError, NotFoundError]
    assert gone["memory_versions"] == 1


async def test_of_many_who_erase_one_memory_at_once_one_does(
    small_pool: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    async with small_pool.tenant(org_id) as session:
        ident = await remembered(MemoryRepository(session), agent_id)

    found = await asyncio.gather(*(_erase(small_pool, org_id, ident) for _ in range(8)), return_exceptions=True)

    assert sorted(type(one).__name__ for one in found) == ["Erased", *["NotFoundError"] * 7]
    assert (await rows(owner, "erasure_receipts"))["erasure_receipts"] == 1


async def test_counts_are_exact_while_others_write(
    small_pool: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    async with small_pool.tenant(org_id) as session:
        idents = [await remembered(MemoryRepository(session), agent_id, f"Number {at}.") for at in range(20)]
    written = {"memories": 20, "memory_versions": 20, "memory_tags": 0}

    async def write(session: ScopedSession, at: int) -> tuple[int, int, int]:
        memories = MemoryRepository(session)
        await memories.update(idents[at % 20], confidence=0.1 + at / 1000)
        tags = len(await memories.tag(idents[(at * 7) % 20], f"tag {at}"))
        done = await memories.remember_many([{"agent_id": agent_id, "content": f"Later {at}.", "category": "factual"}])
        return done.created, 1 + done.created, tags

    async def writer(at: int) -> None:
        try:
            made = await small_pool.run(org_id, write, at)
        except (ForeignKeyError, NotFoundError):
            return
        for table, count in zip(written, made, strict=True):
            written[table] += count

    async def erase(session: ScopedSession) -> Erased:
        return await AgentRepository(session).erase(agent_id)

    writers = [asyncio.create_task(writer(at)) for at in range(60)]
    await asyncio.sleep(0.05)
    gone = await small_pool.run(org_id, erase)
    await asyncio.gather(*writers)

    assert {table: gone[table] for table in written} == written
    assert (await rows(owner))["memories"] == 0


async def _erase(database: Database, org_id: UUID, ident: UUID) -> Erased:
    async with database.tenant(org_id) as session:
        return await MemoryRepository(session).erase(ident)
