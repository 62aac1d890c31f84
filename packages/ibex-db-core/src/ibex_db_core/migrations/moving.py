"""Moves a database between revisions: one transaction each, which lets go of its locks and tries again."""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import stamina
from alembic.runtime.migration import RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ibex_db_core.errors import (
    DeadlockError,
    DestructiveMigrationError,
    LockTimeoutError,
    MigrationBlockedError,
)
from ibex_db_core.migrations import losses as guard, runner
from ibex_db_core.migrations.plans import Patience
from ibex_db_core.migrations.waiting import Waiting, watched
from ibex_db_core.migrations.wheels import Revision

__all__ = ["each_lost", "losses", "move"]

_log = logging.getLogger("ibex_db.migrations")

_BLOCKED = (LockTimeoutError, DeadlockError)


async def move(
    engine: AsyncEngine,
    connection: AsyncConnection,
    revision: str,
    patience: Patience,
    *,
    down: bool,
    allow_destructive: bool,
) -> list[Revision]:
    """Take every step to a revision; return those that were applied, in order."""
    script = runner.history()
    before = await connection.run_sync(runner.applied)
    heads, steps = await connection.run_sync(lambda live: runner.pending(live, script, revision, down=down))
    if not allow_destructive and (lost := await connection.run_sync(_lost, script, steps, heads)):
        raise DestructiveMigrationError(lost)
    await connection.rollback()
    if not down:
        await connection.run_sync(runner.prepare)
    pid = int(await connection.scalar(text("SELECT pg_backend_pid()")) or 0)
    await connection.rollback()
    for step in steps:
        await _patiently(engine, connection, pid, script, step, patience=patience, allow_destructive=allow_destructive)
    after = await connection.run_sync(runner.applied)
    return [one for one in runner.revisions(after) if one.applied and one.id not in before]


async def _patiently(
    engine: AsyncEngine,
    connection: AsyncConnection,
    pid: int,
    script: ScriptDirectory,
    step: RevisionStep,
    *,
    patience: Patience,
    allow_destructive: bool,
) -> None:
    """Take one step, again while it gets no lock; between two tries it holds nothing, so nobody queues behind it."""
    name = step.revision.revision
    seen = Waiting()
    tries = stamina.retry_context(
        on=_BLOCKED, attempts=patience.attempts, timeout=None, wait_initial=0.2, wait_max=10.0, wait_jitter=1.0
    )
    try:
        async for attempt in tries:
            with attempt:
                async with watched(engine, pid, patience.lock_timeout or _UNHURRIED, seen):
                    try:
                        await connection.run_sync(_take, script, step, patience.lock_timeout, allow_destructive)
                    except _BLOCKED as exc:
                        told = f"{name} got no lock{_on(seen)}, try {attempt.num} of {patience.attempts}"
                        _log.warning("%s: %s", told, _by(seen) or exc)
                        raise
    except _BLOCKED as exc:
        raise _blocked(name, patience, seen) from exc


# With no limit to how long a revision waits, it is looked at after half of these seconds.
_UNHURRIED = 4.0


def _on(seen: Waiting) -> str:
    return f" on {seen.relation} ({seen.mode})" if seen.relation else ""


def _by(seen: Waiting) -> str:
    return "held by " + "; ".join(map(str, seen.holders)) if seen.holders else ""


def _blocked(name: str, patience: Patience, seen: Waiting) -> MigrationBlockedError:
    held = _by(seen) or "who holds it is unknown: no second connection could look"
    error = MigrationBlockedError(
        f"{name} got no lock{_on(seen)} within {patience.lock_timeout:g} s, {patience.attempts} times; {held}. "
        "Nothing of it was applied. End that transaction (pg_terminate_backend), wait for it, or give more "
        "--attempts or a longer --lock-timeout, for which everybody who comes later would stand"
    )
    error.revision, error.relation = name, seen.relation
    error.holders = tuple(map(str, seen.holders))
    return error


def _take(
    connection: Connection,
    script: ScriptDirectory,
    step: RevisionStep,
    lock_timeout: float,
    allow_destructive: bool,  # noqa: FBT001 - run_sync passes by position
) -> None:
    before = connection.scalar(text("SELECT set_config('lock_timeout', current_setting('lock_timeout'), false)"))
    _set(connection, f"{round(lock_timeout * 1000)}ms")
    try:
        with nullcontext() if allow_destructive else _guarded(connection, step):
            runner.apply(connection, script, step)
    finally:
        if not connection.invalidated:
            connection.rollback()
            _set(connection, str(before))


def _set(connection: Connection, lock_timeout: str) -> None:
    connection.execute(text("SELECT set_config('lock_timeout', :value, false)"), {"value": lock_timeout})
    connection.commit()


# -- the guard


def losses(connection: Connection, revision: str, down: bool) -> list[str]:  # noqa: FBT001 - run_sync's way
    """Return what the way to a revision destroys, in words."""
    script = runner.history()
    heads, steps = runner.pending(connection, script, revision, down=down)
    return _lost(connection, script, steps, heads)


def _lost(
    connection: Connection, script: ScriptDirectory, steps: Sequence[RevisionStep], heads: tuple[str, ...]
) -> list[str]:
    return [line for lines in each_lost(connection, script, steps, heads).values() for line in lines]


def each_lost(
    connection: Connection, script: ScriptDirectory, steps: Sequence[RevisionStep], heads: tuple[str, ...]
) -> dict[str, list[str]]:
    """Read all steps before the first is taken, for what is refused has changed nothing; return what each destroys."""
    if not heads:
        return {}  # a database with nothing in it
    sql = runner.statements(script, steps, heads)
    lost: dict[str, list[str]] = {}
    for step in steps:
        name = step.revision.revision
        found = guard.existing(connection, [loss for one in sql.get(name, ()) for loss in guard.read(one)])
        lines = guard.described(connection, name, found) + [f"{name}: {line}" for line in _declared(step)]
        if lines:
            lost[name] = lines
    return lost


def _declared(step: RevisionStep) -> Sequence[str]:
    """Return what a revision says itself that it destroys: ``destroys``, or ``downgrade_destroys``."""
    name = "destroys" if step.is_upgrade else "downgrade_destroys"
    return cast("Sequence[str]", getattr(step.revision.module, name, ()))


_RELATIONS = text("SELECT oid FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p', 'f', 'm')")


@contextmanager
def _guarded(connection: Connection, step: RevisionStep) -> Generator[None]:
    """Read each statement once more as it is sent: one that depends on the data is known only now."""
    there = set(connection.scalars(_RELATIONS))
    connection.rollback()
    asking = False

    def refuse(live: Connection, _cursor: object, statement: str, *_others: object) -> None:
        nonlocal asking
        lost = () if asking else tuple(guard.read(statement))
        if not lost:
            return
        asking = True
        try:
            mine = [loss for loss in guard.existing(live, lost) if _was_there(live, loss, there)]
            lines = guard.described(live, step.revision.revision, mine)
        finally:
            asking = False
        if lines:
            raise DestructiveMigrationError(lines)

    event.listen(connection, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", refuse)


def _was_there(connection: Connection, loss: guard.Loss, there: set[int]) -> bool:
    if loss.table is None or loss.what in {"schema", "cascade"}:
        return True
    return connection.scalar(text("SELECT to_regclass(:name)::oid"), {"name": loss.table}) in there
