"""Who a token speaks for: core knows the shape, the tenancy wheel the tables and the look-up."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol, cast
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable

    from ibex_db_core.database import Database

AUTHENTICATOR_GROUP = "ibex_db.authenticator"
"""The entry-point group in which a wheel names how to make its Authenticator."""


class TokenKind(StrEnum):
    """In whose name a token speaks."""

    PERSONAL = "personal"
    ORGANIZATION = "organization"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """Whom a valid token speaks for; holds nothing of the token's secret.

    Attributes:
        org_id: the organization, for ``db.tenant(identity.org_id)``.
        token_id: the token's row.
        prefix: the token's first characters, safe to show and to log.
        kind: in whose name it speaks.
        user_id: the user that it speaks for.
        agent_id: the agent that it speaks for.
        permissions: a bit set whose meaning is the service's own, 63 bits.
        expires_at: from when it opens nothing; None is never.
    """

    org_id: UUID
    token_id: UUID
    prefix: str
    kind: TokenKind
    user_id: UUID | None
    agent_id: UUID | None
    permissions: int
    expires_at: datetime | None

    def allows(self, permissions: int) -> bool:
        """Tell whether the token has every one of these permission bits."""
        return self.permissions & permissions == permissions


class Authenticator(Protocol):
    """What ``db.authenticate()`` asks; each Database makes one of its own."""

    async def authenticate(self, database: "Database", plaintext: str) -> TokenIdentity:
        """Return whom a token speaks for, or raise InvalidTokenError."""
        ...

    async def flush(self, database: "Database") -> None:
        """Write what is still kept in memory; called once, when the Database closes.  Raises nothing."""
        ...


def load_authenticator() -> Authenticator:
    """Make the authenticator of the installed wheel.

    Raises:
        ImportError: no installed wheel knows tokens.
    """
    for point in entry_points(group=AUTHENTICATOR_GROUP):
        return cast("Callable[[], Authenticator]", point.load())()
    raise ImportError("Database.authenticate() needs the ibex-db-tenancy wheel: uv add ibex-db-tenancy")
