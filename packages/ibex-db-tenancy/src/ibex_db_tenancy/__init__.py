"""Organizations, users, agents, tokens, directives."""

# Core's, for db.authenticate() is core's too; the front door has them from there.
from ibex_db_core.errors import InvalidTokenError as InvalidTokenError
from ibex_db_core.identity import TokenIdentity as TokenIdentity, TokenKind as TokenKind
from ibex_db_tenancy.erasure import Erased
from ibex_db_tenancy.models import (
    Agent,
    AgentStatus,
    Directive,
    DirectiveVersion,
    DirectiveVersionStatus,
    ErasureKey,
    ErasureReceipt,
    ErasureTombstone,
    Organization,
    OrganizationErasure,
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
    ErasureRepository,
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
    "Erased",
    "ErasureKey",
    "ErasureReceipt",
    "ErasureRepository",
    "ErasureTombstone",
    "IssuedToken",
    "Organization",
    "OrganizationErasure",
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
