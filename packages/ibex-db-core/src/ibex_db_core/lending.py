"""A unit of work that holds its connection, and troubles SQLAlchemy with it only where SQLAlchemy is asked.

Session, SessionTransaction, Connection and RootTransaction around a unit of
work, each stepped through in a greenlet of its own, cost 0.3 ms where the
driver needs 0.1 for the same three round trips (decision 0050).  So the unit of
work takes a connection from the pool, arms it with the tenant, and lends it to
the session.  What repositories send directly (ibex_db_core.direct) goes to it
as it is.  The first thing that needs SQLAlchemy's own transaction, whatever it
is, begins that, and it takes the connection over with all that has happened on
it; from there on nothing differs from any other session.

Where anybody listens to the engine or to the session, and would miss what they
wait for, nothing is lent.
"""
# What is read here of SQLAlchemy's inside has no public name; tests/test_lending.py tells when it changes.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false

import time
from typing import Any, Literal, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection
from sqlalchemy.exc import TimeoutError  # noqa: A004 - what a pool raises
from sqlalchemy.orm import ClassManager
from sqlalchemy.orm.state import InstanceState
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.util.concurrency import greenlet_spawn
from sqlalchemy.util.queue import Empty

from ibex_db_core.connection import FoldedConnection
from ibex_db_core.fair_queue import FairQueue
from ibex_db_core.listeners import Events, SessionEvents
from ibex_db_core.tenant import ScopedSession, SyncScopedSession

__all__ = [
    "LendingPool",
    "commit",
    "hang_up",
    "in_use",
    "lend",
    "plain",
    "raise_as_sqlalchemy",
    "under_way",
    "unfit",
    "watched",
]


# A SQLAlchemy whose inside is another than we know is left to do everything itself.
_KNOWN = all(
    hasattr(kind, name)
    for kind, names in (
        (AsyncAdapt_asyncpg_connection, ("_call_and_discard", "_handle_exception", "_prepare", "_start_transaction")),
        (Connection, ("_handle_dbapi_exception",)),
        (InstanceState, ("_commit", "_instance_dict")),
        (ClassManager, ("_state_constructor", "STATE_ATTR")),
        (Engine.dispatch, ("_for_class",)),
    )
    for name in names
)


