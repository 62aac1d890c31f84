"""Advisory file locks: the kernel drops them however their holder dies, which no pid file can promise."""

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ibex_db_core.errors import EmbeddedPostgresError

_POLL_SECONDS = 0.005


def attempt(path: Path, *, shared: bool = False, create: bool = True) -> int | None:
    """Take the lock now or not at all.

    Returns: an open descriptor, the lock's life; None when somebody else holds it. A plain integer, because a file
    object would let go (with a ResourceWarning) as soon as its owner is garbage.
    """
    lock = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise
    return lock


def is_shared(path: Path) -> bool:
    """Tell whether others share the lock: it cannot be had alone, and can be shared.

    Where neither can be had, somebody holds it alone; where both can, nobody holds it.
    """
    for shared in (False, True):
        lock = attempt(path, shared=shared, create=False)
        if lock is not None:
            os.close(lock)
            return shared
    return False


def take(path: Path, deadline: float, *, shared: bool = False) -> int:
    """Take the lock before `deadline` (monotonic clock), or raise EmbeddedPostgresError."""
    while (lock := attempt(path, shared=shared)) is None:
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                f"{path} stayed locked by another process that starts or stops this server: look at postgres.log "
                f"beside it, or set IBEX_DATABASE_URL"
            )
        time.sleep(_POLL_SECONDS)
    return lock


@contextmanager
def held(path: Path, deadline: float) -> Generator[None]:
    """Hold the exclusive lock inside the block."""
    lock = take(path, deadline)
    try:
        yield
    finally:
        with suppress(OSError):
            os.close(lock)
