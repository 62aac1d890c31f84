"""Who runs on which processor: where a backend happens to wake up decided up to a half of what a small query took.

Timed by themselves, client, peers and server share one processor, so that a time is the work of both and nothing else.
Left to the kernel, one contestant's backend sat on the client's processor for a whole measure and the next one's
beside it: a `get` of 0.40 ms under the one login took 0.64 under the other, and 1.04 times as long where nothing
moves. On processors apart the server's falls asleep while a client computes, and waking it is charged to whoever
computes longest.

The server's I/O workers stay where they like: they stand for a disk, which takes no processor from who waits for it.
"""

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_IO_WORKER = "io worker"


class Placement:
    """The processors that this process may use; where the system cannot tell, nothing is moved."""

    def __init__(self, server: int) -> None:
        """Take the server's main process; its backends are its children."""
        self._server = server
        self._all = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def __str__(self) -> str:
        """Say where everybody is while times are taken."""
        return f"one of {len(self._all)}, shared by clients and backends" if self._all else "as the system likes"

    @contextmanager
    def crowded(self) -> Generator[None]:
        """Let a table be filled and indexed on every processor, within a measure that is timed on one."""
        self.on_any()
        try:
            yield
        finally:
            self.on_one()

    def on_one(self) -> None:
        """Put this process, its children and the server's backends on one processor.

        Raises:
            OSError: the system does not let us, so that this run's times would not be what they are said to be.
        """
        self._bind(self._all[:1])

    def on_any(self) -> None:
        """Let the kernel choose, as it does for a service under load."""
        self._bind(self._all)

    def _bind(self, processors: Iterable[int]) -> None:
        if not (chosen := set(processors)):
            return
        if not Path("/proc/thread-self/children").exists():
            raise OSError("this kernel does not tell a process's children (CONFIG_PROC_CHILDREN)")
        bound: set[int] = set()
        # Until nobody is new: who was born while a parent was being moved was born where that had been.
        while fresh := {*_family(os.getpid()), *_family(self._server)} - bound:
            for process in fresh:
                for thread in [] if _title(process).endswith(_IO_WORKER) else _threads(process):
                    with suppress(ProcessLookupError):  # it has ended meanwhile
                        os.sched_setaffinity(thread, chosen)
            bound |= fresh


def _family(process: int) -> Iterator[int]:
    """Yield a process and all that come of it."""
    yield process
    for thread in _threads(process):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in Path("/proc", str(process), "task", str(thread), "children").read_text().split():
                yield from _family(int(child))


def _title(process: int) -> str:
    """Return what a process calls itself, without a number at its end."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path("/proc", str(process), "cmdline").read_text().strip(" \0").rstrip(" 0123456789")
    return ""


def _threads(process: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(entry.name) for entry in Path("/proc", str(process), "task").iterdir()]
    return []
