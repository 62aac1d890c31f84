"""Database: one per service; engines, tenant transactions, the platform's bypass."""

import asyncio
import logging
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar
from uuid import UUID

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core import validation
from ibex_db_core.engine import EngineSettings, create_engine
from ibex_db_core.errors import (
    AccessDeniedError,
    CommitUnknownError,
    ConfigurationError,
    ConnectionLostError,
    DeadlockError,
    MigrationError,
    SerializationError,
    TransientError,
    UnsafeRoleError,
)
from ibex_db_core.identity import Authenticator, TokenIdentity, load_authenticator
from ibex_db_core.migrations import Migrator, Revision
from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, SEARCH_ROLE
from ibex_db_core.provisioning import DATABASE, PLATFORM_LOGIN, SERVICE_LOGIN, Cluster
from ibex_db_core.tenant import ScopedSession, scope, set_tenant
from ibex_db_core.translation import translate
from ibex_db_core.url import parse

if TYPE_CHECKING:
    from ibex_db_core.doctor import Report
    from ibex_db_core.embedded import EmbeddedPostgres

P = ParamSpec("P")
R = TypeVar("R")

_CLOSED = "this Database is closed: make a new one"

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
    """

    def __init__(
        self,
        url: str | URL,
        *,
        platform_url: str | URL | None = None,
        owner_url: str | URL | None = None,
        step_down: bool = False,
        settings: EngineSettings | None = None,
    ) -> None:
        self._settings = settings or EngineSettings()
        self._url = parse(url)
        self._platform_url = parse(platform_url) if platform_url is not None else None
        self._owner_url = parse(owner_url) if owner_url is not None else None
        self._step_down = step_down
        self._embedded: EmbeddedPostgres | None = None
        self._engine: AsyncEngine | None = None
        self._platform_engine: AsyncEngine | None = None
        self._authenticator: Authenticator | None = None
        self._opening = asyncio.Lock()
        self._verified = False
        self._closed = False

    @classmethod
    def from_env(cls, *, url: str | None = None, settings: EngineSettings | None = None) -> Self:
        """Read IBEX_DATABASE_URL, IBEX_PLATFORM_URL, IBEX_OWNER_URL, IBEX_STEP_DOWN; embedded where no URL is set.

        Args:
            url: takes the place of IBEX_DATABASE_URL, and of the two other addresses with
                it: they belong to another database.
            settings: pool, timeouts, application name.
        """
        address = os.environ.get("IBEX_DATABASE_URL", "").strip() if url is None else url
        if not address and url is None:
            return cls.embedded(settings=settings)
        return cls(
            address,
            platform_url=os.environ.get("IBEX_PLATFORM_URL") or None if url is None else None,
            owner_url=os.environ.get("IBEX_OWNER_URL") or None if url is None else None,
            step_down=os.environ.get("IBEX_STEP_DOWN", "").lower() in {"1", "true", "yes"},
            settings=settings,
        )

    @classmethod
    def embedded(cls, path: str | Path | None = None, *, settings: EngineSettings | None = None) -> Self:
        """Use the Postgres of the ``embedded`` extra.

        Args:
            path: where its data is kept; None is the user's data folder.
            settings: pool, timeouts, application name.
        """
        from ibex_db_core.embedded import EmbeddedPostgres

        database = cls("postgresql:///ibex", settings=settings)
        database._embedded = EmbeddedPostgres(path)
        return database

    # -- life

    @property
    def engine(self) -> AsyncEngine:
        """The engine of services' connections; opens nothing by itself.

        Raises:
            ConfigurationError: closed, or an embedded server that has not been started: enter the Database first.
        """
        if self._closed:
            raise ConfigurationError(_CLOSED)
        if self._engine is None:
            if self._embedded is not None:
                raise ConfigurationError(
                    "the embedded Postgres starts on `async with` or open(): its address is unknown before"
                )
            self._engine = create_engine(self._url, self._settings)
        return self._engine

    async def open(self) -> Self:
        """Start the embedded server where there is one; refuse nothing yet.  Idempotent."""
        async with self._opening:
            if self._closed:
                raise ConfigurationError(_CLOSED)
            if self._embedded is not None and self._engine is None:
                await asyncio.to_thread(self._embedded.start)
                cluster = Cluster.of(self._embedded)
                await cluster.create_logins()
                await cluster.create_database(DATABASE)
                self._url = parse(cluster.url(DATABASE, user=SERVICE_LOGIN))
                self._platform_url = parse(cluster.url(DATABASE, user=PLATFORM_LOGIN))
                self._owner_url = parse(cluster.url(DATABASE))
                self._engine = create_engine(self._url, self._settings)
        return self

    async def close(self) -> None:
        """Write what is still to be counted, close every pool and let go of the embedded server.  Idempotent."""
        try:
            if self._authenticator is not None and not self._closed:
                await self._authenticator.flush(self)
        finally:
            await self._close()

    async def _close(self) -> None:
        self._closed = True
        for engine in (self._engine, self._platform_engine):
            if engine is not None:
                await engine.dispose()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.stop)

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
        return f"<Database {self._url.url.render_as_string(hide_password=True)}>"

    # -- units of work

    def tenant(self, org_id: UUID, *, read_only: bool = False) -> AbstractAsyncContextManager[ScopedSession]:
        """Give one transaction of one organization: commit on success, rollback on an exception.

        The session may commit or roll back in between; its next transaction
        carries the tenant again.

        Raises:
            InvalidInputError: org_id is no UUID.
            UnsafeRoleError: the login could read past the policies.
            PoolExhaustedError: no connection within pool_timeout.
            ConnectionLostError: no connection to the server.
            CommitUnknownError: the connection broke during COMMIT.
        """
        return self._transaction(self.session_factory(org_id, read_only=read_only))

    @asynccontextmanager
    async def platform(self, *, reason: str) -> AsyncGenerator[ScopedSession]:
        """Give one transaction across all organizations, under the role ibex_platform: sign-up, sweepers, support.

        Logged with its reason to the logger ``ibex_db.platform``, at WARNING.

        Args:
            reason: why the walls between tenants are crossed; for the log.
        """
        validation.text("reason", reason, shortest=1)
        await self._ready()
        _platform_log.warning("cross-tenant session: %s", reason, extra={"reason": reason})
        if self._platform_url is not None and self._platform_engine is None:
            self._platform_engine = create_engine(self._platform_url, self._settings)
        role = "" if self._platform_url is not None else f"SET LOCAL ROLE {PLATFORM_ROLE}; "
        session = ScopedSession(self._platform_engine or self.engine, expire_on_commit=False, close_resets_only=False)
        scope(session, None, f"{role}{self._settings.each_transaction}")
        async with self._transaction(session) as opened:
            yield opened

    def session_factory(self, org_id: UUID, *, read_only: bool = False) -> ScopedSession:
        """Make a tenant session for your own unit of work: nothing is begun, commit and close are yours.

        Raises:
            InvalidInputError: org_id is no UUID.
            ConfigurationError: an embedded Database that has not been opened.
        """
        org_id = validation.uuid("org_id", org_id)
        session = ScopedSession(self.engine, expire_on_commit=False, close_resets_only=False)
        role = f"SET LOCAL ROLE {APP_ROLE}; " if self._step_down else ""
        only = "SET TRANSACTION READ ONLY; " if read_only else ""
        scope(session, org_id, f"{only}{role}{set_tenant(org_id)}; {self._settings.each_transaction}")
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
        import stamina

        async for attempt in stamina.retry_context(on=_retry, attempts=5, timeout=30.0):
            with attempt:
                async with self.tenant(org_id) as session:
                    return await work(session, *args, **kwargs)
        raise AssertionError("stamina re-raises the last failure")  # pragma: no cover

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

    @asynccontextmanager
    async def _transaction(self, session: ScopedSession) -> AsyncGenerator[ScopedSession]:
        await self._ready()
        async with session:
            try:
                # Check a connection out here, so that an exhausted pool or an
                # absent server is told at the door.  BEGIN goes with the first statement.
                await session.connection()
            except Exception as exc:
                if (ours := translate(exc)) is not None and ours is not exc:
                    raise ours from exc
                raise
            try:
                yield session
                await self._flush(session)
            except BaseException:
                await session.rollback()
                raise
            try:
                await session.commit()
            except ConnectionLostError as exc:
                raise CommitUnknownError(
                    "the connection broke during COMMIT: the work may or may not have been done; "
                    "look before doing it again",
                    sqlstate=exc.sqlstate,
                ) from exc

    @staticmethod
    async def _flush(session: ScopedSession) -> None:
        """Send what is pending, apart from COMMIT: a connection that breaks here has surely committed nothing."""
        try:
            await session.flush()
        except Exception as exc:
            if (ours := translate(exc)) is not None and ours is not exc:
                raise ours from exc
            raise

    # -- safety

    async def _ready(self) -> None:
        if self._verified and not self._closed:
            return
        await self.open()
        try:
            async with self.engine.connect() as connection:
                row = (await connection.execute(_WHO)).one()
        except Exception as exc:
            if (ours := translate(exc)) is not None and ours is not exc:
                raise ours from exc
            raise
        if not row.migrated:
            raise MigrationError("this database has no ibex_core schema: run `ibex-db upgrade`, or await db.upgrade()")
        why = next((reason for reason, holds in zip(_UNSAFE, row[2:], strict=True) if holds), None)
        if why is not None and not self._step_down:
            raise UnsafeRoleError(row.login, why)
        self._verified = True

    # -- schema

    async def upgrade(self, revision: str = "heads") -> list[Revision]:
        """Bring the schema to the newest revision of every installed wheel; see Migrator.upgrade."""
        async with self.migrator() as migrator:
            applied = await migrator.upgrade(revision)
        if self._engine is not None:
            # Connections made before the vector extension existed lack its codec.
            await self._engine.dispose()
        return applied

    @asynccontextmanager
    async def migrator(self) -> AsyncGenerator[Migrator]:
        """Give the migrations of the installed wheels, on a connection of the owner's login."""
        async with self._owner_engine("Migrations are") as engine:
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

        async with self._owner_engine("The audit is") as engine, engine.connect() as connection:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
            return await connection.run_sync(lambda live: examine(live, checks=checks))

    @asynccontextmanager
    async def _owner_engine(self, what: str) -> AsyncGenerator[AsyncEngine]:
        await self.open()
        engine = create_engine(self._owner_url or self._url, self._settings.for_migrations())
        try:
            yield engine
        except AccessDeniedError as exc:
            raise MigrationError(
                f"{exc}. {what} the owner's work: name a member of {OWNER_ROLE} in owner_url (IBEX_OWNER_URL)"
            ) from exc
        except Exception as exc:
            if (ours := translate(exc)) is not None and ours is not exc:
                raise ours from exc
            raise
        finally:
            await engine.dispose()


