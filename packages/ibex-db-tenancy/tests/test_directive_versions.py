"""Directive versions: numbered without gaps or twins, and never two active."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from sqlalchemy import event, text

from ibex_db_core import (
    Database,
    ForeignKeyError,
    IllegalTransitionError,
    InvalidInputError,
    NotFoundError,
    ScopedSession,
)
from ibex_db_tenancy import (
    Agent,
    AgentRepository,
    Directive,
    DirectiveRepository,
    DirectiveVersion,
    DirectiveVersionStatus,
    Organization,
    User,
    UserRepository,
)

DRAFT, REVIEW, ACTIVE, DEPRECATED, REVOKED = DirectiveVersionStatus
Verb = Callable[[DirectiveRepository, UUID], Awaitable[DirectiveVersion]]


@pytest_asyncio.fixture
async def directives(session: ScopedSession) -> AsyncIterator[DirectiveRepository]:
    yield DirectiveRepository(session)
    await session.rollback()


@pytest_asyncio.fixture
async def manners(directives: DirectiveRepository, session: ScopedSession) -> UUID:
    directive = await directives.add(Directive(name="Manners"))
    await session.commit()
    return directive.id


async def _statuses(directives: DirectiveRepository, directive_id: UUID) -> list[str]:
    history = await directives.history(directive_id)
    for version in history:
        await directives.session.refresh(version)
    return [version.status.value for version in history]


async def test_drafts_are_numbered_and_know_what_they_were_edited_from(
    directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    ann = await UserRepository(session).add(User(email="ann@acme.example", name="Ann"))

    first = await directives.draft(manners, content="One.", change_summary="The first.", created_by=ann.id)
    second = await directives.draft(manners, content="Two.")
    await directives.activate(first.id)
    third = await directives.draft(manners, content="Three.")
    fourth = await directives.draft(manners, content="Four.", parent_version_id=second.id)

    versions = [first, second, third, fourth]
    assert [version.version_number for version in versions] == [1, 2, 3, 4]
    assert [version.parent_version_id for version in versions] == [None, first.id, first.id, second.id]
    assert (first.change_summary, first.created_by) == ("The first.", ann.id)
    assert second.status is DRAFT
    assert second.activated_at is None


async def test_a_draft_that_cannot_be_is_refused(
    directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    other = await directives.add(Directive(name="Other"))
    stranger = await directives.draft(other.id, content="Elsewhere.")

    with pytest.raises(InvalidInputError, match="content"):
        await directives.draft(manners, content=" ")
    with pytest.raises(InvalidInputError, match="parent_version_id"):
        await directives.draft(manners, content="x", parent_version_id=stranger.id)
    with pytest.raises(NotFoundError):
        await directives.draft(uuid4(), content="x")
    with pytest.raises(ForeignKeyError):
        async with session.begin_nested():
            await directives.draft(manners, content="x", created_by=uuid4())
    await directives.delete(manners)
    with pytest.raises(NotFoundError):
        await directives.draft(manners, content="x")


async def test_many_who_draft_at_once_get_numbers_without_gaps_or_twins(
    ibex_db: Database, org: Organization, manners: UUID
) -> None:
    async def draft(at: int) -> int:
        async with ibex_db.tenant(org.id) as session:
            return (await DirectiveRepository(session).draft(manners, content=f"Text {at}")).version_number

    numbers = await asyncio.gather(*(draft(at) for at in range(12)))

    assert sorted(numbers) == list(range(1, 13))


LEGAL = {
    "submit": {DRAFT: REVIEW},
    "activate": {DRAFT: ACTIVE, REVIEW: ACTIVE, DEPRECATED: ACTIVE},
    "revoke": {DRAFT: REVOKED, REVIEW: REVOKED, ACTIVE: REVOKED, DEPRECATED: REVOKED},
}
AIM = {"submit": REVIEW, "activate": ACTIVE, "revoke": REVOKED}


@pytest.mark.parametrize("verb", LEGAL)
@pytest.mark.parametrize("status", DirectiveVersionStatus)
async def test_a_version_takes_legal_steps_only(
    directives: DirectiveRepository, manners: UUID, session: ScopedSession, verb: str, status: DirectiveVersionStatus
) -> None:
    version = await directives.draft(manners, content="One.")
    await session.execute(text("UPDATE ibex_core.directive_versions SET status = :status"), {"status": status.value})
    step: Callable[[UUID], Awaitable[DirectiveVersion]] = getattr(directives, verb)

    if (to := LEGAL[verb].get(status)) is not None:
        assert (await step(version.id)).status is to
        return
    with pytest.raises(IllegalTransitionError) as caught:
        await step(version.id)

    assert caught.value.entity == f"directive version {version.id}"
    assert (caught.value.from_state, caught.value.to_state) == (status, AIM[verb])
    assert await _statuses(directives, manners) == [status]


@pytest.mark.parametrize("verb", LEGAL)
async def test_a_version_that_nobody_may_see_is_not_found(
    directives: DirectiveRepository, manners: UUID, verb: str
) -> None:
    version = await directives.draft(manners, content="One.")
    await directives.delete(manners)

    for ident in (version.id, uuid4()):
        with pytest.raises(NotFoundError):
            await getattr(directives, verb)(ident)


async def test_activating_retires_the_one_before(directives: DirectiveRepository, manners: UUID) -> None:
    first = await directives.draft(manners, content="One.")
    second = await directives.draft(manners, content="Two.")

    await directives.activate(first.id)
    await directives.submit(second.id)
    active = await directives.activate(second.id)

    assert active is second
    assert (first.status, second.status) == (DEPRECATED, ACTIVE)
    assert second.activated_at is not None
    assert await directives.active_version(manners) is second


async def test_an_activation_that_is_refused_leaves_the_active_one_active(
    directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    first = await directives.draft(manners, content="One.")
    second = await directives.draft(manners, content="Two.")
    await directives.activate(first.id)
    await directives.revoke(second.id)

    with pytest.raises(IllegalTransitionError):
        await directives.activate(second.id)
    await session.commit()

    assert await _statuses(directives, manners) == ["active", "revoked"]


async def _in_parallel(db: Database, org: Organization, *work: tuple[Verb, UUID]) -> list[str]:
    """Run verbs in transactions that have all begun before the first one works; tell the errors' names."""
    ready = asyncio.Barrier(len(work))

    async def one(verb: Verb, ident: UUID) -> None:
        async with db.tenant(org.id) as session:
            await session.execute(text("SELECT 1"))
            await ready.wait()
            await verb(DirectiveRepository(session), ident)
            await asyncio.sleep(0.05)

    told = await asyncio.gather(*(one(verb, ident) for verb, ident in work), return_exceptions=True)
    return sorted(type(error).__name__ for error in told if error is not None)


