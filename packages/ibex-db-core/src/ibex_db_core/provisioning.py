"""A server made ready for services: databases, roles, and logins that are nothing but members of one role."""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg
from sqlalchemy import URL, make_url

from ibex_db_core.policies import APP_ROLE, PLATFORM_ROLE, create_roles
from ibex_db_core.url import parse

if TYPE_CHECKING:
    from ibex_db_core.database import Database
    from ibex_db_core.embedded import EmbeddedPostgres
    from ibex_db_core.engine import EngineSettings
    from ibex_db_core.telemetry import Telemetry

DATABASE = "ibex"
SERVICE_LOGIN = "ibex_service"
PLATFORM_LOGIN = "ibex_platform_service"

_LOGINS_LOCK = 0x1BEC_DB02


@dataclass(frozen=True)
class Cluster:
    """A server on which we are superuser: the embedded one, or one given to tests.

    Attributes:
        admin: the superuser's address in the database ``postgres``.
        password: of the logins that we make; None where the server trusts its socket.
    """

    admin: URL = field(repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, server: "EmbeddedPostgres", *, tcp: bool = False) -> "Cluster":
        """Use an embedded server that has been started, over its socket in a folder of ours, or over TCP."""
        admin = make_url(server.url(tcp=tcp))
        if not tcp:
            return cls(admin)
        return cls(admin, _password_of_logins(admin))

    @classmethod
    def at(cls, url: str) -> "Cluster":
        """Use any server; whoever knows this address of it agrees on the password of its logins."""
        admin = parse(url).url.set(drivername="postgresql")
        return cls(admin, _password_of_logins(admin))

    def url(self, database: str, *, user: str | None = None) -> URL:
        """Return the address of a database, for the superuser or for one of our logins."""
        address = self.admin.set(database=database)
        return address if user is None else replace_login(address, user, self.password)

    def database(
        self,
        name: str,
        *,
        settings: "EngineSettings | None" = None,
        signing_key: str | None = None,
        telemetry: "Telemetry | None" = None,
    ) -> "Database":
        """Make a Database that connects as services should."""
        from ibex_db_core.database import Database

        return Database(
            self.url(name, user=SERVICE_LOGIN),
            platform_url=self.url(name, user=PLATFORM_LOGIN),
            owner_url=self.url(name),
            settings=settings,
            signing_key=signing_key,
            telemetry=telemetry,
        )

    async def create_logins(self) -> None:
        """Make the roles and a login for each kind of work.  Idempotent, and safe beside another process's."""
        password = f" PASSWORD '{self.password}'" if self.password else ""
        # Roles belong to the whole server, and two sessions that alter one at a
        # time fail; the lock goes with the connection.
        statements = [f"SELECT pg_advisory_lock({_LOGINS_LOCK})", *create_roles()]
        for login, role in ((SERVICE_LOGIN, APP_ROLE), (PLATFORM_LOGIN, PLATFORM_ROLE)):
            statements.append(
                f"DO $$ BEGIN CREATE ROLE {login} LOGIN IN ROLE {role}; "
                "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
            )
            if password:
                statements.append(f"ALTER ROLE {login}{password}")
        await self._run(*statements)

    async def create_database(self, name: str, *, template: str | None = None) -> None:
        """Make a database where it is missing: empty, or a copy of a template that nobody is connected to."""
        try:
            await self._run(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
        except (asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
            return  # it is there, or another process was faster

    async def drop_database(self, name: str) -> None:
        """Drop a database, connections to it included."""
        await self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def _run(self, *statements: str) -> None:
        connection = await asyncpg.connect(self.admin.render_as_string(hide_password=False))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()


def _password_of_logins(admin: URL) -> str:
    """Make the logins' password from the superuser's: one run, or one process, never locks another out."""
    secret = admin.password or admin.render_as_string(hide_password=False)
    return hashlib.sha256(f"ibex-db logins {secret}".encode()).hexdigest()[:32]


def replace_login(address: URL, user: str, password: str | None) -> URL:
    """Return an address for another login."""
    return URL.create(address.drivername, user, password, address.host, address.port, address.database, address.query)
