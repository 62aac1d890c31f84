"""Database: one per service; engines, tenant transactions, the platform's bypass."""

import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar
from uuid import UUID

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core import validation
from ibex_db_core.engine import EngineSettings
from ibex_db_core.engines import Addresses, Engines
from ibex_db_core.errors import AccessDeniedError, ConfigurationError, InvalidInputError
from ibex_db_core.identity import Authenticator, TokenIdentity, load_authenticator
from ibex_db_core.migrations import Migrator, Revision
from ibex_db_core.migrations.plans import ATTEMPTS, LOCK_TIMEOUT
from ibex_db_core.policies import APP_ROLE, PLATFORM_ROLE
from ibex_db_core.replicas import ReplicaStatus, check_position
from ibex_db_core.signing import KEY_VARIABLE, SigningKey
from ibex_db_core.telemetry import Telemetry
from ibex_db_core.tenant import OWN_ROLE, ScopedSession, scope, set_tenant
from ibex_db_core.translation import translated
from ibex_db_core.unit_of_work import again, reading, transaction
from ibex_db_core.url import parse

if TYPE_CHECKING:
    from ibex_db_core.doctor import Report

P = ParamSpec("P")
R = TypeVar("R")

_platform_log = logging.getLogger("ibex_db.platform")


class Database:
    """A Postgres with the ibex_core schema.

    Returns at once; opens on ``async with`` or on first use; ``close()`` ends it.

    Args:
        url: what services connect as: a login that is a member of ibex_app and of
            nothing else.  libpq's and SQLAlchemy's spellings (see ibex_db_core.url).
        platform_url: the login for cross-tenant work, a member of ibex_platform.  None:
            ``url``'s login steps into ibex_platform for each transaction, for which it
            needs a membership WITH INHERIT FALSE.
        owner_url: the login for migrations, a member of ibex_owner.  None: ``url``.
        step_down: accept a superuser or owner login by stepping down to ibex_app in
            each transaction.  For development: SQL could still RESET ROLE.
        settings: pool, timeouts, application name; see EngineSettings.
        signing_key: 64 hexadecimal digits.  Each tenant transaction carries a signature made with it, which a
            database with signing on demands; see docs/how-to/signing.md.
        replica_urls: of standbys that stream from ``url``'s server; ``tenant(read_only=True)`` goes to them, and
            to ``url`` where none is well.
        telemetry: what to tell OpenTelemetry; None: nothing, at no cost.

    Raises:
        ConfigurationError: a URL, a setting or a key that cannot be used, or a key together with step_down;
            telemetry without OpenTelemetry.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        platform_url: str | URL | None = None,
        owner_url: str | URL | None = None,
        step_down: bool = False,
        settings: EngineSettings | None = None,
        signing_key: str | None = None,
        replica_urls: Sequence[str | URL] = (),
        telemetry: Telemetry | None = None,
    ) -> None:
        key = SigningKey(signing_key) if signing_key is not None else None
        if step_down and key is not None:
            raise ConfigurationError(
                "step_down and a signing key contradict each other: SQL that can RESET ROLE needs no signature; "
                f"connect as a login that is only a member of {APP_ROLE}, or leave {KEY_VARIABLE} out"
            )
        addresses = Addresses(
            parse(url),
            parse(platform_url) if platform_url is not None else None,
            parse(owner_url) if owner_url is not None else None,
            [parse(one) for one in replica_urls],
        )
        self._engines = Engines(addresses, settings or EngineSettings(), key, step_down=step_down, telemetry=telemetry)
        self._authenticator: Authenticator | None = None

    @classmethod
    def from_env(
        cls, *, url: str | None = None, settings: EngineSettings | None = None, telemetry: Telemetry | None = None
    ) -> Self:
        """Read IBEX_DATABASE_URL and its kin: _PLATFORM_URL, _OWNER_URL, _REPLICA_URLS, _STEP_DOWN, _SIGNING_KEY.

        Embedded where no URL is set.

        Args:
            url: takes the place of IBEX_DATABASE_URL, and of the other addresses with
                it: they belong to another database.
            settings: pool, timeouts, application name.
            telemetry: what to tell OpenTelemetry.

        Raises:
            ConfigurationError: an address is not one; or another of the addresses above is set and
                IBEX_DATABASE_URL is not: the embedded Postgres is not the database that they mean.
        """
        address = os.environ.get("IBEX_DATABASE_URL", "").strip() if url is None else url
        if not address and url is None:
            others = ("IBEX_PLATFORM_URL", "IBEX_OWNER_URL", "IBEX_REPLICA_URLS")
            if lonely := next((name for name in others if os.environ.get(name, "").strip()), None):
                raise ConfigurationError(
                    f"{lonely} is set and IBEX_DATABASE_URL is not: set it too, or unset {lonely} to use the embedded "
                    "Postgres"
                )
            key = os.environ.get(KEY_VARIABLE, "").strip() or None
            return cls.embedded(settings=settings, signing_key=key, telemetry=telemetry)
        return cls(
            address,
            platform_url=os.environ.get("IBEX_PLATFORM_URL") or None if url is None else None,
            owner_url=os.environ.get("IBEX_OWNER_URL") or None if url is None else None,
            step_down=os.environ.get("IBEX_STEP_DOWN", "").lower() in {"1", "true", "yes"},
            settings=settings,
            signing_key=os.environ.get(KEY_VARIABLE, "").strip() or None,
            replica_urls=os.environ.get("IBEX_REPLICA_URLS", "").split() if url is None else (),
            telemetry=telemetry,
        )

    @classmethod
    def embedded(
        cls,
        path: str | Path | None = None,
        *,
        settings: EngineSettings | None = None,
        signing_key: str | None = None,
        telemetry: Telemetry | None = None,
    ) -> Self:
        """Use the Postgres of the ``embedded`` extra.

        Args:
            path: where its data is kept; None is the user's data folder.
            settings: pool, timeouts, application name.
            signing_key: as for Database.
            telemetry: as for Database.
        """
        from ibex_db_core.embedded import EmbeddedPostgres

        database = cls("postgresql:///ibex", settings=settings, signing_key=signing_key, telemetry=telemetry)
        database._engines.embed(EmbeddedPostgres(path))
        return database

    # -- life

    @property
    def engine(self) -> AsyncEngine:
        """The engine of services' connections; opens nothing by itself.

        Raises:
            ConfigurationError: closed, or an embedded server that has not been started: enter the Database first.
        """
        return self._engines.service

    async def open(self) -> Self:
        """Start the embedded server where there is one; refuse nothing yet.  Idempotent."""
        await self._engines.open()
        return self

    async def close(self) -> None:
        """Write what is still to be counted, close every pool and let go of the embedded server.  Idempotent."""
        try:
            if self._authenticator is not None and not self._engines.closed:
                await self._authenticator.flush(self)
        finally:
            await self._engines.close()

    async def __aenter__(self) -> Self:
        """Open."""
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    def __repr__(self) -> str:
        """Show where, never the password."""
        return f"<Database {self._engines.addresses.service.url.render_as_string(hide_password=True)}>"

    # -- units of work

    def tenant(
        self, org_id: UUID, *, read_only: bool = False, after: str | None = None
    ) -> AbstractAsyncContextManager[ScopedSession]:
        """Give one transaction of one organization: commit on success, rollback on an exception.

        The session may commit or roll back in between; its next transaction
        carries the tenant again.

        Args:
            org_id: whose.
            read_only: refuse every write; a read replica answers, where there is one and it is well.
            after: of a read: see at least what had been committed at this ``position()``.  A replica is
                waited for (EngineSettings.replica_wait), then the primary answers.

        Raises:
            InvalidInputError: org_id is no UUID; after is no position, or comes without read_only.
            UnsafeRoleError: the login could read past the policies.
            PoolExhaustedError: no connection within pool_timeout.
            ConnectionLostError: no connection to the server.
            CommitUnknownError: the connection broke during COMMIT.
        """
        if after is not None:
            if not read_only:
                raise InvalidInputError(
                    "after", after, "is for read_only=True: a write goes to the primary, which knows all"
                )
            check_position(after)
        replicas = self._engines.replicas
        if read_only and replicas is not None:
            org_id = validation.uuid("org_id", org_id)
            return reading(self._engines, replicas, lambda engine: self._session(engine, org_id, read_only=True), after)
        return transaction(self._engines, self.session_factory(org_id, read_only=read_only), read_only=read_only)

    async def position(self) -> str:
        """Return how far the primary's write-ahead log has come, for ``tenant(..., after=)``: one round trip.

        Whatever was committed before the call lies before it, and it may be passed on to another service.

        Example:
            >>> async with db.tenant(org.id) as session:
            ...     kept = await MemoryRepository(session).remember(
            ...         agent_id=agent.id, content="Lives in Oslo.", category="factual")
            >>> async with db.tenant(org.id, read_only=True, after=await db.position()) as session:
            ...     (await MemoryRepository(session).get(kept.memory.id)).content
            'Lives in Oslo.'

        Raises:
            ConnectionLostError: no connection to the primary.
        """
        await self._engines.ready()
        with translated():
            async with self.engine.connect() as connection:
                return str(await connection.scalar(_POSITION))

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        """What is known of each read replica, in the order given; asks none."""
        return self._engines.replicas.statuses if self._engines.replicas is not None else ()

    @asynccontextmanager
    async def platform(self, *, reason: str) -> AsyncGenerator[ScopedSession]:
        """Give one transaction across all organizations, under the role ibex_platform: sign-up, sweepers, support.

        Logged with its reason to the logger ``ibex_db.platform``, at WARNING.

        Args:
            reason: why the walls between tenants are crossed; for the log, in one line.

        Raises:
            InvalidInputError: no reason, or one that is not one line.
            ConfigurationError: platform_url's login is not held by the platform's policies, or sees no row; or there is
                no platform_url, and the service's login may not become ibex_platform.
        """
        if not validation.text("reason", reason, shortest=1).isprintable():
            raise InvalidInputError(
                "reason", reason, "must be one line of printable characters: it is written to a log"
            )
        await self._engines.ready()
        _platform_log.warning("cross-tenant session: %s", reason, extra={"reason": reason})
        engine = await self._engines.platform()
        role = OWN_ROLE if self._engines.addresses.platform is not None else f"SET LOCAL ROLE {PLATFORM_ROLE}"
        session = ScopedSession(engine, expire_on_commit=False, close_resets_only=False)
        scope(session, None, f"{role}; {self._engines.settings.each_transaction}", self._engines.watch)
        try:
            async with transaction(self._engines, session) as opened:
                yield opened
        except AccessDeniedError as exc:
            # The words are the server's, in its language; the role's name is in them.
            if self._engines.addresses.platform is None and exc.table is None and f'"{PLATFORM_ROLE}"' in str(exc):
                raise ConfigurationError(
                    f"the service's login may not work across organizations: set IBEX_PLATFORM_URL (platform_url) to a "
                    f"login that is a member of {PLATFORM_ROLE}; `ibex-db postgres` prints one, the README says how to "
                    f"make one ({exc})"
                ) from exc
            raise

    def session_factory(self, org_id: UUID, *, read_only: bool = False) -> ScopedSession:
        """Make a tenant session for your own unit of work: nothing is begun, commit and close are yours.

        Raises:
            InvalidInputError: org_id is no UUID.
            ConfigurationError: an embedded Database that has not been opened.
        """
        return self._session(self.engine, validation.uuid("org_id", org_id), read_only=read_only)

    def _session(self, engine: AsyncEngine, org_id: UUID, *, read_only: bool) -> ScopedSession:
        session = ScopedSession(engine, expire_on_commit=False, close_resets_only=False)
        role = f"SET LOCAL ROLE {APP_ROLE}" if self._engines.step_down else OWN_ROLE
        only = "SET TRANSACTION READ ONLY; " if read_only else ""
        scope(
            session,
            org_id,
            f"{only}{set_tenant(org_id)}; {role}; {self._engines.settings.each_transaction}",
            self._engines.watch,
        )
        return session

    async def run(
        self,
        org_id: UUID,
        work: Callable[Concatenate[ScopedSession, P], Awaitable[R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run a unit of work in a tenant transaction, again where that may help.

        Retries TransientError (serialization failure, deadlock, lock timeout,
        lost connection) up to 5 times within 30 seconds: at once where two
        transactions collided, else with jittered, exponential backoff.  ``work``
        runs from the start each time, so it must not do what a rollback does not
        undo.

        Raises:
            CommitUnknownError: the connection broke during COMMIT; never retried, for the work may have been done.
        """
        return await again(self._engines, org_id, self.tenant, lambda session: work(session, *args, **kwargs))

    async def authenticate(self, plaintext: str) -> TokenIdentity:
        """Return whom a token speaks for.

        One transaction of the organization that the token names, with one
        statement: three round trips, for a valid token and for every other, so
        that neither the error nor the time tells why one is refused.  What is
        no token at all (its checksum is wrong, which anybody can see) is
        refused without a query.

        Example:
            >>> async with db.tenant(org.id) as session:
            ...     tokens = TokenRepository(session)
            ...     issued = await tokens.issue(name="Laptop", user_id=user.id, permissions=0b101)
            >>> identity = await db.authenticate(issued.plaintext)
            >>> identity.user_id == user.id
            True
            >>> identity.allows(0b100), identity.allows(0b010)
            (True, False)

        Raises:
            InvalidTokenError: malformed, unknown, expired or revoked, or of an organization, user or
                agent that is suspended, archived or deleted; which of these is never told.
            ImportError: the tenancy wheel is not installed.
        """
        if self._authenticator is None:
            self._authenticator = load_authenticator()
        return await self._authenticator.authenticate(self, plaintext)

    # -- schema

    async def upgrade(
        self,
        revision: str = "heads",
        *,
        lock_timeout: float = LOCK_TIMEOUT,
        attempts: int = ATTEMPTS,
        allow_destructive: bool = False,
    ) -> list[Revision]:
        """Bring the schema to the newest revision of every installed wheel; see Migrator.upgrade."""
        async with self.migrator() as migrator:
            applied = await migrator.upgrade(
                revision, lock_timeout=lock_timeout, attempts=attempts, allow_destructive=allow_destructive
            )
        await self._engines.forget_connections()
        return applied

    @asynccontextmanager
    async def migrator(self) -> AsyncGenerator[Migrator]:
        """Give the migrations of the installed wheels, on a connection of the owner's login."""
        async with self._engines.owner("Migrations are") as engine:
            yield Migrator(engine)

    async def doctor(self, *, performance: bool = False) -> "Report":
        """Audit the live database, other people's changes included; see ibex_db_core.doctor.

        Runs on a connection of the owner's login, in one read-only transaction.

        Args:
            performance: look at how it works instead of whether it is safe: what the server's counters say
                of updates, dead rows, indexes, memory, transactions and statements.

        Raises:
            MigrationError: there is no ibex_core schema, or the login may not read it.
        """
        from ibex_db_core.doctor import CHECKS, examine, performance_checks

        checks = performance_checks() if performance else CHECKS

        async with self._engines.owner("The audit is") as engine, engine.connect() as connection:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            return await connection.run_sync(lambda live: examine(live, checks=checks))


_POSITION = text("SELECT CAST(pg_current_wal_insert_lsn() AS text)")
