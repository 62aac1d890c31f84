"""Engines: what one Database connects with, each made when it is first wanted, and whom each may connect as."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core import logins
from ibex_db_core.engine import EngineSettings, create_engine
from ibex_db_core.errors import AccessDeniedError, ConfigurationError, MigrationError
from ibex_db_core.policies import OWNER_ROLE
from ibex_db_core.provisioning import DATABASE, PLATFORM_LOGIN, SERVICE_LOGIN, Cluster
from ibex_db_core.replicas import Replica, Replicas
from ibex_db_core.signing import SigningKey
from ibex_db_core.telemetry import Telemetry
from ibex_db_core.translation import translate, translated
from ibex_db_core.url import Address, parse

if TYPE_CHECKING:
    from ibex_db_core.embedded import EmbeddedPostgres

__all__ = ["Addresses", "Engines"]

_CLOSED = "this Database is closed: make a new one"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a Database connects to, and as whom.

    Attributes:
        service: for tenants' work.
        platform: for cross-tenant work; None: the service's login steps into the role.
        owner: for migrations; None: the service's.
        replicas: of standbys.
    """

    service: Address
    platform: Address | None = None
    owner: Address | None = None
    replicas: Sequence[Address] = ()


class Engines:
    """The engines of one Database.

    Args:
        addresses: where to.
        settings: pool, timeouts, application name.
        key: signs tenants' sessions; None: they are not signed.
        step_down: accept a superuser's or the owner's login.
        telemetry: what to tell OpenTelemetry; None: nothing.

    Attributes:
        watch: what watches them; None where there is no telemetry.
    """

    def __init__(
        self,
        addresses: Addresses,
        settings: EngineSettings,
        key: SigningKey | None,
        *,
        step_down: bool,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.addresses = addresses
        self.settings = settings
        self.step_down = step_down
        self.closed = False
        self.watch = telemetry.start() if telemetry is not None else None
        self._key = key
        self._embedded: EmbeddedPostgres | None = None
        self._service: AsyncEngine | None = None
        self._platform: AsyncEngine | None = None
        self._opening = asyncio.Lock()
        self._verified = False
        self.replicas = self._make_replicas() if addresses.replicas else None

    def embed(self, server: "EmbeddedPostgres") -> None:
        """Connect to this server, whose addresses are known once it runs."""
        self._embedded = server

    @property
    def service(self) -> AsyncEngine:
        """Of tenants' work; opens nothing by itself.

        Raises:
            ConfigurationError: closed, or an embedded server that has not been started.
        """
        if self.closed:
            raise ConfigurationError(_CLOSED)
        if self._service is None:
            if self._embedded is not None:
                raise ConfigurationError(
                    "the embedded Postgres starts on `async with` or open(): its address is unknown before"
                )
            self._service = self._make("service", self.addresses.service, self._key)
        return self._service

    async def open(self) -> None:
        """Start the embedded server where there is one; refuse nothing yet.  Idempotent."""
        async with self._opening:
            if self.closed:
                raise ConfigurationError(_CLOSED)
            if self._embedded is not None and self._service is None:
                await asyncio.to_thread(self._embedded.start)
                cluster = Cluster.of(self._embedded)
                with translated():
                    await cluster.create_logins()
                    await cluster.create_database(DATABASE)
                self.addresses = Addresses(
                    parse(cluster.url(DATABASE, user=SERVICE_LOGIN)),
                    parse(cluster.url(DATABASE, user=PLATFORM_LOGIN)),
                    parse(cluster.url(DATABASE)),
                )
                self._service = self._make("service", self.addresses.service, self._key)

    async def close(self) -> None:
        """Close every pool and let go of the embedded server.  Idempotent."""
        self.closed = True
        if self.watch is not None:
            self.watch.close()
        for engine in (self._service, self._platform):
            if engine is not None:
                await engine.dispose()
        if self.replicas is not None:
            await self.replicas.dispose()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.stop)

    async def forget_connections(self) -> None:
        """Have tenants' work connect anew: connections made before the vector extension existed lack its codec."""
        if self._service is not None:
            await self._service.dispose()

    # -- whom they connect as

    async def ready(self) -> None:
        """Open, and verify the service's login, once.

        Raises:
            UnsafeRoleError: the login could read past the policies.
        """
        if self._verified and not self.closed:
            return
        await self.open()
        await self._verify(self.service)
        self._verified = True

    async def platform(self) -> AsyncEngine:
        """Return the engine of cross-tenant work, verified once: by the first of those who ask at the same time.

        Raises:
            ConfigurationError: the login is not held by the platform's policies, or sees no row.
        """
        if self.addresses.platform is None:
            return self.service
        async with self._opening:
            if self._platform is None:
                engine = self._make("platform", self.addresses.platform, None)
                try:
                    with translated():
                        await logins.verify_platform(engine, step_down=self.step_down)
                except BaseException:
                    await engine.dispose()
                    raise
                self._platform = engine
        return self._platform

    @asynccontextmanager
    async def owner(self, what: str) -> AsyncGenerator[AsyncEngine]:
        """Give an engine of the owner's login, for this block.

        Args:
            what: is the owner's work, as the beginning of a sentence: ``Migrations are``.

        Raises:
            MigrationError: the login may not do it.
        """
        await self.open()
        engine = create_engine(self.addresses.owner or self.addresses.service, self.settings.for_migrations())
        try:
            yield engine
        except OSError:
            raise  # the caller's own (TimeoutError is one): of the database's the engine has made ours already
        except Exception as exc:
            ours = translate(exc)
            if isinstance(ours, AccessDeniedError):
                raise MigrationError(
                    f"{ours}. {what} the owner's work: name a member of {OWNER_ROLE} in owner_url (IBEX_OWNER_URL)"
                ) from exc
            if ours is None or ours is exc:
                raise
            raise ours from exc
        finally:
            await engine.dispose()

    def _make(self, role: str, address: Address, key: SigningKey | None) -> AsyncEngine:
        if self.watch is None:
            return create_engine(address, self.settings, key)
        return self.watch.engine(
            role, address, self.settings, lambda around: create_engine(address, self.settings, key, around)
        )

    def _make_replicas(self) -> Replicas:
        every = [
            Replica(address, self._make(f"replica {number}", address, self._key))
            for number, address in enumerate(self.addresses.replicas, 1)
        ]
        return Replicas(every, self._verify, wait=self.settings.replica_wait, most_lag=self.settings.replica_lag)

    async def _verify(self, engine: AsyncEngine) -> None:
        with translated():
            await logins.verify(engine, step_down=self.step_down)
