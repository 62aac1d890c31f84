"""What `postmaster.pid` says, believed only as far as the process table agrees."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from ibex_db_core.errors import EmbeddedPostgresError

_POLL_SECONDS = 0.005
_STATUS_LINE = 7  # of the pid file: starting, ready, standby or stopping

# Fast shutdown first: it rolls back, checkpoints and ends. Immediate shutdown is safe too, the next start replays WAL.
_WAYS_TO_END = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 15.0))


def is_ready(data: Path) -> bool:
    """Whether the server over this data folder lives and takes connections."""
    lines = _lines(data)
    return len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready" and pid(data) is not None


def pid(data: Path) -> int | None:
    """The live server over this data folder; None where the file names a dead, a zombie or somebody else's process."""
    try:
        number = int(_lines(data)[0])
    except (IndexError, ValueError):
        return None
    return number if number > 1 and _serves(number, data) else None


def end(data: Path) -> None:
    """Stop a server that lost its supervisor, and forget its pid file.

    Postgres refuses to start on a pid file that names any live process of the same user, so a stale one must go. Only
    for the holder of the server lock: nobody else may be starting one.
    """
    for way, patience_seconds in _WAYS_TO_END:
        deadline = time.monotonic() + patience_seconds
        number = pid(data)
        if number is None:
            break
        with suppress(ProcessLookupError):
            os.kill(number, way)
        while time.monotonic() < deadline and pid(data) == number:
            time.sleep(_POLL_SECONDS)
    if (number := pid(data)) is not None:
        raise EmbeddedPostgresError(
            f"an orphaned postgres (pid {number}) over {data} does not stop: kill it, or set IBEX_DATABASE_URL"
        )
    (data / "postmaster.pid").unlink(missing_ok=True)


def _lines(data: Path) -> list[str]:
    with suppress(OSError):
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    return []


def _serves(number: int, data: Path) -> bool:
    if sys.platform == "linux":
        process = Path("/proc", str(number))
        try:
            state = process.joinpath("stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            arguments = [os.fsdecode(word) for word in process.joinpath("cmdline").read_bytes().split(b"\0")]
        except (OSError, IndexError):
            return False
        return state not in "ZX" and Path(arguments[0]).name == "postgres" and str(data) in arguments
    answer = subprocess.run(  # noqa: S603
        ["/bin/ps", "-ww", "-o", "stat=,command=", "-p", str(number)], capture_output=True, text=True, check=False
    )
    return not answer.stdout.startswith("Z") and f"postgres -D {data} " in answer.stdout
