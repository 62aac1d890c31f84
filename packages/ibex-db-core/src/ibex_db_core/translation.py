"""From what the driver says to our errors: by SQLSTATE, then by the constraint's name.

DETAIL is hidden on tables with row-level security, so nothing here reads it;
the values of a conflict come from the statement's own parameters.
"""

import re
from collections.abc import Iterable, Mapping
from typing import cast

import asyncpg
from sqlalchemy import Column, Table, UniqueConstraint
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import (
    DBAPIError,
    IllegalStateChangeError,
    InvalidRequestError,
    PendingRollbackError,
    ResourceClosedError,
    StatementError,
    TimeoutError as PoolTimeoutError,
)
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.sql.elements import ClauseElement, TextClause
from sqlalchemy.sql.visitors import iterate

from ibex_db_core.base import Base
from ibex_db_core.errors import (
    UNSHOWN,
    AccessDeniedError,
    ConfigurationError,
    ConflictError,
    ConnectionLostError,
    DatabaseError,
    DeadlockError,
    ForeignKeyError,
    IbexError,
    LockTimeoutError,
    NotFoundError,
    PoolExhaustedError,
    RuleViolationError,
    SchemaChangedError,
    SerializationError,
    SignatureError,
    SignatureLateError,
    StatementTimeoutError,
    TenantError,
    size_of,
)

_Told = type[
    AccessDeniedError
    | ConflictError
    | DatabaseError
    | DeadlockError
    | LockTimeoutError
    | ForeignKeyError
    | RuleViolationError
    | SerializationError
    | SignatureError
    | SignatureLateError
    | StatementTimeoutError
    | ConnectionLostError
]

# A table, a column or a function.
_MISSING = (
    "where it is one of ibex-db's, the database is older than this service: run `ibex-db upgrade` before the services"
)
_BY_STATE: dict[str, tuple[_Told, str]] = {
    "23505": (ConflictError, "change the value, or update the row that has it"),
    "23503": (ForeignKeyError, "name a row that exists in this organization, or remove what still points here"),
    "23514": (RuleViolationError, "a CHECK rule refused the row"),
    "23502": (RuleViolationError, "a required column is missing"),
    "42501": (AccessDeniedError, "a row-level security policy, a trigger or a missing grant refused it"),
    "40001": (SerializationError, "run it again: db.run() does"),
    "40P01": (DeadlockError, "run it again: db.run() does"),
    "25006": (
        AccessDeniedError,
        "the transaction is read-only: open db.tenant(org_id) without read_only=True to write",
    ),
    "55P03": (LockTimeoutError, "another transaction holds the row: run it again, or raise lock_timeout"),
    "28000": (DatabaseError, "check the login of the URL, and pg_hba.conf"),
    "28P01": (DatabaseError, "check user and password of the URL"),
    "3D000": (DatabaseError, "name a database that exists, or create it"),
    "IB001": (
        SignatureError,
        "give the service the key that `ibex-db sign --status` names; where it has that, foreign SQL set the tenant",
    ),
    "IB002": (SignatureLateError, "run it again: db.run() does, on a connection that reads the server's clock anew"),
    "42P01": (DatabaseError, _MISSING),
    "42703": (DatabaseError, _MISSING),
    "42883": (DatabaseError, _MISSING),
    "53100": (DatabaseError, "the server's disk is full: free space there; nothing of this transaction was kept"),
    "58P01": (
        DatabaseError,
        "the server misses files of its own: if they were replaced, stop all that uses that server, and start again",
    ),
    "57014": (StatementTimeoutError, "narrow the statement, or raise statement_timeout"),
}
# 08xxx: the connection broke; 57P01..3: the server is going down or coming up; 25P03/25P04: the server
# ended a transaction that was idle, or ran, for too long; 53300: no free slot on the server.
_LOST = ("08", "57P", "25P03", "25P04", "53300")

# 28: the server does not know this user or password; 3D: no such database.
_REFUSED_LOGIN = ("28", "3D")

# 22: data exceptions, the server's and the driver's own, whose messages quote the value; it may be a content.
_QUOTES_VALUES = "22"
_QUOTED = re.compile(r"""(query argument \$\d+): .*|: ".*| ".*"(?= is )""", re.DOTALL)
# PROTOCOL_ERROR_CONSUME: asyncpg has read the server's last words (FATAL), and the end of the connection not yet.
_SAID_FAREWELL = "another operation (2) is in progress"

# How the driver says that what it has prepared or learned of types is no longer what the server has.
_OUTDATED = (
    AsyncAdapt_asyncpg_dbapi.InvalidCachedStatementError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)
_MISSED_TYPE = "cache lookup failed for type"

# SQLAlchemy's code for a connection that broke in a transaction, apart from a flush that failed.
_NO_CONNECTION = "8s2b"
_AT_ONCE = "isce"
_OVER = "Can't operate on closed transaction"

_SHOWN = 120

# An index of a partition carries its parent's name and the partition's number.
_PARTITION = re.compile(r"_p\d+(?=\"|$)")

