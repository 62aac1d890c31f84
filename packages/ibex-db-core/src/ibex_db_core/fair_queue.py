"""Idle connections, and who waits for one: first come, first served.

SQLAlchemy's pool keeps both in an asyncio.Queue, which wakes who waits longest
and lets anybody who asks meanwhile take what woke them.  A task that goes
straight on with its next unit of work always asks meanwhile: twelve tasks over
four connections were four that worked, and eight that got PoolExhaustedError
after pool_timeout.  So here what comes back goes to whom it is owed, and is
never seen by anybody else.
"""

import asyncio
from collections import deque
from typing import TypeVar

from sqlalchemy.util import await_only
from sqlalchemy.util.queue import Empty, Full, QueueCommon

__all__ = ["FairQueue"]

_T = TypeVar("_T")


class FairQueue(QueueCommon[_T]):
    """What SQLAlchemy's QueuePool asks of a queue, on one event loop; nothing lies in it while anybody waits.

    Args:
        maxsize: how many items may lie in it; 0: any number.
        use_lifo: give the item that came last, in place of the one that has lain longest.
    """

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:  # noqa: FBT001, FBT002 - SQLAlchemy's signature
        self.maxsize = maxsize
        self.use_lifo = use_lifo
        self._idle: deque[_T] = deque()
        self._waiting: deque[asyncio.Future[_T]] = deque()

    def empty(self) -> bool:
        """Tell whether nothing lies in it."""
        return not self._idle

    def full(self) -> bool:
        """Tell whether no more may lie in it."""
        return 0 < self.maxsize <= len(self._idle)

    @property
    def wanted(self) -> bool:
        """Whether anybody waits."""
        return any(not turn.done() for turn in self._waiting)

    def qsize(self) -> int:
        """Return how many items lie in it; one on its way to somebody who waited does not."""
        return len(self._idle)

    def put_nowait(self, item: _T) -> None:
        """Give an item to whom has waited longest, or keep it.

        Raises:
            Full: nobody waits, and no more may lie in it.
        """
        if self._hand_over(item):
            return
        if self.full():
            raise Full
        self._idle.append(item)

    def put(self, item: _T, block: bool = True, timeout: float | None = None) -> None:  # noqa: ARG002, FBT001, FBT002 - as above
        """Do as put_nowait() does: a pool never waits for room."""
        self.put_nowait(item)

    def get_nowait(self) -> _T:
        """Return an item.

        Raises:
            Empty: none lies there.
        """
        if not self._idle:
            raise Empty
        return self._idle.pop() if self.use_lifo else self._idle.popleft()

    def get(self, block: bool = True, timeout: float | None = None) -> _T:  # noqa: FBT001, FBT002 - as above
        """Return an item, after everybody who asked before.

        Args:
            block: wait for one, in a greenlet of SQLAlchemy's.
            timeout: seconds; None: for ever.

        Raises:
            Empty: none lay there, or none came in time.
        """
        if self._idle or not block:
            return self.get_nowait()
        return await_only(self.turn(timeout))

    async def turn(self, timeout: float | None) -> _T:
        """Return an item when it is one's turn.

        Raises:
            Empty: none came in time.
        """
        mine: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            async with asyncio.timeout(timeout):
                return await mine
        except TimeoutError:
            if not _was_given(mine):
                raise Empty from None
            return mine.result()  # it came in the moment in which time was up
        except asyncio.CancelledError:
            if _was_given(mine):
                self._keep(mine.result())
            raise

    def _hand_over(self, item: _T) -> bool:
        """Give an item to whom has waited longest; False where nobody waits."""
        while self._waiting:
            first = self._waiting.popleft()
            loop = first.get_loop()
            if first.done() or loop.is_closed():
                continue
            if loop is _running_loop():
                first.set_result(item)
            else:  # the garbage collector gives a connection back in whatever thread it runs
                loop.call_soon_threadsafe(self._give, first, item)
            return True
        return False

    def _give(self, turn: "asyncio.Future[_T]", item: _T) -> None:
        if turn.done():
            self._keep(item)
        else:
            turn.set_result(item)

    def _keep(self, item: _T) -> None:
        """Pass an item on that was given in vain, or keep it: one too many goes when the next comes back."""
        if not self._hand_over(item):
            self._idle.append(item)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _was_given(turn: "asyncio.Future[_T]") -> bool:
    return turn.done() and not turn.cancelled()
