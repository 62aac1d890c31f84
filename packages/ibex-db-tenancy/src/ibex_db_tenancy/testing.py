"""pytest fixtures for services: an organization with an open session, and factories of what belongs to one.

Found by pytest on its own, beside those of ``ibex-db-core[testing]``.  What a factory
makes is committed, so the service under test sees it; whose it is, is said by
``org_id``, and is the ``tenant``'s where it is not said.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack
from uuid import UUID

import pytest

from ibex_db_core.testing import in_anyio, in_asyncio, of_the_tests_loop

if TYPE_CHECKING:
    from datetime import datetime

    from ibex_db_core.database import Database
    from ibex_db_core.tenant import ScopedSession
    from ibex_db_core.types import JsonObject
    from ibex_db_tenancy.models import (
        Agent,
        AgentStatus,
        Organization,
        OrganizationStatus,
        OrganizationTier,
        User,
        UserRole,
        UserStatus,
    )
    from ibex_db_tenancy.repositories import IssuedToken


@dataclass(frozen=True)
class TestTenant:
    """One organization, and a session of it.

    Attributes:
        organization: it.
        session: as ``db.tenant(organization.id)`` gives it; rolled back after the test.
    """

    __test__ = False
    organization: "Organization"
    session: "ScopedSession"

    @property
    def id(self) -> UUID:
        """Return the organization's id."""
        return self.organization.id


class OrganizationColumns(TypedDict, total=False):
    """What make_organization takes: every column of an Organization."""

    id: UUID
    name: str
    slug: str
    tier: "OrganizationTier"
    status: "OrganizationStatus"
    settings: "JsonObject"
    created_at: "datetime"
    updated_at: "datetime"
    deleted_at: "datetime | None"


class UserColumns(TypedDict, total=False):
    """What make_user takes beside org_id: every column of a User that the database does not compute."""

    id: UUID
    email: str
    name: str
    role: "UserRole"
    status: "UserStatus"
    preferences: "JsonObject"
    last_login_at: "datetime | None"
    created_at: "datetime"
    updated_at: "datetime"
    deleted_at: "datetime | None"


class AgentColumns(TypedDict, total=False):
    """What make_agent takes beside org_id: every column of an Agent."""

    id: UUID
    created_by: UUID | None
    name: str
    slug: str
    description: str | None
    status: "AgentStatus"
    config: "JsonObject"
    metadata_: "JsonObject"
    active_directive_version_id: UUID | None
    last_active_at: "datetime | None"
    created_at: "datetime"
    updated_at: "datetime"
    deleted_at: "datetime | None"


class MakeOrganization(Protocol):
    """``await make_organization(name="Globex")`` makes another organization."""

    async def __call__(self, **columns: Unpack[OrganizationColumns]) -> "Organization":
        """Make one; columns take the place of the defaults."""
        ...


class MakeUser(Protocol):
    """``await make_user(role=UserRole.ADMIN)`` makes a user."""

    async def __call__(self, *, org_id: UUID | None = None, **columns: Unpack[UserColumns]) -> "User":
        """Make one; columns take the place of the defaults."""
        ...


class MakeAgent(Protocol):
    """``await make_agent(name="Support")`` makes an agent."""

    async def __call__(self, *, org_id: UUID | None = None, **columns: Unpack[AgentColumns]) -> "Agent":
        """Make one; columns take the place of the defaults."""
        ...


class MakeToken(Protocol):
    """``(await make_token(permissions=0b11)).plaintext`` is what a client sends."""

    async def __call__(
        self,
        *,
        org_id: UUID | None = None,
        user_id: UUID | None = None,
        agent_id: UUID | None = None,
        permissions: int = 0,
    ) -> "IssuedToken":
        """Issue one: a user's own where user_id is given, a service's otherwise."""
        ...


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> TestTenant:
    """Give an organization of this test, with an open session."""
    opened: TestTenant = of_the_tests_loop(request, "_tenant_in_asyncio", "_tenant_in_anyio")
    return opened


@asynccontextmanager
async def _open(ibex_db: "Database", make_organization: MakeOrganization) -> AsyncGenerator[TestTenant]:
    organization = await make_organization()
    async with ibex_db.tenant(organization.id) as session:
        yield TestTenant(organization, session)
        await session.rollback()  # a test that ends in a refused flush has nothing to commit


_tenant_in_asyncio = in_asyncio("_tenant_in_asyncio", _open)
_tenant_in_anyio = in_anyio("_tenant_in_anyio", _open)


@pytest.fixture
def make_organization(ibex_db: "Database") -> MakeOrganization:
    """Give a factory of organizations."""
    from ibex_db_tenancy.models import Organization

    numbers = count(1)

    async def make(**columns: Unpack[OrganizationColumns]) -> Organization:
        number = next(numbers)
        given: OrganizationColumns = {"name": f"Organization {number}", "slug": f"organization-{number}", **columns}
        async with ibex_db.platform(reason="a test's organization") as session:
            organization = Organization(**given)
            session.add(organization)
        return organization

    return make


@pytest.fixture
def make_user(ibex_db: "Database", tenant: TestTenant) -> MakeUser:
    """Give a factory of users."""
    from ibex_db_tenancy.models import User

    numbers = count(1)

    async def make(*, org_id: UUID | None = None, **columns: Unpack[UserColumns]) -> User:
        number = next(numbers)
        given: UserColumns = {"name": f"User {number}", "email": f"user-{number}@example.com", **columns}
        async with ibex_db.tenant(org_id or tenant.id) as session:
            user = User(**given)
            session.add(user)
        return user

    return make


@pytest.fixture
def make_agent(ibex_db: "Database", tenant: TestTenant) -> MakeAgent:
    """Give a factory of agents."""
    from ibex_db_tenancy.models import Agent

    numbers = count(1)

    async def make(*, org_id: UUID | None = None, **columns: Unpack[AgentColumns]) -> Agent:
        number = next(numbers)
        given: AgentColumns = {"name": f"Agent {number}", "slug": f"agent-{number}", **columns}
        async with ibex_db.tenant(org_id or tenant.id) as session:
            agent = Agent(**given)
            session.add(agent)
        return agent

    return make


@pytest.fixture
def make_token(ibex_db: "Database", tenant: TestTenant) -> MakeToken:
    """Give a factory of tokens."""
    from ibex_db_core.identity import TokenKind
    from ibex_db_tenancy.repositories import IssuedToken, TokenRepository

    async def make(
        *,
        org_id: UUID | None = None,
        user_id: UUID | None = None,
        agent_id: UUID | None = None,
        permissions: int = 0,
    ) -> IssuedToken:
        kind = TokenKind.SERVICE if user_id is None else TokenKind.PERSONAL
        async with ibex_db.tenant(org_id or tenant.id) as session:
            return await TokenRepository(session).issue(
                name="Test", kind=kind, user_id=user_id, agent_id=agent_id, permissions=permissions
            )

    return make