# What is a shard's carries the shard's number, before which Citus cuts long names short; and of a worker's error only
# the message comes back.
_SHARD = re.compile(r"(?P<cut>_[0-9a-f]{8})?_\d{6,}(?=\"|$)")
_RULE = re.compile(r'constraint "([^"]+)"')
_OF_TABLE = re.compile(r'(?:on table|relation|for table) "([^"]+)"')


class _Translated:
    """Has nothing of its own, so that one serves every block; a generator for each would cost 3 us."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        """Raise our error in place of another's."""
        if isinstance(exc, Exception) and (ours := translate(exc)) is not None and ours is not exc:
            raise ours from exc


_translated = _Translated()


def translated() -> _Translated:
    """Raise our error for what the driver or SQLAlchemy raises in the block; what is neither's passes as it is."""
    return _translated


def translate(exc: BaseException, parameters: Mapping[str, object] | None = None) -> IbexError | None:
    """Return our error for a driver's or SQLAlchemy's; None where there is none to give.

    Args:
        exc: as caught.
        parameters: of the statement, by column; a conflict quotes them.
    """
    if isinstance(exc, IbexError):
        return exc
    if isinstance(exc, PoolTimeoutError):
        return PoolExhaustedError(
            "no connection came free within pool_timeout: enlarge pool_size, or hold transactions for less time "
            f"({exc})"
        )
    if isinstance(exc, StaleDataError):
        return NotFoundError("row of this UPDATE or DELETE", "(changed or deleted by another transaction)")
    if isinstance(exc, StatementError) and isinstance(exc.orig, IbexError):
        return exc.orig  # a bad parameter, or a lost connection that could not be made anew
    if isinstance(exc, DBAPIError):
        return _from_driver(_driver_of(exc), parameters, broken=exc.connection_invalidated)
    if isinstance(exc, asyncpg.InternalClientError):
        return _from_driver(exc, None)
    if isinstance(exc, asyncpg.ClientConfigurationError):
        return ConfigurationError(f"the database URL asks for what the driver cannot do: {exc}")
    if isinstance(exc, InvalidRequestError):
        return _from_state_of_session(exc)
    if isinstance(exc, TimeoutError) and not str(exc):  # asyncpg's, who has waited command_timeout or timeout
        return ConnectionLostError(
            "the database did not answer in time; what was not committed is gone; check that the server runs, and that "
            "the network does not drop idle connections"
        )
    if isinstance(exc, (OSError, TimeoutError)):
        return ConnectionLostError(
            f"no connection to the database: {str(exc) or type(exc).__name__}; "
            "check host and port of the URL, and that the server runs"
        )
    if isinstance(exc, (asyncpg.PostgresError, asyncpg.InterfaceError)):
        return _from_driver(exc, None)
    return None


def _driver_of(exc: DBAPIError) -> BaseException | None:
    """Return what the driver raised, from inside of what SQLAlchemy's dialect made of it."""
    adapted = exc.orig
    try:
        driver = cast("BaseException | None", getattr(adapted, "driver_exception", None))
    except ValueError:  # the dialect makes some of its errors, InvalidCachedStatementError for one, without
        driver = None
    return driver or getattr(adapted, "__cause__", None) or adapted


def _from_state_of_session(exc: InvalidRequestError) -> IbexError | None:
    """Tell what SQLAlchemy says of a session or connection that can do no more; None for any other misuse."""
    if "permanently closed" in str(exc):
        return TenantError("this session ended with its db.tenant() or db.platform() block: open another one")
    if isinstance(exc, PendingRollbackError):
        if exc.code == _NO_CONNECTION:
            return ConnectionLostError(
                "the connection of this transaction broke earlier, and that error was caught; what was not committed "
                "is gone: leave this db.tenant() or db.platform() block and do the work in another, as db.run() does"
            )
        return DatabaseError(
            "this transaction failed earlier, and that error was caught; it has been rolled back and can do no more: "
            "leave this db.tenant() or db.platform() block and open another one, or wrap what may fail in "
            "session.begin_nested()"
        )
    if isinstance(exc, (ResourceClosedError, IllegalStateChangeError)) or exc.code == _AT_ONCE or _OVER in str(exc):
        return DatabaseError(
            f"this session cannot be used as it is ({str(exc).splitlines()[0]}): its transaction has ended, or another "
            "task is using it; open a db.tenant() or db.platform() block for each transaction and for each task"
        )
    return None


def _from_inside(exc: asyncpg.InternalClientError) -> IbexError:
    """Tell what asyncpg says of its own state."""
    if _SAID_FAREWELL in str(exc):
        return ConnectionLostError("the connection broke (the server has ended it); what was not committed is gone")
    return DatabaseError(f"the driver lost track of the connection: {exc}; it is not used again")


