"""A service's file on ibex-db-tenancy: what it gives, as the service's type checker sees it.

Never run; see core.py.
"""

from collections.abc import Sequence
from typing import assert_type
from uuid import UUID

from ibex_db import (
    Agent,
    AgentRepository,
    Directive,
    DirectiveRepository,
    IssuedToken,
    Organization,
    OrganizationRepository,
    OrganizationTier,
    Page,
    ScopedSession,
    Token,
    TokenKind,
    TokenRepository,
    User,
    UserRepository,
    UserRole,
)
from ibex_db_tenancy.testing import AgentColumns, MakeAgent, MakeOrganization, MakeToken, MakeUser, TestTenant


async def organizations(session: ScopedSession) -> None:
    organization = await OrganizationRepository(session).by_slug("acme")
    assert_type(organization, Organization | None)
    if organization is not None:
        assert_type(organization.tier, OrganizationTier)
        assert_type(organization.id, UUID)


async def rows(session: ScopedSession, ident: UUID) -> None:
    agents = AgentRepository(session)
    assert_type(await agents.get(ident), Agent)
    assert_type(await agents.get_or_none(ident), Agent | None)
    assert_type(await agents.get_many([ident]), Sequence[Agent])
    assert_type(await agents.list(Agent.name == "Support", limit=10), Page[Agent])
    assert_type(await agents.find(), Sequence[Agent])
    assert_type(await agents.add(Agent(name="Support", slug="support")), Agent)
    assert_type(await agents.update(ident, name="Help"), Agent)
    assert_type(await agents.count(), int)
    assert_type(await agents.exists(), bool)
    assert_type(await agents.by_slug("support"), Agent | None)
    async for agent in agents.stream():
        assert_type(agent, Agent)

    page = await agents.list()
    assert_type(page.items, Sequence[Agent])
    assert_type(page.next_cursor, str | None)
    assert_type(await DirectiveRepository(session).get(ident), Directive)
    assert_type(await UserRepository(session).get(ident), User)


def columns(user: User) -> None:
    assert_type(user.email, str)
    assert_type(user.role, UserRole)


async def tokens(session: ScopedSession, user_id: UUID) -> None:
    issued = await TokenRepository(session).issue(name="laptop", kind=TokenKind.PERSONAL, user_id=user_id)
    assert_type(issued, IssuedToken)
    assert_type(issued.plaintext, str)
    assert_type(issued.token, Token)


async def test_a_service(tenant: TestTenant, make_agent: MakeAgent, make_token: MakeToken) -> None:
    assert_type(tenant.session, ScopedSession)
    assert_type(await make_agent(name="Support"), Agent)
    assert_type((await make_token(permissions=1)).plaintext, str)


async def test_rows_of_its_own(
    tenant: TestTenant, make_organization: MakeOrganization, make_user: MakeUser, make_agent: MakeAgent
) -> None:
    assert_type(await make_organization(name="Globex", settings={"locale": "de"}), Organization)
    owner = await make_user(org_id=tenant.id, role=UserRole.OWNER, last_login_at=None)
    assert_type(owner, User)
    columns: AgentColumns = {"name": "Support", "created_by": owner.id, "metadata_": {"team": "support"}}
    assert_type(await make_agent(org_id=tenant.id, **columns), Agent)
