"""The tables of the tenancy wheel, one module per aggregate."""

from ibex_db_tenancy.models.agent import Agent, AgentStatus
from ibex_db_tenancy.models.directive import Directive, DirectiveVersion, DirectiveVersionStatus
from ibex_db_tenancy.models.erasure import ErasureKey, ErasureReceipt, ErasureTombstone, OrganizationErasure
from ibex_db_tenancy.models.organization import Organization, OrganizationStatus, OrganizationTier
from ibex_db_tenancy.models.token import Token, TokenState
from ibex_db_tenancy.models.user import User, UserRole, UserStatus

__all__ = [
    "Agent",
    "AgentStatus",
    "Directive",
    "DirectiveVersion",
    "DirectiveVersionStatus",
    "ErasureKey",
    "ErasureReceipt",
    "ErasureTombstone",
    "Organization",
    "OrganizationErasure",
    "OrganizationStatus",
    "OrganizationTier",
    "Token",
    "TokenState",
    "User",
    "UserRole",
    "UserStatus",
]
