"""Turns: transactions of one process that count the same memories do so one after the other.

Postgres would let them wait for each other's rows as well.  But who waits
there holds a snapshot, for which every version of the rows has to be kept; the
rows' page fills up, the next version goes to another page, and is no HOT update:
it enters every index, the vector index first.  Sixteen tasks that counted the
same ten memories had one update in two leave its page, and did a quarter of
what they do apart.  Who waits here holds no snapshot, and mostly no connection.

A turn is a courtesy and guards nothing: rows are locked in Postgres all the
same, and whoever has waited for long enough goes there.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from uuid import UUID
from weakref import WeakKeyDictionary, WeakValueDictionary

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ibex_db_core.tenant import SyncScopedSession

# Longer than a queue of a hundred takes; short beside the lock_timeout that begins after it.
_PATIENCE_SECONDS = 1.0

_MINE = "ibex_turn"

Row = tuple[int, int]
"""An organization and a memory of it, their UUIDs as numbers: those have a hash of their own, not one in Python."""


@dataclass(eq=False)
class _Turn:
    """One session's, from when it asks to count until its transaction is over."""

    over: "asyncio.Future[None]"
    lines: "WeakValueDictionary[Row, _Turn]"
    rows: set[Row] = field(default_factory=set[Row])


# The last in line for each row.  Only its session holds a turn: one that is dropped without an end drops its turn.
_Lines = WeakValueDictionary[Row, _Turn]
_by_engine: "WeakKeyDictionary[object, _Lines]" = WeakKeyDictionary()


async def take(session: AsyncSession, org_id: UUID, idents: Iterable[UUID]) -> None:
    """Wait for those who asked to count one of these memories before, but not for long; whoever asks next waits too.

    Everybody waits for earlier ones only, and a session that has a turn already
    does not wait at all, so nobody waits in a circle.  A session that is not a
    Database's own waits in Postgres alone: nothing would tell of its end.
    """
    sync = session.sync_session
    if not isinstance(sync, SyncScopedSession):
        return
    loop = asyncio.get_running_loop()
    lines = _by_engine.setdefault(session.get_bind(), WeakValueDictionary())
    org = org_id.int
    rows = {(org, ident.int) for ident in idents}
    # Of another loop, as of another process: Postgres keeps those apart.
    before = {turn.over for row in rows if (turn := lines.get(row)) is not None and turn.over.get_loop() is loop}
    mine = cast("_Turn | None", session.info.get(_MINE))
    waits = mine is None
    if mine is None:
        mine = session.info[_MINE] = _Turn(loop.create_future(), lines)
        sync.when_over += (partial(_let_next, sync),)
    mine.rows |= rows
    lines.update(dict.fromkeys(rows, mine))
    if waits and before:
        try:
            await asyncio.wait(before, timeout=_PATIENCE_SECONDS)
        except asyncio.CancelledError:
            if not session.in_transaction():  # or its end would tell
                sync.over()
            raise


def _let_next(session: Session) -> None:
    mine = cast("_Turn | None", session.info[_MINE])
    if mine is None:
        return
    session.info[_MINE] = None
    for row in mine.rows:
        if mine.lines.get(row) is mine:
            del mine.lines[row]
    if not mine.over.done():
        mine.over.set_result(None)
