"""Organizations, users, agents, tokens, directives."""

from ibex_db_tenancy.errors import InvalidTokenError
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
    TokenKind,
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
    "InvalidTokenError",
    "IssuedToken",
    "Organization",
    "OrganizationRepository",
    "OrganizationStatus",
    "OrganizationTier",
    "Token",
    "TokenKind",
    "TokenRepository",
    "User",
    "UserRepository",
    "UserRole",
    "UserStatus",
]
