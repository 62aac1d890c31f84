"""Organizations, users, agents, tokens, directives."""

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

__all__ = [
    "Agent",
    "AgentStatus",
    "Directive",
    "DirectiveVersion",
    "DirectiveVersionStatus",
    "Organization",
    "OrganizationStatus",
    "OrganizationTier",
    "Token",
    "TokenKind",
    "User",
    "UserRole",
    "UserStatus",
]
