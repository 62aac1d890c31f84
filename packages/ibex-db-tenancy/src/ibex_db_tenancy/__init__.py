"""Organizations, users, agents, tokens, directives."""

# Core's, for db.authenticate() is core's too; the front door has them from there.
from ibex_db_core.errors import InvalidTokenError as InvalidTokenError
from ibex_db_core.identity import TokenIdentity as TokenIdentity, TokenKind as TokenKind
from ibex_db_tenancy.models import (
    Agent,
    AgentStatus,
    Directive,
    DirectiveVersion,
    DirectiveVersionStatus,
    Organization,
    OrganizationStatus,
    OrganizationTier,
    Token,
    TokenState,
    User,
    UserRole,
    UserStatus,
)
from ibex_db_tenancy.repositories import (
    AgentRepository,
    DirectiveRepository,
    IssuedToken,
    OrganizationRepository,
    TokenRepository,
    UserRepository,
)

__all__ = [
    "Agent",
    "AgentRepository",
    "AgentStatus",
    "Directive",
    "DirectiveRepository",
    "DirectiveVersion",
    "DirectiveVersionStatus",
    "IssuedToken",
    "Organization",
    "OrganizationRepository",
    "OrganizationStatus",
    "OrganizationTier",
    "Token",
    "TokenRepository",
    "TokenState",
    "User",
    "UserRepository",
    "UserRole",
    "UserStatus",
]
