"""Statements that go to the driver as they are: compiled once, run in the caller's own coroutine.

For the statements of repositories' hot verbs, which are made once and name the
organization themselves.  SQLAlchemy compiles them, converts their parameters
and makes entities of their rows by the same rules as ever; what is left out is
what it would find out anew each time, and the greenlets between it and the
driver (decision 0050).
"""
# As lending.py: what SQLAlchemy's dialect for asyncpg does has no public name; tests/test_lending.py tells.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Executable, inspect
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.util.concurrency import greenlet_spawn

from ibex_db_core.connection import FoldedConnection
from ibex_db_core.lending import plain, raise_as_sqlalchemy, watched
from ibex_db_core.listeners import Events
from ibex_db_core.loading import EntityLoader, loadable, processor, tuples
from ibex_db_core.tenant import ScopedSession, SyncScopedSession

__all__ = ["Direct", "fetch"]


_MADE = Events("load", "refresh")


class Direct:
    """One statement, compiled for one dialect.

    Attributes:
        sql: as the driver takes it.
        possible: its rows can be read here: its parameters are plain, its only entity comes first and is whole.
    """

    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        compiled = cast("SQLCompiler", cast("Any", statement).compile(dialect=dialect))
        self._dialect = dialect
        self.sql = str(compiled)
        names = compiled.positiontup or []
        kinds = {name: bound.type for bound, name in compiled.bind_names.items()}
        self._defaults = compiled.construct_params(_check=False)
        self._binds: Sequence[tuple[str, Callable[[Any], Any] | None]] = [
            (name, kinds[name].dialect_impl(dialect).bind_processor(dialect)) for name in names
        ]
        described = cast("Sequence[Mapping[str, Any]]", getattr(statement, "column_descriptions", ()))
        entities = [one for one in described if one["entity"] is not None and one["expr"] is one["entity"]]
        self._mapper: Mapper[Any] | None = inspect(entities[0]["entity"]).mapper if entities else None
        self._columns = cast("Sequence[Any]", compiled._result_columns)
        self._width = len(self._columns) - (len(described) - 1 if entities else len(self._columns))
        self._load: Callable[[Session, Sequence[Any]], list[tuple[Any, ...]]] | None = None
        self.possible = not (compiled.post_compile_params or compiled.escaped_bind_names) and self._readable(
            entities, described
        )

    def _readable(self, entities: Sequence[Mapping[str, Any]], described: Sequence[Mapping[str, Any]]) -> bool:
        if self._mapper is None:
            return True
        own = [column.name for column in self._columns[: self._width]]
        return (
            len(entities) == 1
            and described[0] is entities[0]
            and loadable(self._mapper)
            and EntityLoader.fits(self._mapper, own)
        )

    @property
    def unwatched(self) -> bool:
        """Nobody has asked to be told of its entities since it was made."""
        return self._mapper is None or not _MADE.heard(self._mapper.class_manager)

    def arguments(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Return parameters as the driver takes them."""
        found: list[Any] = []
        for name, process in self._binds:
            value = parameters[name] if name in parameters else self._defaults[name]
            found.append(value if process is None else process(value))
        return found

    def rows(self, sync: SyncScopedSession, records: Sequence[Any], attributes: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return what SQLAlchemy's ``.all()`` would: tuples of entity and values."""
        if self._load is None:
            self._load = self._learn([attribute.type.oid for attribute in attributes])
        return self._load(sync, records)

    def _learn(self, oids: Sequence[int]) -> Callable[[Session, Sequence[Any]], list[tuple[Any, ...]]]:
        # A text that was not told of its columns has none here: its values stay as they come.
        known = zip_longest(self._columns[: len(oids)], oids)
        processors = [None if column is None else processor(column.type, self._dialect, oid) for column, oid in known]
        if self._mapper is None:
            return tuples(processors)
        own = [column.name for column in self._columns[: self._width]]
        return EntityLoader(self._mapper, own, processors).load


# Statements are made once, one for each shape of filters; past this many, somebody makes them anew each time.
_KEPT = 1000

_compiled: "WeakKeyDictionary[Dialect, dict[Executable, Direct]]" = WeakKeyDictionary()


def _direct(statement: Executable, dialect: Dialect) -> Direct:
    if (known := _compiled.get(dialect)) is None:
        known = _compiled[dialect] = {}
    if (found := known.get(statement)) is None:
        if len(known) >= _KEPT:
            known.clear()
        found = known[statement] = Direct(statement, dialect)
    return found


async def fetch(
    session: ScopedSession, statement: Executable, parameters: Mapping[str, object]
) -> list[tuple[Any, ...]] | None:
    """Run a statement that is made once for all, and return its rows; None where SQLAlchemy has to run it.

    Args:
        session: its pending changes have been flushed.
        statement: kept for the life of the process, for it stays compiled.
        parameters: by name.

    Raises:
        IbexError: as any statement of the session.
    """
    sync = cast("SyncScopedSession", session.sync_session)
    if sync.settings is None or sync.watch is not None or watched(sync):
        return None
    lease = sync.lease
    if lease is None:
        if not (sync.in_transaction() and plain(sync)):
            return None
        connection = await _connection(sync)
        if not _sound(connection):
            return None
        lease = connection.connection
    adapted = cast("Any", lease.dbapi_connection)
    dialect = cast("Any", sync.bind).dialect
    direct = _direct(statement, dialect)
    if not (direct.possible and direct.unwatched):
        return None
    arguments = direct.arguments(parameters)
    try:
        async with adapted._execute_mutex:
            if adapted._transaction is None:
                await adapted._start_transaction()
            if adapted.driver_connection.armed:
                raise FoldedConnection.outside_a_transaction()
            prepared, attributes = await adapted._prepare(direct.sql, dialect._invalidate_schema_cache_asof)
            records = await prepared.fetch(*arguments)
    except BaseException as exc:
        await raise_as_sqlalchemy(sync, exc, direct.sql, parameters)
        raise
    return direct.rows(sync, records, attributes or ())


async def _connection(sync: SyncScopedSession) -> Connection:
    """Return the connection of SQLAlchemy's transaction, inside its savepoint: that is set when it is first needed."""
    inside = cast("Any", sync.get_nested_transaction() or sync.get_transaction())
    if inside is not None and sync.bind in inside._connections:
        return sync.connection()
    return await greenlet_spawn(sync.connection)


def _sound(connection: Connection) -> bool:
    """Tell whether a connection's transactions stand: what has failed SQLAlchemy says best itself."""
    return not cast("Any", connection)._has_events and all(
        transaction is None or transaction.is_active
        for transaction in (connection.get_transaction(), connection.get_nested_transaction())
    )
