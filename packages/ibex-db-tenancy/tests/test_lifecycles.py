"""Statuses of organizations, users and agents: every step that is legal, and no other."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from ibex_db_core import (
    AccessDeniedError,
    BaseRepository,
    ConflictError,
    Database,
    IllegalTransitionError,
    InvalidInputError,
    NotFoundError,
    ScopedSession,
)
from ibex_db_tenancy import (
    Agent,
    AgentRepository,
    AgentStatus,
    Organization,
    OrganizationRepository,
    OrganizationStatus,
    OrganizationTier,
    Token,
    TokenKind,
    TokenRepository,
    User,
    UserRepository,
    UserRole,
    UserStatus,
)

# verb -> (from, to): all that may be done.
USERS = {
    "activate": {("invited", "active"), ("suspended", "active"), ("deactivated", "active")},
    "suspend": {("active", "suspended")},
    "deactivate": {("invited", "deactivated"), ("active", "deactivated"), ("suspended", "deactivated")},
}
AGENTS = {
    "pause": {("active", "paused")},
    "resume": {("paused", "active"), ("suspended", "active")},
    "suspend": {("active", "suspended"), ("paused", "suspended")},
    "archive": {("active", "archived"), ("paused", "archived"), ("suspended", "archived")},
}
ORGANIZATIONS = {
    "suspend": {("active", "suspended"), ("trial", "suspended")},
    "cancel": {("active", "cancelled"), ("trial", "cancelled"), ("suspended", "cancelled")},
    "reinstate": {("suspended", "active"), ("cancelled", "active"), ("trial", "active")},
}


async def _try_all(
    repository: BaseRepository[Any],
    make: Callable[[str], Awaitable[UUID]],
    verbs: dict[str, set[tuple[str, str]]],
    statuses: list[str],
) -> None:
    for verb, legal in verbs.items():
        (to,) = {to for _, to in legal}
        for status in statuses:
            ident = await make(status)
            step: Callable[[UUID], Awaitable[Any]] = getattr(repository, verb)
            if (status, to) in legal:
                assert (await step(ident)).status == to
                continue
            with pytest.raises(IllegalTransitionError) as caught:
                await step(ident)
            assert (caught.value.from_state, caught.value.to_state) == (status, to)
            assert caught.value.entity == f"{repository.model.__name__.lower()} {ident}"
            assert (await repository.get(ident)).status == status
        with pytest.raises(NotFoundError):
            await getattr(repository, verb)(uuid4())


async def test_users_take_legal_steps_only(session: ScopedSession) -> None:
    users = UserRepository(session)

    async def make(status: str) -> UUID:
        user = User(email=f"{uuid4().hex}@acme.example", name="Ann", status=UserStatus(status))
        return (await users.add(user)).id

    await _try_all(users, make, USERS, list(UserStatus))


async def test_agents_take_legal_steps_only(session: ScopedSession) -> None:
    agents = AgentRepository(session)

    async def make(status: str) -> UUID:
        return (await agents.add(Agent(name="Bot", slug=uuid4().hex, status=AgentStatus(status)))).id

    await _try_all(agents, make, AGENTS, list(AgentStatus))


async def test_organizations_take_legal_steps_only(ibex_db: Database) -> None:
    async with ibex_db.platform(reason="test") as session:
        organizations = OrganizationRepository(session)

        async def make(status: str) -> UUID:
            row = Organization(name="Acme", slug=uuid4().hex, status=OrganizationStatus(status))
            return (await organizations.add(row)).id

        await _try_all(organizations, make, ORGANIZATIONS, list(OrganizationStatus))


async def test_an_update_moves_the_status_along_legal_steps_too(session: ScopedSession) -> None:
    agents = AgentRepository(session)
    agent = await agents.add(Agent(name="Bot", slug="bot"))

    await agents.update(agent.id, status=AgentStatus.PAUSED, name="Robot")
    same = await agents.update(agent.id, status="paused", description="Rests.")
    await agents.archive(agent.id)

    assert (same.name, same.description) == ("Robot", "Rests.")
    with pytest.raises(IllegalTransitionError):
        await agents.update(agent.id, status=AgentStatus.ACTIVE, name="Lazarus")
    assert (await agents.get(agent.id)).name == "Robot"
    with pytest.raises(InvalidInputError):
        await agents.update(agent.id, status="asleep")
    with pytest.raises(NotFoundError):
        await agents.update(uuid4(), status=AgentStatus.PAUSED)


async def test_an_error_tells_what_the_row_is_not_what_the_session_remembers(
    ibex_db: Database, org: Organization, session: ScopedSession
) -> None:
    agents = AgentRepository(session)
    agent = await agents.add(Agent(name="Bot", slug="bot"))
    await session.commit()
    async with ibex_db.tenant(org.id) as other:
        await AgentRepository(other).archive(agent.id)

    with pytest.raises(IllegalTransitionError) as caught:
        await agents.pause(agent.id)

    assert agent.status is AgentStatus.ACTIVE
    assert caught.value.from_state == "archived"


async def test_of_two_who_take_the_same_step_at_once_one_is_told(ibex_db: Database, org: Organization) -> None:
    async with ibex_db.tenant(org.id) as session:
        agent = await AgentRepository(session).add(Agent(name="Bot", slug="bot"))
    both = asyncio.Barrier(2)

    async def archive() -> None:
        async with ibex_db.tenant(org.id) as session:
            await session.execute(text("SELECT 1"))
            await both.wait()
            await AgentRepository(session).archive(agent.id)

    told = await asyncio.gather(archive(), archive(), return_exceptions=True)

    assert sorted(type(one).__name__ for one in told) == ["IllegalTransitionError", "NoneType"]


async def test_a_deleted_user_takes_no_step(session: ScopedSession) -> None:
    users = UserRepository(session)
    ann = await users.add(User(email="ann@acme.example", name="Ann"))
    await users.delete(ann.id)

    with pytest.raises(NotFoundError):
        await users.suspend(ann.id)


async def test_a_step_of_another_organizations_agent_is_not_found(
    ibex_db: Database, session: ScopedSession, rival: Organization
) -> None:
    async with ibex_db.tenant(rival.id) as other:
        theirs = await AgentRepository(other).add(Agent(name="Bot", slug="bot"))

    for verb in ("pause", "archive", "touch"):
        with pytest.raises(NotFoundError):
            await getattr(AgentRepository(session), verb)(theirs.id)


async def test_an_invitation_keeps_what_it_says_and_takes_the_address(session: ScopedSession) -> None:
    users = UserRepository(session)
    ann = await users.invite(email="Ann@acme.example", name="Ann", role=UserRole.ADMIN, preferences={"language": "de"})

    assert (ann.status, ann.role, ann.preferences) == (UserStatus.INVITED, UserRole.ADMIN, {"language": "de"})
    with pytest.raises(ConflictError) as caught:
        async with session.begin_nested():
            await users.invite(email="ann@ACME.example", name="Ann again")
    assert caught.value.constraint == "users_org_id_email_lower_live"
    with pytest.raises(InvalidInputError, match="email"):
        await users.invite(email="ann", name="Ann")


async def test_only_an_active_users_login_is_recorded(session: ScopedSession) -> None:
    users = UserRepository(session)
    ann = await users.add(User(email="ann@acme.example", name="Ann"))

    seen = await users.record_login(ann.id)
    await users.suspend(ann.id)

    assert seen.last_login_at is not None
    with pytest.raises(InvalidInputError, match="active"):
        await users.record_login(ann.id)
    with pytest.raises(NotFoundError):
        await users.record_login(uuid4())


async def test_touching_an_agent_waits_for_nobody(ibex_db: Database, org: Organization) -> None:
    async with ibex_db.tenant(org.id) as session:
        agent = await AgentRepository(session).add(Agent(name="Bot", slug="bot"))

    async with ibex_db.tenant(org.id) as holder:
        await AgentRepository(holder).update(agent.id, name="Held")
        async with ibex_db.tenant(org.id) as session, asyncio.timeout(5):
            await AgentRepository(session).touch(agent.id)
    async with ibex_db.tenant(org.id) as session:
        skipped = (await AgentRepository(session).get(agent.id)).last_active_at
    async with ibex_db.tenant(org.id) as session:
        await AgentRepository(session).touch(agent.id)
        touched = (await AgentRepository(session).get(agent.id)).last_active_at

    assert skipped is None
    assert touched is not None


async def test_a_new_organization_is_free_and_active_unless_said_otherwise(ibex_db: Database) -> None:
    async with ibex_db.platform(reason="test") as session:
        organizations = OrganizationRepository(session)
        plain = await organizations.create(name="Acme", slug="acme")
        other = await organizations.create(
            name="Globex", slug="globex", tier=OrganizationTier.PRO, trial=True, settings={"region": "eu"}
        )

    assert (plain.tier, plain.status, plain.settings) == (OrganizationTier.FREE, OrganizationStatus.ACTIVE, {})
    assert (other.tier, other.status) == (OrganizationTier.PRO, OrganizationStatus.TRIAL)
    assert other.settings == {"region": "eu"}


async def test_a_taken_slug_is_a_conflict_though_its_organization_is_deleted(
    ibex_db: Database, org: Organization
) -> None:
    async with ibex_db.platform(reason="test") as session:
        await OrganizationRepository(session).delete(org.id)

    with pytest.raises(ConflictError) as caught:
        async with ibex_db.platform(reason="test") as session:
            await OrganizationRepository(session).create(name="Other", slug=org.slug)

    assert caught.value.constraint == "organizations_slug_key"
    assert caught.value.values == {"slug": org.slug}


async def test_a_tenant_creates_no_organization(session: ScopedSession) -> None:
    with pytest.raises(AccessDeniedError):
        async with session.begin_nested():
            await OrganizationRepository(session).create(name="Mine", slug="mine")


async def test_a_tier_changes_to_one_that_there_is(ibex_db: Database, org: Organization) -> None:
    async with ibex_db.platform(reason="test") as session:
        organizations = OrganizationRepository(session)

        changed = await organizations.change_tier(org.id, OrganizationTier.ENTERPRISE)

        assert changed.tier is OrganizationTier.ENTERPRISE
        with pytest.raises(InvalidInputError, match="tier"):
            await organizations.change_tier(org.id, "gold")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        with pytest.raises(NotFoundError):
            await organizations.change_tier(uuid4(), OrganizationTier.FREE)


async def test_erasing_an_organization_counts_what_is_gone_and_leaves_the_others(
    ibex_db: Database, org: Organization, rival: Organization
) -> None:
    for organization in (org, rival):
        async with ibex_db.tenant(organization.id) as session:
            ann = await UserRepository(session).add(User(email="ann@acme.example", name="Ann"))
            await TokenRepository(session).issue(name="Laptop", user_id=ann.id)
            await TokenRepository(session).issue(name="CI", kind=TokenKind.SERVICE)

    async with ibex_db.platform(reason="test") as session:
        gone = await OrganizationRepository(session).erase(org.id)
        left = await TokenRepository(session).find()
        with pytest.raises(NotFoundError):
            await OrganizationRepository(session).erase(org.id)

    assert {table: count for table, count in gone.items() if count} == {"organizations": 1, "users": 1, "tokens": 2}
    assert "agents" in gone
    assert {token.org_id for token in left} == {rival.id}
    assert isinstance(left[0], Token)


async def test_what_is_written_while_an_organization_is_erased_is_not_left_behind(
    ibex_db: Database, org: Organization
) -> None:
    writing = asyncio.Event()

    async def write() -> None:
        async with ibex_db.tenant(org.id) as session:
            await session.execute(text("SELECT 1"))
            writing.set()
            await asyncio.sleep(0.2)
            await AgentRepository(session).add(Agent(name="Late", slug="late"))

    async def erase() -> int:
        await writing.wait()
        async with ibex_db.platform(reason="test") as session:
            gone = await OrganizationRepository(session).erase(org.id)
            await asyncio.sleep(0.5)
        return gone["agents"]

    wrote, erased = await asyncio.gather(write(), erase(), return_exceptions=True)
    async with ibex_db.platform(reason="test") as session:
        left = await AgentRepository(session).count()

    assert type(wrote).__name__ == "ForeignKeyError"
    assert (erased, left) == (0, 0)
