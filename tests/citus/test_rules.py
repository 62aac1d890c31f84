"""What holds on Citus as elsewhere: errors, recall, erasure, links that end, and history."""

from uuid import uuid4

import numpy as np
import pytest
from sqlalchemy import insert, select
from two import Two

from ibex_db import (
    Agent,
    AgentRepository,
    ConflictError,
    Database,
    ForeignKeyError,
    Memory,
    MemoryRepository,
    MemoryTag,
    Organization,
    OrganizationRepository,
    RuleViolationError,
    SessionRepository,
    UserRepository,
)
from ibex_db_core.sharding import is_sharded

WITHOUT, WITH = 5000, 400  # past 5,000 rows a search goes by the index


async def _sign_up(db: Database) -> Organization:
    async with db.platform(reason="a test begins") as session:
        return await OrganizationRepository(session).add(Organization(name="Own", slug=f"own-{uuid4().hex[:8]}"))


async def test_the_database_is_known_to_be_distributed(db: Database, two: Two) -> None:
    async with db.tenant(two.a.org_id) as session:
        await session.execute(select(Agent))

    assert is_sharded(db.engine)


async def test_a_conflict_is_told_by_the_rules_own_name(db: Database, two: Two) -> None:
    async with db.tenant(two.a.org_id) as session:
        with pytest.raises(ConflictError) as told:
            await AgentRepository(session).add(Agent(name="Robin", slug="robin"))
        await session.rollback()

    assert (told.value.constraint, told.value.table) == ("agents_org_id_slug_live", "agents")
    assert told.value.values["slug"] == "robin"


async def test_a_broken_foreign_key_and_a_broken_rule_are_told_by_name(db: Database, two: Two) -> None:
    async with db.tenant(two.a.org_id) as session:
        with pytest.raises(ForeignKeyError) as missing:
            await MemoryRepository(session).remember(agent_id=uuid4(), content="x", category="factual")
        await session.rollback()
        # As raw SQL, for which no model stands guard.
        tag = insert(MemoryTag.__table__).values(org_id=two.a.org_id, memory_id=two.a.memory_id, tag="x" * 65)  # type: ignore[arg-type]
        with pytest.raises(RuleViolationError) as too_long:
            await session.execute(tag)
        await session.rollback()

    assert (missing.value.constraint, missing.value.table) == ("memories_org_id_agent_id_fkey", "memories")
    assert (too_long.value.constraint, too_long.value.table) == ("memory_tags_tag_length", "memory_tags")


async def test_a_search_by_index_finds_what_a_full_scan_finds(db: Database) -> None:
    org = await _sign_up(db)
    vectors = np.random.default_rng(7).standard_normal((WITH, 384)).astype(np.float32)
    async with db.tenant(org.id) as session:
        agent = await AgentRepository(session).add(Agent(name="Support", slug="support"))
        memories = MemoryRepository(session)
        await memories.remember_many(
            {"agent_id": agent.id, "content": f"Word {n}.", "category": "factual"} for n in range(WITHOUT)
        )
        done = await memories.remember_many(
            (
                {"agent_id": agent.id, "content": f"Fact {n}.", "category": "factual", "embedding": vectors[n]}
                for n in range(WITH)
            ),
            batch_size=100,
        )
        ids = [outcome.id for outcome in done.outcomes]
        assert done.created == WITH

    lengths = np.linalg.norm(vectors, axis=1)
    queries = np.random.default_rng(8).standard_normal((20, 384)).astype(np.float32)
    recalled = 0
    async with db.tenant(org.id) as session:
        memories = MemoryRepository(session)
        for query in queries:
            hits = await memories.search(embedding=query, limit=10)
            exact = await memories.search(embedding=query, limit=10, exact=True)
            nearest = np.argsort(-(vectors @ query) / lengths)[:10]
            assert not hits.plan.exact
            assert [hit.memory.id for hit in exact] == [ids[place] for place in nearest]
            recalled += len({hit.memory.id for hit in hits} & {hit.memory.id for hit in exact})

    assert recalled / 200 >= 0.99


async def test_why_and_by_whom_reach_the_history_on_the_worker(db: Database, two: Two) -> None:
    actor = uuid4()
    async with db.tenant(two.a.org_id) as session:
        memories = MemoryRepository(session)
        kept = await memories.remember(agent_id=two.a.agent_id, content="Is told.", category="factual")
        await memories.archive(kept.memory.id, reason="it's old: 'very'", actor=actor)
        await memories.restore(kept.memory.id)
        versions = await memories.history(kept.memory.id)
        told = [(one.operation, one.change_reason, one.changed_by) for one in versions]
        assert versions[0].created_at == kept.memory.created_at
        await session.rollback()

    assert told == [("created", None, None), ("archived", "it's old: 'very'", actor), ("restored", None, None)]


async def test_what_points_at_an_erased_row_points_nowhere(db: Database, two: Two) -> None:
    async with db.tenant(two.a.org_id) as session:
        gone = await UserRepository(session).erase(two.a.user_id, reason="asked for it")
        agent = await session.get(Agent, two.a.agent_id, populate_existing=True)
        assert agent is not None
        assert agent.created_by is None
        await SessionRepository(session).erase(two.a.session_id)
        memory = await session.get(Memory, two.a.memory_id, populate_existing=True)
        assert memory is not None
        assert memory.session_id is None
        await session.rollback()

    assert gone["users"] == 1


async def test_a_memory_that_superseded_another_can_be_erased(db: Database, two: Two) -> None:
    async with db.tenant(two.a.org_id) as session:
        memories = MemoryRepository(session)
        await memories.supersede(two.a.memory_id, by=two.a.other_memory_id)
        await memories.erase(two.a.other_memory_id)
        old = await session.get(Memory, two.a.memory_id, populate_existing=True)
        assert old is not None
        assert old.superseded_by is None
        await session.rollback()


async def test_erasing_an_organization_leaves_no_row_of_it(db: Database) -> None:
    org = await _sign_up(db)
    async with db.tenant(org.id) as session:
        agent = await AgentRepository(session).add(Agent(name="Support", slug="support"))
        await MemoryRepository(session).remember(agent_id=agent.id, content="Goes.", category="factual", tags=["soon"])

    async with db.platform(reason="erasure") as session:
        gone = await OrganizationRepository(session).erase(org.id)
        left = (await session.execute(select(Memory.id).where(Memory.org_id == org.id))).all()

    assert (gone["memories"], gone["memory_versions"], gone["memory_tags"], gone["agents"]) == (1, 1, 1, 1)
    assert left == []


async def test_an_organization_moves_to_another_in_a_file(db: Database, two: Two) -> None:
    other = await _sign_up(db)
    async with db.tenant(two.a.org_id) as session:
        lines = [line async for line in MemoryRepository(session).export()]
    async with db.tenant(other.id) as session:
        memories = MemoryRepository(session)
        done = await memories.import_(lines, create_agents=True)
        again = [line async for line in memories.export()]
        versions = await memories.history((await memories.find(limit=1))[0].id)

    assert done.created == 2
    assert len(again) == len(lines)
    assert [version.version_num for version in versions] == list(range(1, len(versions) + 1))
