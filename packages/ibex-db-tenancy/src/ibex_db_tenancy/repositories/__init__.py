"""The repositories of the tenancy wheel, one module per aggregate."""

from ibex_db_tenancy.repositories.agent import AgentRepository
from ibex_db_tenancy.repositories.directive import DirectiveRepository
from ibex_db_tenancy.repositories.erasure import ErasureRepository
from ibex_db_tenancy.repositories.organization import OrganizationRepository
from ibex_db_tenancy.repositories.token import IssuedToken, TokenRepository
from ibex_db_tenancy.repositories.user import UserRepository

__all__ = [
    "AgentRepository",
    "DirectiveRepository",
    "ErasureRepository",
    "IssuedToken",
    "OrganizationRepository",
    "TokenRepository",
    "UserRepository",
]
