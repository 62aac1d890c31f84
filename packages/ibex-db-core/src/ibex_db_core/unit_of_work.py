"""A unit of work: one transaction that ends as its block ends, on the primary or on a replica, tried again or not."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, cast
from uuid import UUID

from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core.engines import Engines
from ibex_db_core.errors import (
    CommitUnknownError,
    ConfigurationError,
    ConnectionLostError,
    DatabaseError,
    DeadlockError,
    SerializationError,
    TenantError,
    TransientError,
)
from ibex_db_core.lending import commit, hang_up, lend, under_way
from ibex_db_core.replicas import Replicas
from ibex_db_core.tenant import ScopedSession, SyncScopedSession, is_dirty, watch_of
from ibex_db_core.translation import translated

if TYPE_CHECKING:
    from ibex_db_core.telemetry.unit import Run, Unit

__all__ = ["again", "reading", "transaction"]

R = TypeVar("R")

# Five in half a minute outlast a failover of a server that is watched, and not the patience of who waits for an answer.
_ATTEMPTS = 5
_SECONDS = 30.0

# For a task whose connection was ended to come to its end: a pass of the loop, most often.
_PATIENCE = (0.0, 0.0, 0.01, 0.1, 1.0)


def transaction(
    engines: Engines, session: ScopedSession, *, read_only: bool = False
) -> AbstractAsyncContextManager[ScopedSession]:
    """Give the session for one transaction: commit on success, rollback on an exception.

    Raises:
        UnsafeRoleError: the login could read past the policies.
        CommitUnknownError: the connection broke during COMMIT.
    """
    if watch_of(session) is None:
        return _Transacted(session, engines=engines)
    return _told(engines, session, read_only=read_only)


@asynccontextmanager
async def _told(engines: Engines, session: ScopedSession, *, read_only: bool) -> AsyncGenerator[ScopedSession]:
    await engines.ready()
    async with _watched(session, read_only=read_only) as opened:
        yield opened


@asynccontextmanager
async def reading(
    engines: Engines, replicas: Replicas, make: Callable[[AsyncEngine], ScopedSession], after: str | None
) -> AsyncGenerator[ScopedSession]:
    """Give a read-only transaction on a replica, or on the primary where none serves.

    Args:
        engines: with the primary's.
        replicas: that may serve.
        make: makes a read-only session on an engine.
        after: the position that a replica must have come to.
    """
    if engines.closed:
        raise ConfigurationError("this Database is closed: make a new one")
    replica = await replicas.choose(after)
    if replica is None:
        async with transaction(engines, make(engines.service), read_only=True) as session:
            yield session
        return
    try:
        async with _watched(make(replica.engine), read_only=True, replica=True) as session:
            yield session
    except (ConnectionLostError, CommitUnknownError) as exc:
        replica.failed(str(exc))  # the next one goes elsewhere; what this one had read is its caller's to repeat
        if isinstance(exc, CommitUnknownError) and isinstance(exc.__cause__, ConnectionLostError):
            raise exc.__cause__ from None  # nothing was written, so nothing is unknown
        raise


async def again(
    engines: Engines,
    org_id: UUID,
    begin: Callable[[UUID], AbstractAsyncContextManager[ScopedSession]],
    work: Callable[[ScopedSession], Awaitable[R]],
) -> R:
    """Run work in a transaction of an organization, from the start each time that a new attempt may help."""
    if engines.watch is None:
        return await _again(org_id, begin, work, None)
    with engines.watch.run(org_id).entered() as run:
        return await _again(org_id, begin, work, run)


async def _again(
    org_id: UUID,
    begin: Callable[[UUID], AbstractAsyncContextManager[ScopedSession]],
    work: Callable[[ScopedSession], Awaitable[R]],
    run: "Run | None",
) -> R:
    import stamina

    async for attempt in stamina.retry_context(on=_retry, attempts=_ATTEMPTS, timeout=_SECONDS):
        with attempt, run.attempt() if run is not None else nullcontext():
            async with begin(org_id) as session:
                return await work(session)
    raise AssertionError("stamina re-raises the last failure")  # pragma: no cover


def _retry(exc: Exception) -> bool | float:
    """Tell stamina whether to try again, and after how many seconds; True leaves that to it."""
    if isinstance(exc, (SerializationError, DeadlockError)):
        return random.uniform(0.0, 0.1)  # noqa: S311 - whoever won is done; apart is all that the next try must be
    return isinstance(exc, TransientError)


def _watched(
    session: ScopedSession, *, read_only: bool, replica: bool = False
) -> AbstractAsyncContextManager[ScopedSession]:
    watch = watch_of(session)
    if watch is None:
        return _Transacted(session)
    return _seen(session, watch.unit(session, read_only=read_only, replica=replica))


@asynccontextmanager
async def _seen(session: ScopedSession, unit: "Unit") -> AsyncGenerator[ScopedSession]:
    with unit:
        async with _Transacted(session, unit=unit) as opened:
            yield opened


class _Transacted(AbstractAsyncContextManager[ScopedSession]):
    """The transaction of a block; a class, for three generators around every search cost it a twentieth.

    Args:
        session: which serves this block and no other.
        engines: whose login is verified first.
        unit: what is told of it.
    """

    def __init__(self, session: ScopedSession, *, engines: Engines | None = None, unit: "Unit | None" = None) -> None:
        self._session = session
        self._sync = cast("SyncScopedSession", session.sync_session)
        self._engines = engines
        self._unit = unit
        self._entered = False

    async def __aenter__(self) -> ScopedSession:
        """Check a connection out, so that an exhausted pool or an absent server is told at the door.

        BEGIN goes with the first statement.
        """
        if self._entered:
            raise TenantError("this db.tenant() or db.platform() block was entered before: open another one")
        self._entered = True
        if self._engines is not None:
            await self._engines.ready()
        try:
            with translated():
                if self._unit is not None:
                    await self._unit.connect()
                elif not await lend(self._session):
                    await self._session.connection()
        except BaseException:
            await self._leave()
            raise
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or roll back."""
        try:
            if exc is None:
                await self._commit()
            else:
                await _undo(self._session, exc)
        finally:
            await self._leave()

    async def _commit(self) -> None:
        session, sync = self._session, self._sync
        try:
            if under_way(sync):
                raise DatabaseError(
                    "a statement of this session is still under way in another task: await that task inside the "
                    "block; nothing was committed"
                )
            if is_dirty(sync):
                with translated():
                    # Apart from COMMIT: a connection that breaks here has surely committed nothing.
                    await session.flush()
        except BaseException as exc:
            await _undo(session, exc)
            raise
        try:
            await commit(session)
        except ConnectionLostError as exc:
            raise CommitUnknownError(
                "the connection broke during COMMIT: the work may or may not have been done; "
                "look before doing it again",
                sqlstate=exc.sqlstate,
            ) from exc
        if self._unit is not None:
            self._unit.committed()

    async def _leave(self) -> None:
        if self._sync.in_transaction():
            await asyncio.shield(asyncio.create_task(_close(self._session)))  # the connection has to be given back
        else:
            self._sync.close()  # nothing is sent


async def _undo(session: ScopedSession, exc: BaseException) -> None:
    """Roll back; where that fails too, the block's own exception stays what it is, and says so.

    Who retries must see what the work said, not what became of its connection; and a
    cancelled task has to stay cancelled.  What the server was not told, it undoes when the
    connection ends, as close() sees to.
    """
    hang_up(cast("SyncScopedSession", session.sync_session))
    try:
        await session.rollback()
    except Exception as failed:  # noqa: BLE001 - whatever it is, it is not why the block ended
        exc.add_note(f"The rollback failed as well: {type(failed).__name__}: {failed}")


async def _close(session: ScopedSession) -> None:
    """Give the connection back, also where another task is in the middle of a step of the session's transaction.

    SQLAlchemy lets nobody close a session there.  That task's connection is ended, which wakes it and
    lets it leave; where it does not, for it waits for something else, the connection goes without it.
    """
    sync = cast("SyncScopedSession", session.sync_session)
    for seconds in _PATIENCE:
        try:
            await session.close()
        except IllegalStateChangeError:
            hang_up(sync)
            await asyncio.sleep(seconds)
        else:
            return
    if sync.held is not None:
        sync.held.invalidate()
