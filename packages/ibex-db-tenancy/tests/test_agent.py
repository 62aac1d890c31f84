"""Agents."""

from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import joinedload, selectinload

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, ForeignKeyError, InvalidInputError, RuleViolationError
from ibex_db_core.tenant import ScopedSession
from ibex_db_tenancy import (
    Agent,
    AgentRepository,
    AgentStatus,
    Directive,
    DirectiveVersion,
    Organization,
    User,
    UserRepository,
)


async def test_what_is_left_out_is_filled_in(session: ScopedSession, org: Organization) -> None:
    agent = await AgentRepository(session).add(Agent(name="Bot", slug="bot"))

    assert agent.org_id == org.id
    assert (agent.status, agent.config, agent.metadata_) == (AgentStatus.ACTIVE, {}, {})
    assert (agent.created_by, agent.description, agent.active_directive_version_id) == (None, None, None)


async def test_the_database_fills_in_the_same_for_raw_sql(session: ScopedSession, org: Organization) -> None:
    await session.execute(
        text("INSERT INTO ibex_core.agents (org_id, name, slug) VALUES (:org, 'Raw', 'raw')"), {"org": org.id}
    )
    raw = (await session.scalars(select(Agent))).one()

    assert (raw.status, raw.config, raw.metadata_) == (AgentStatus.ACTIVE, {}, {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("slug", "My Bot"),
        ("status", "asleep"),
        ("config", "{}"),
        ("metadata_", {"moment": float("nan")}),
        ("description", "x" * 10_001),
        ("created_by", "ann"),
    ],
)
def test_bad_input_is_refused_before_sql(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Agent(**{field: value})

    assert caught.value.field == field


async def test_the_database_holds_raw_sql_to_the_same_rules(session: ScopedSession) -> None:
    await AgentRepository(session).add(Agent(name="Bot", slug="bot"))

    for change, constraint in (
        ("slug = 'Bot'", "agents_slug_format"),
        ("name = ''", "agents_name_length"),
        ("status = 'asleep'", "agents_agent_status_known"),
        ("config = '1'", "agents_config_is_object"),
        ("metadata = '[]'", "agents_metadata_is_object"),
    ):
        with pytest.raises(RuleViolationError) as caught:
            async with session.begin_nested():
                await session.execute(text(f"UPDATE ibex_core.agents SET {change}"))
        assert caught.value.constraint == constraint


async def test_a_slug_is_unique_among_live_agents(session: ScopedSession) -> None:
    agents = AgentRepository(session)
    first = await agents.add(Agent(name="Bot", slug="bot"))

    with pytest.raises(ConflictError) as caught:
        async with session.begin_nested():
            await agents.add(Agent(name="Bot", slug="bot"))
    await agents.delete(first.id)
    second = await agents.add(Agent(name="Bot", slug="bot"))

    assert caught.value.constraint == "agents_org_id_slug_live"
    assert await agents.by_slug("bot") is second
    assert await agents.by_slug("nobody") is None


async def test_the_creator_is_loaded_and_survived(session: ScopedSession) -> None:
    ann = await UserRepository(session).add(User(email="ann@acme.example", name="Ann"))
    agents = AgentRepository(session)
    agent = await agents.add(Agent(name="Bot", slug="bot", creator=ann))
    session.expunge_all()

    for load in (joinedload, selectinload):
        agent = await agents.get(agent.id, options=[load(Agent.creator)])
        assert agent.creator is not None
        assert agent.creator.name == "Ann"
        session.expunge_all()
    await UserRepository(session).erase(ann.id)

    assert (await agents.get(agent.id)).created_by is None


async def test_another_organizations_user_cannot_be_the_creator(
    ibex_db: Database, session: ScopedSession, rival: Organization
) -> None:
    async with ibex_db.tenant(rival.id) as other:
        stranger = await UserRepository(other).add(User(email="eve@globex.example", name="Eve"))

    with pytest.raises(ForeignKeyError) as caught:
        async with session.begin_nested():
            await AgentRepository(session).add(Agent(name="Bot", slug="bot", created_by=stranger.id))

    assert caught.value.constraint == "agents_org_id_created_by_fkey"


async def test_agents_following_a_directive_version(session: ScopedSession) -> None:
    agents = AgentRepository(session)
    version = DirectiveVersion(version_number=1, content="Be kind.", directive=Directive(name="Manners"))
    await agents.add_many(
        [
            Agent(name="Zoe", slug="zoe", active_directive_version=version),
            Agent(name="Abe", slug="abe", active_directive_version=version),
            Agent(name="Other", slug="other"),
        ]
    )

    assert [agent.name for agent in await agents.following(version.id)] == ["Abe", "Zoe"]
    assert await agents.following(uuid4()) == []
