"""The engine: asyncpg connections that fold BEGIN, read vectors in binary and speak our errors."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import asyncpg
import pgvector
from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection, PoolResetState

from ibex_db_core.connection import FoldedConnection
from ibex_db_core.errors import SignatureLateError, TenantError
from ibex_db_core.lending import LendingPool, in_use, unfit
from ibex_db_core.signing import Signer, SigningKey
from ibex_db_core.telemetry.tags import QueryTags, tagging
from ibex_db_core.translation import translate
from ibex_db_core.types import BINARY_VECTORS
from ibex_db_core.url import Address


@dataclass(frozen=True)
class EngineSettings:
    """How connections are pooled and how long work may take.

    Attributes:
        pool_size: connections kept open.
        max_overflow: connections beyond these under load, closed again.
        pool_timeout: seconds to wait for a free one before PoolExhaustedError.
        pool_recycle: seconds after which a connection is replaced; -1: never.
        statement_timeout: seconds for one statement; 0: no limit.
        lock_timeout: seconds to wait for a lock; 0: no limit.
        idle_timeout: seconds that a transaction may sit idle; 0: no limit.
        network_timeout: seconds that an answer may be late beyond statement_timeout before the connection counts
            as lost: a server or network that went silent tells nobody.  0, or no statement_timeout: no limit.
        replica_wait: seconds that ``tenant(read_only=True, after=)`` waits for a replica before it asks the primary.
        replica_lag: seconds that a replica may be behind; more, and others are asked; None: any.
        application_name: as pg_stat_activity shows it, where the URL names none.
        statement_cache_size: asyncpg's cache; 0 for PgBouncer in transaction mode.
        hnsw_ef_search: candidates that a vector index search keeps, 1 to 1000; more is better recall and slower.
        connect_args: passed to asyncpg.connect as they are.
        query_tags: what each statement says of who sent it; None: nothing.
    """

    pool_size: int = 10
    max_overflow: int = 5
    pool_timeout: float = 10.0
    pool_recycle: int = 3600
    statement_timeout: float = 30.0
    lock_timeout: float = 10.0
    idle_timeout: float = 60.0
    network_timeout: float = 10.0
    replica_wait: float = 0.5
    replica_lag: float | None = None
    application_name: str = "ibex-db"
    statement_cache_size: int = 100
    hnsw_ef_search: int = 100
    connect_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    query_tags: QueryTags | None = None

    @property
    def behind_pgbouncer(self) -> bool:
        """Whether connections are shared with others between transactions: statement_cache_size is 0."""
        return self.statement_cache_size == 0

    @property
    def answer_timeout(self) -> float | None:
        """Seconds to wait for any answer of the server; None: no limit."""
        return (
            self.statement_timeout + self.network_timeout if self.statement_timeout and self.network_timeout else None
        )

    @cached_property
    def each_connection(self) -> str:
        """What is set once for a connection of our own; nothing behind PgBouncer."""
        return "" if self.behind_pgbouncer else "; ".join(f"SET {name} = {value}" for name, value in self._tuning)

    @cached_property
    def each_transaction(self) -> str:
        """What rides in every BEGIN; empty but behind PgBouncer, where the server connection is not ours.

        Six settings cost 0.1 ms of a transaction's 0.3, so they ride only where they must.
        """
        return "".join(f"SET LOCAL {name} = {value}; " for name, value in self._tuning) if self.behind_pgbouncer else ""

    @property
    def _tuning(self) -> Sequence[tuple[str, str | int]]:
        return (
            ("statement_timeout", round(self.statement_timeout * 1000)),
            ("lock_timeout", round(self.lock_timeout * 1000)),
            ("idle_in_transaction_session_timeout", round(self.idle_timeout * 1000)),
            # A cached generic plan turned a 6 ms search into 130 ms for the life
            # of a connection; custom planning costs about 0.1 ms.
            ("plan_cache_mode", "force_custom_plan"),
            ("hnsw.ef_search", self.hnsw_ef_search),
            ("hnsw.iterative_scan", "relaxed_order"),
        )

    def for_migrations(self) -> "EngineSettings":
        """A connection for one session's work, another to see who is in its way; no limit on how long it takes."""
        return replace(self, pool_size=2, max_overflow=0, statement_timeout=0, lock_timeout=0, idle_timeout=0)


Connect = Callable[[], Awaitable[asyncpg.Connection]]