async def _activate(directives: DirectiveRepository, ident: UUID) -> DirectiveVersion:
    return await directives.activate(ident)


async def _revoke(directives: DirectiveRepository, ident: UUID) -> DirectiveVersion:
    return await directives.revoke(ident)


async def test_activations_of_many_versions_at_once_leave_one_active(
    ibex_db: Database, org: Organization, directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    versions = [await directives.draft(manners, content=f"Text {at}") for at in range(6)]
    await directives.activate(versions[0].id)
    await session.commit()

    errors = await _in_parallel(ibex_db, org, *((_activate, version.id) for version in versions[1:]))

    statuses = await _statuses(directives, manners)
    assert errors == []
    assert sorted(statuses) == ["active"] + 5 * ["deprecated"]


async def test_of_many_activations_of_one_version_all_but_one_are_told(
    ibex_db: Database, org: Organization, directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    version = await directives.draft(manners, content="One.")
    await session.commit()

    errors = await _in_parallel(ibex_db, org, *(4 * [(_activate, version.id)]))

    assert errors == 3 * ["IllegalTransitionError"]
    assert await _statuses(directives, manners) == ["active"]


async def test_a_version_revoked_while_it_is_activated_ends_revoked(
    ibex_db: Database, org: Organization, directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    first = await directives.draft(manners, content="One.")
    await directives.activate(first.id)
    version = await directives.draft(manners, content="Two.")
    await session.commit()

    errors = await _in_parallel(ibex_db, org, (_activate, version.id), (_revoke, version.id))

    statuses = await _statuses(directives, manners)
    # Revoked first: the activation is told.  Activated first: the directive is left without.
    assert (errors, statuses) in (
        (["IllegalTransitionError"], ["active", "revoked"]),
        ([], ["deprecated", "revoked"]),
    )


async def test_activations_and_drafts_of_two_directives_do_not_wait_for_each_other(
    ibex_db: Database, org: Organization, directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    other = await directives.add(Directive(name="Other"))
    version = await directives.draft(other.id, content="Elsewhere.")
    await session.commit()

    await directives.draft(manners, content="One.")
    async with ibex_db.tenant(org.id) as second, asyncio.timeout(5):
        await DirectiveRepository(second).activate(version.id)


async def test_rolling_back_goes_down_step_by_step_and_to_any_number(
    directives: DirectiveRepository, manners: UUID
) -> None:
    versions = [await directives.draft(manners, content=f"Text {at}") for at in range(1, 5)]
    for version in versions[:3]:
        await directives.activate(version.id)

    down = [(await directives.roll_back(manners)).version_number for _ in range(2)]
    with pytest.raises(NotFoundError):
        await directives.roll_back(manners)
    up = await directives.roll_back(manners, to=3)

    assert down == [2, 1]
    assert up.version_number == 3
    assert await _statuses(directives, manners) == ["deprecated", "deprecated", "active", "draft"]
    for to, state in ((3, "active"), (4, "draft")):
        with pytest.raises(IllegalTransitionError) as caught:
            await directives.roll_back(manners, to=to)
        assert caught.value.from_state == state
    with pytest.raises(NotFoundError):
        await directives.roll_back(manners, to=9)
    with pytest.raises(NotFoundError):
        await directives.roll_back(uuid4())


async def test_rolling_back_from_a_revoked_version_takes_the_newest_that_was_active(
    directives: DirectiveRepository, manners: UUID
) -> None:
    for at in (1, 2):
        version = await directives.draft(manners, content=f"Text {at}")
        await directives.activate(version.id)
    await directives.revoke(version.id)

    assert await directives.active_version(manners) is None
    assert (await directives.roll_back(manners)).version_number == 1


async def _agent(session: ScopedSession, version: DirectiveVersion | None = None) -> UUID:
    agents = AgentRepository(session)
    agent = await agents.add(Agent(name="Bot", slug=uuid4().hex))
    if version is not None:
        await agents.assign_directive(agent.id, version.id)
    return agent.id


async def test_agents_are_told_the_active_text_of_the_directive_that_they_follow(
    directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    first = await directives.draft(manners, content="One.")
    await directives.activate(first.id)
    agent = await _agent(session, first)
    second = await directives.draft(manners, content="Two.")

    before = await directives.active_for(agent)
    await directives.activate(second.id)
    after = await directives.active_for(agent)
    await directives.roll_back(manners)
    back = await directives.active_for(agent)

    assert (before, after, back) == (first, second, first)


async def test_an_agent_may_try_a_text_that_the_others_do_not_see_yet(
    directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    first = await directives.draft(manners, content="One.")
    await directives.activate(first.id)
    second = await directives.draft(manners, content="Two.")
    others, canary = await _agent(session, first), await _agent(session, second)

    assert await directives.active_for(others) is first
    assert await directives.active_for(canary) is second
    await directives.submit(second.id)
    assert await directives.active_for(canary) is second
    await directives.revoke(second.id)
    assert await directives.active_for(canary) is first


async def test_nobody_is_told_a_revoked_text_or_one_of_a_deleted_directive(
    directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    version = await directives.draft(manners, content="One.")
    await directives.activate(version.id)
    agent, idle = await _agent(session, version), await _agent(session)

    assert await directives.active_for(idle) is None
    await directives.revoke(version.id)
    assert await directives.active_for(agent) is None
    other = await directives.draft(manners, content="Two.")
    await directives.activate(other.id)
    assert await directives.active_for(agent) is other
    await directives.delete(manners)
    assert await directives.active_for(agent) is None
    with pytest.raises(NotFoundError):
        await directives.active_for(uuid4())


async def test_what_an_agent_is_told_is_one_query(
    ibex_db: Database, directives: DirectiveRepository, manners: UUID, session: ScopedSession
) -> None:
    version = await directives.draft(manners, content="One.")
    agent = await _agent(session, version)
    statements: list[str] = []
    event.listen(ibex_db.engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    await directives.active_for(agent)

    assert len(statements) == 1


async def test_an_agent_is_assigned_versions_of_its_own_organization_that_are_not_revoked(
    ibex_db: Database, directives: DirectiveRepository, manners: UUID, session: ScopedSession, rival: Organization
) -> None:
    version = await directives.draft(manners, content="One.")
    agents, agent = AgentRepository(session), await _agent(session, version)
    async with ibex_db.tenant(rival.id) as other:
        theirs = await DirectiveRepository(other).add(Directive(name="Theirs"))
        stranger = await DirectiveRepository(other).draft(theirs.id, content="x")

    for ident in (stranger.id, uuid4()):
        with pytest.raises(NotFoundError):
            await agents.assign_directive(agent, ident)
    assert (await agents.assign_directive(agent, None)).active_directive_version_id is None
    await directives.revoke(version.id)
    with pytest.raises(InvalidInputError, match="revoked"):
        await agents.assign_directive(agent, version.id)
    with pytest.raises(NotFoundError):
        await agents.assign_directive(uuid4(), None)


async def test_another_organizations_versions_are_not_found(
    ibex_db: Database, directives: DirectiveRepository, manners: UUID, session: ScopedSession, rival: Organization
) -> None:
    version = await directives.draft(manners, content="One.")
    agent = await _agent(session, version)
    await session.commit()

    async with ibex_db.tenant(rival.id) as other:
        theirs = DirectiveRepository(other)
        for verb in (theirs.submit, theirs.activate, theirs.revoke, theirs.roll_back, theirs.active_for):
            with pytest.raises(NotFoundError):
                await verb(agent if verb == theirs.active_for else version.id)