class LendingPool(AsyncAdaptedQueuePool):
    """The pool of every engine, which also gives a connection outside SQLAlchemy, and takes one for a given moment.

    Who waits for a connection gets one before anybody who asks later.
    """

    _queue_class = FairQueue[ConnectionPoolEntry]
    _chosen: ConnectionPoolEntry | None = None
    _offered: PoolProxiedConnection | None = None

    async def pick(self) -> ConnectionPoolEntry | None:
        """Return an idle connection, waiting for one where no more may be made; None where SQLAlchemy has to make it.

        Raises:
            sqlalchemy.exc.TimeoutError: none came back within pool_timeout.
        """
        if self._chosen is not None or self._offered is not None:
            return None
        if self.checkedin():
            return self._pool.get_nowait()
        if not -1 < self._max_overflow <= self._overflow:
            return None
        try:
            return await self._waiting.turn(self._timeout)
        except Empty:
            pass  # as SQLAlchemy has it: this is not why
        raise TimeoutError(
            f"all {self.size()} connections, and {self.overflow()} over, were in use for {self._timeout:g} s"
        )

    def lend(self, record: ConnectionPoolEntry) -> PoolProxiedConnection:
        """Check a picked connection out."""
        self._chosen = record
        try:
            return super().connect()
        finally:
            self._chosen = None

    def leave(self, record: ConnectionPoolEntry) -> None:
        """Give a picked connection to whom asks next, through SQLAlchemy, which connects it anew where it is stale."""
        self._chosen = record

    async def refuse(self, record: ConnectionPoolEntry) -> None:
        """Return a picked connection that nobody will use."""
        await greenlet_spawn(self._do_return_conn, record)

    def connect(self) -> PoolProxiedConnection:
        """Check a connection out: the one that a session holds already, where it asks for that."""
        if self._offered is not None:
            offered, self._offered = self._offered, None
            return offered
        return super().connect()

    def offer(self, lease: PoolProxiedConnection | None) -> None:
        """Have the next connect() return this one; None withdraws it."""
        self._offered = lease

    def _do_get(self) -> ConnectionPoolEntry:
        if self._chosen is not None:
            chosen, self._chosen = self._chosen, None
            return chosen
        return super()._do_get()

    @property
    def _waiting(self) -> FairQueue[ConnectionPoolEntry]:
        return cast("FairQueue[ConnectionPoolEntry]", self._pool)

    def _create_connection(self) -> ConnectionPoolEntry:
        """Make a record that its checkout connects: where that fails, it goes to whom waits, who tries in turn."""
        return _ConnectionRecord(self, connect=False)

    def _dec_overflow(self) -> Literal[True]:
        """Let one more be made: by whom waits, before anybody who asks later."""
        done = super()._dec_overflow()
        if self._waiting.wanted and self._inc_overflow():
            self._pool.put(self._create_connection(), block=False)
        return done

    def is_stale(self, record: ConnectionPoolEntry) -> bool:
        """Tell whether a checkout would replace it, as _ConnectionRecord.get_connection and the engine decide."""
        inside = cast("Any", record)
        if (
            record.dbapi_connection is None
            or self._invalidate_time > inside.starttime
            or inside._soft_invalidate_time > inside.starttime
            or (self._recycle > -1 and time.time() - inside.starttime > self._recycle)
        ):
            return True
        return unfit(record.dbapi_connection)


def in_use(adapted: Any) -> bool:
    """Tell whether a statement is under way, or waits for its turn, on a connection as SQLAlchemy holds it.

    A task that outlives its block goes on using the block's connection.  Given to
    the next tenant, the two would share a transaction, and so the rows.

    Args:
        adapted: SQLAlchemy's AsyncAdapt_asyncpg_connection around ours; what it waits by has no public name.
    """
    turn = adapted._execute_mutex
    waiting = getattr(turn, "_waiters", None) or ()
    return bool(turn.locked() or waiting or adapted.driver_connection.commanded)


def unfit(adapted: object) -> bool:
    """Tell whether a pooled connection must not serve anybody: closed, or left in a transaction, in use, in autocommit.

    All of it is known without asking the server, so this costs no round trip, as a ping would.
    """
    its = cast("Any", adapted)
    driver = cast("FoldedConnection", its.driver_connection)
    return driver.is_closed() or driver.transacting or its._transaction is not None or its.autocommit or in_use(its)


def hang_up(sync: SyncScopedSession) -> None:
    """End a connection on which another task's statement is under way, for it can be told nothing else."""
    if under_way(sync):
        cast("FoldedConnection", cast("PoolProxiedConnection", sync.held).driver_connection).terminate()


def under_way(sync: SyncScopedSession) -> bool:
    """Tell whether a statement of this session is under way in another task."""
    adapted = sync.held.dbapi_connection if sync.held is not None else None
    return adapted is not None and in_use(adapted)


# Of those that are ours, one refuses a caller's COMMIT, one adds the filter that direct statements have, and the others
# see to what is lent.
_STATEMENTS = Events("before_cursor_execute", "after_cursor_execute", "before_execute", "after_execute", ours=1)
_LOADS = SessionEvents("do_orm_execute", "loaded_as_persistent", ours=1)
_ENDS = SessionEvents(
    "before_commit", "after_commit", "after_rollback", "after_soft_rollback", "after_transaction_end", ours=1
)
_CONNECTIONS = Events("begin", "commit", "rollback", "engine_connect")
_BEGINNINGS = SessionEvents("after_begin", "after_transaction_create", "loaded_as_persistent", ours=2)