def create_engine(
    address: Address,
    settings: EngineSettings,
    key: SigningKey | None = None,
    around: Callable[[Connect], Connect] | None = None,
) -> AsyncEngine:
    """Make an engine; nothing is opened yet.

    Args:
        address: of the database, and the login.
        settings: pool, timeouts, application name.
        key: its tenant sessions are signed with this.
        around: what is done around making a connection.
    """

    async def connect() -> asyncpg.Connection:
        options: dict[str, Any] = {
            "timeout": address.timeout,
            "statement_cache_size": settings.statement_cache_size,
            "command_timeout": settings.answer_timeout,
            "connection_class": FoldedConnection,
            **settings.connect_args,
        }
        name = address.url.query.get("application_name", settings.application_name)
        options["server_settings"] = {"application_name": name, **options.get("server_settings", {})}
        try:
            connection = cast("FoldedConnection", await asyncpg.connect(address.dsn, **options))
            try:
                if settings.each_connection:
                    await connection.execute(settings.each_connection)
                if key is not None:
                    # Behind PgBouncer the backend changes from transaction to transaction.
                    connection.signer = Signer(key, asks=settings.behind_pgbouncer)
                    if not connection.signer.asks:
                        await connection.signer.learn(connection)
            except BaseException:
                connection.terminate()  # the pool never hears of it, so nobody else would close it
                raise
        except Exception as exc:
            # SQLAlchemy lets what a creator raises pass as it is: no handle_error event.
            if (ours := translate(exc)) is None:
                raise
            raise ours from exc
        return connection

    engine = create_async_engine(
        address.url,
        async_creator=connect if around is None else around(connect),
        poolclass=LendingPool,
        json_deserializer=_from_json,
        pool_size=settings.pool_size,
        max_overflow=settings.max_overflow,
        pool_timeout=settings.pool_timeout,
        pool_recycle=settings.pool_recycle,
        # What a statement was given is rows: contents, vectors, hashes of tokens.  It stays out of errors and of echo;
        # what is read does not: the logger sqlalchemy.engine, at DEBUG, writes whole rows.
        hide_parameters=True,
    )
    setattr(engine.dialect, BINARY_VECTORS, True)
    event.listen(engine.sync_engine, "connect", _register_vector)
    event.listen(engine.sync_engine, "checkout", _refuse_unfit)
    event.listen(engine.sync_engine, "reset", _end_where_in_use)
    event.listen(engine.sync_engine, "before_cursor_execute", _refuse_transaction_control)
    if settings.query_tags is not None:  # after the guard, which looks at the statement as it was given
        event.listen(engine.sync_engine, "before_cursor_execute", tagging(settings.query_tags), retval=True)
    event.listen(engine.sync_engine, "handle_error", _translate)
    return engine


# SQLAlchemy's own COMMIT and ROLLBACK do not pass as statements; its savepoints do.
_TRANSACTION_CONTROL = re.compile(
    r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/|;)*"
    r"(?P<verb>COMMIT|END|ABORT|BEGIN|START\s+TRANSACTION|PREPARE\s+TRANSACTION|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b))\b",
    re.IGNORECASE | re.DOTALL,
)


def _refuse_transaction_control(
    _connection: Connection,
    _cursor: object,
    statement: str,
    _parameters: object,
    _context: object,
    _many: bool,  # noqa: FBT001
) -> None:
    """Refuse to end a transaction behind the session's back.

    The tenant would be gone with it, so that every query finds nothing and says nothing; and a ROLLBACK would be
    reported as a success.
    """
    if found := _TRANSACTION_CONTROL.match(statement):
        verb = " ".join(found["verb"].upper().split())
        raise TenantError(
            f"{verb} as a statement ends the transaction behind the session's back, and the tenant with it: "
            "use session.commit(), session.rollback() or session.begin_nested()"
        )


_decoder = json.JSONDecoder()


def _from_json(text: str) -> object:
    """Read what Postgres wrote: no space around it, and most often an empty object; json.loads takes three times."""
    return {} if text == "{}" else _decoder.raw_decode(text)[0]


def _register_vector(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    run_async = cast("Callable[[Callable[[asyncpg.Connection], object]], None]", getattr(connection, "run_async"))  # noqa: B009
    run_async(_set_vector_codec)


async def _set_vector_codec(connection: asyncpg.Connection) -> None:
    """Teach a connection pgvector's binary format, in whichever schema the extension is."""
    schema = await connection.fetchval(
        "SELECT n.nspname FROM pg_catalog.pg_extension e "
        "JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    )
    if schema is None:
        return  # before the first migration
    await connection.set_type_codec(
        "vector",
        schema=schema,
        encoder=pgvector.Vector.to_binary,
        decoder=pgvector.Vector.from_binary,
        format="binary",
    )


def _refuse_unfit(connection: DBAPIConnection, _entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
    """Have the pool replace a connection that must not serve the next one."""
    cast("FoldedConnection", getattr(connection, "driver_connection")).disarm()  # noqa: B009
    if unfit(connection):
        raise DisconnectionError


def _end_where_in_use(connection: DBAPIConnection, _entry: ConnectionPoolEntry, _reset: PoolResetState) -> None:
    """End a connection that comes back while a task that outlived its block still uses it.

    In the pool it would be the next tenant's, and its transaction that task's.
    """
    if in_use(connection):
        cast("FoldedConnection", getattr(connection, "driver_connection")).terminate()  # noqa: B009


def _translate(context: ExceptionContext) -> None:
    """Raise our error in place of the driver's; SQLAlchemy chains the cause."""
    found = context.sqlalchemy_exception or context.original_exception
    if isinstance(found, (TimeoutError, asyncpg.InternalClientError)):
        # Silence of the server or of the network: whatever else is sent on this connection would wait as long.
        # Or asyncpg is in the middle of something that will not end.
        context.is_disconnect = True
    execution = context.execution_context
    parameters = None
    compiled = getattr(execution, "compiled_parameters", None)
    if compiled:
        parameters = cast("Mapping[str, object]", compiled[0]) if len(compiled) == 1 else None
    elif execution is None and isinstance(context.parameters, Mapping):
        parameters = cast("Mapping[str, object]", context.parameters)  # of a direct statement
    ours = translate(found, parameters)
    if isinstance(ours, SignatureLateError):
        # Its clock is not what it was when the connection was made: the next one looks again.
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
    if ours is not None:
        raise ours