def _from_driver(
    driver: BaseException | None, parameters: Mapping[str, object] | None, *, broken: bool = False
) -> IbexError:
    if isinstance(driver, _OUTDATED) or _MISSED_TYPE in str(driver):
        return SchemaChangedError(
            "the schema changed under a prepared statement, which was not run; its transaction is over: "
            "run it again: db.run() does",
            sqlstate=cast("str | None", getattr(driver, "sqlstate", None)),
        )
    if isinstance(driver, asyncpg.InternalClientError):
        return _from_inside(driver)
    state = cast("str | None", getattr(driver, "sqlstate", None))
    said = str(driver).splitlines()[0] if str(driver) else type(driver).__name__
    if state is None:
        if broken or ("connection" in said and ("closed" in said or "lost" in said)):
            return ConnectionLostError(f"the connection broke ({said}); what was not committed is gone")
        return DatabaseError(said)
    if state.startswith(_LOST):
        return ConnectionLostError(f"the connection broke ({said}); what was not committed is gone", sqlstate=state)
    if state.startswith(_REFUSED_LOGIN):
        return ConfigurationError(f"{said}: check user, password and database of the URL [{state}]")
    kind, way_out = _BY_STATE.get(state, (DatabaseError, "see the cause"))
    if state.startswith(_QUOTES_VALUES):
        said = _QUOTED.sub(r"\1", said)
    constraint = cast("str | None", getattr(driver, "constraint_name", None))
    table = cast("str | None", getattr(driver, "table_name", None))
    if constraint is None and state.startswith("23") and (found := _RULE.search(said)):
        constraint = found[1]
    if table is None and constraint is not None and (found := _OF_TABLE.search(said)):
        table = found[1]
    said = _SHARD.sub("", _PARTITION.sub("", said))
    values: dict[str, object] = {}
    if constraint is not None:
        constraint = _whole(_PARTITION.sub("", constraint))
        table = _SHARD.sub("", _PARTITION.sub("", table)) if table else _table_of(constraint)
        if kind is ConflictError and parameters:
            columns = _columns_of_unique_key(table, constraint)
            values = {name: parameters[name] for name in columns if name in parameters}
    shown = ", ".join(f"{name}={_short(name, value)}" for name, value in values.items() if name != "org_id")
    message = f"{said}{f' with {shown}' if shown else ''}; {way_out} [{state}]"
    return kind(message, constraint=constraint, table=table, values=values, sqlstate=state)


def _columns_of_unique_key(table_name: str | None, constraint: str) -> tuple[str, ...]:
    """Return what a unique key is made of, from the models: of any metadata, and of a service's own.

    Not cached: a model may be declared at any time, and a conflict costs a round trip anyway.
    """
    for mapper in Base.registry.mappers:
        table = cast("Table", mapper.local_table)  # pyright: ignore[reportUnknownMemberType]
        if table.name != table_name:
            continue
        if constraint in {table.primary_key.name, f"{table.name}_pkey"}:
            return tuple(column.name for column in table.primary_key)
        for index in table.indexes:
            if index.unique and index.name == constraint:
                return _names(table, index.expressions)
        for rule in table.constraints:
            if isinstance(rule, UniqueConstraint) and constraint == name_of(rule):
                return _names(table, rule.columns)
    return ()


def _whole(name: str) -> str:
    """Return a rule's name without the number of a shard; of one that was cut short, the whole from the models."""
    found = _SHARD.search(name)
    if found is None:
        return name
    start = name[: found.start()]
    return next((known for known, _ in _rules() if known.startswith(start)), start) if found["cut"] else start


def _table_of(constraint: str) -> str | None:
    """Return the table that has a rule of this name, by the models: a worker's message does not always say it."""
    return next((table for known, table in _rules() if known == constraint), None)


def _rules() -> Iterable[tuple[str, str]]:
    for mapper in Base.registry.mappers:
        table = cast("Table", mapper.local_table)  # pyright: ignore[reportUnknownMemberType]
        yield f"{table.name}_pkey", table.name
        for index in table.indexes:
            yield str(index.name), table.name
        for rule in table.constraints:
            if isinstance(rule, UniqueConstraint):
                yield name_of(rule), table.name
            elif isinstance(rule.name, str):
                yield str(rule.name), table.name


def name_of(rule: UniqueConstraint) -> str:
    """Return a constraint's name in the database; the naming convention fills it in where none was given."""
    if isinstance(rule.name, str):
        return str(rule.name)
    return "_".join((rule.table.name, *(column.name for column in rule.columns), "key"))


def _names(table: Table, expressions: Iterable[str | ClauseElement]) -> tuple[str, ...]:
    """Return the columns that an index is made of: those inside lower(...) too, and what a computed one is made of."""
    found: list[str] = []
    for expression in expressions:
        for element in iterate(expression) if not isinstance(expression, str) else ():
            if isinstance(element, TextClause):
                found += _mentioned(table, element.text)
            elif isinstance(element, Column):
                column = cast("Column[object]", element)
                found += [column.name] if column.computed is None else _mentioned(table, str(column.computed.sqltext))
    return tuple(found)


def _mentioned(table: Table, sql: str) -> list[str]:
    return [word for word in re.findall(r"\w+", sql) if word in table.columns]


def _short(name: str, value: object) -> str:
    """Show a value in a line of text: of a batch's thousand values, the first few; of what none shows, the size."""
    shown = size_of(value) if name in UNSHOWN else str(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