def watched(sync: SyncScopedSession) -> bool:
    """Tell whether anybody listens who would miss a statement that SQLAlchemy never saw.

    Asked for each statement, for a listener may come at any time.
    """
    return _STATEMENTS.heard(sync.bind) or _LOADS.heard(sync)


def _attended(sync: SyncScopedSession) -> bool:
    """Tell whether anybody listens who would miss a transaction that SQLAlchemy never saw, or its end."""
    return _ENDS.heard(sync)


def plain(sync: SyncScopedSession) -> bool:
    """Tell whether an engine and a session are as we make them: no echo, no options, nobody who waits for a BEGIN."""
    engine = cast("Engine", sync.bind)
    return _KNOWN and not (
        _CONNECTIONS.heard(engine)
        or _BEGINNINGS.heard(sync)
        or engine._should_log_info()
        or engine._execution_options
        or sync.execution_options
    )


async def lend(session: ScopedSession) -> bool:
    """Have a fresh session hold a connection that carries its tenant; False where SQLAlchemy must see to it, at once.

    Raises:
        sqlalchemy.exc.TimeoutError: none came back within pool_timeout.
    """
    sync = cast("SyncScopedSession", session.sync_session)
    pool = cast("Engine", sync.bind).pool
    if not isinstance(pool, LendingPool) or sync.settings is None:
        return False
    record = await pool.pick()
    if record is None:
        return False
    if cast("Engine", sync.bind).pool is not pool:  # disposed of meanwhile, and what SQLAlchemy asks next is its heir
        await pool.refuse(record)
        return False
    if not plain(sync) or _attended(sync) or pool.is_stale(record):
        pool.leave(record)
        return False
    lease = pool.lend(record)
    cast("FoldedConnection", lease.driver_connection).arm(sync.settings, sync.org_id)
    sync.lease = sync.held = lease
    return True


async def commit(session: ScopedSession) -> None:
    """Commit: by the driver alone where SQLAlchemy has nothing to do with the transaction."""
    sync = cast("SyncScopedSession", session.sync_session)
    lease = sync.lease
    if lease is None or _attended(sync):
        await session.commit()
        return
    adapted = cast("Any", lease.dbapi_connection)
    if adapted._transaction is not None:
        try:
            await adapted._call_and_discard(adapted._transaction.commit)
        except BaseException as exc:  # noqa: BLE001 - a cancellation, too, ends the connection
            await raise_as_sqlalchemy(sync, exc)
    sync.lease = None
    adapted.driver_connection.disarm()
    sync.over()
    await _give_back(lease)


async def _give_back(lease: PoolProxiedConnection) -> None:
    its = cast("Any", lease)._pool  # its own: the engine may have another by now
    if its._pool.full():
        await greenlet_spawn(lease.close)  # one too many is ended, for which SQLAlchemy waits
    else:
        lease.close()


async def raise_as_sqlalchemy(
    sync: SyncScopedSession, exc: BaseException, statement: str | None = None, parameters: object = None
) -> None:
    """Raise what SQLAlchemy raises for an error of the driver, and close what it closes."""
    await greenlet_spawn(_raise, sync, exc, statement, parameters)


def _raise(sync: SyncScopedSession, exc: BaseException, statement: str | None, parameters: object) -> None:
    connection = sync.connection()
    adapted = cast("Any", connection.connection.dbapi_connection)
    try:
        if isinstance(exc, Exception):
            adapted._handle_exception(exc)
        raise exc
    except BaseException as told:  # noqa: BLE001 - all of it is raised again
        dbapi = connection.dialect.loaded_dbapi
        if isinstance(told, (dbapi.InvalidCachedStatementError, dbapi.InternalServerError)):
            cast("Any", connection.dialect)._invalidate_schema_cache()
        said = statement if isinstance(told, dbapi.Error) else None
        connection._handle_dbapi_exception(told, said, cast("Any", parameters), None, None)