def _retry(exc: Exception) -> bool | float:
    """Tell stamina whether to try again, and after how many seconds; True leaves that to it."""
    if isinstance(exc, (SerializationError, DeadlockError)):
        return random.uniform(0.0, 0.1)  # noqa: S311 - whoever won is done; apart is all that the next try must be
    return isinstance(exc, TransientError)


_UNSAFE = (
    "is a superuser",
    "has BYPASSRLS",
    f"owns the tables (it is {OWNER_ROLE} or a member of it)",
    f"inherits {PLATFORM_ROLE}, whose policies show every organization",
    f"inherits {SEARCH_ROLE}, whose policies show every organization",
)
_WHO = text(
    f"""
    SELECT current_user AS login,
           EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{APP_ROLE}')
           AND pg_catalog.to_regclass('ibex_core.alembic_version') IS NOT NULL AS migrated,
           me.rolsuper, me.rolbypassrls,
           EXISTS (SELECT FROM pg_catalog.pg_roles r
                   WHERE r.rolname = '{OWNER_ROLE}' AND pg_catalog.pg_has_role(me.oid, r.oid, 'MEMBER')),
           EXISTS (SELECT FROM pg_catalog.pg_roles r
                   WHERE r.rolname = '{PLATFORM_ROLE}' AND pg_catalog.pg_has_role(me.oid, r.oid, 'USAGE')),
           EXISTS (SELECT FROM pg_catalog.pg_roles r
                   WHERE r.rolname = '{SEARCH_ROLE}' AND pg_catalog.pg_has_role(me.oid, r.oid, 'USAGE'))
    FROM pg_catalog.pg_roles me WHERE me.rolname = current_user
    """
)
