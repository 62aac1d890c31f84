"""The detached parent of one postgres: stops it when the last client is gone, however that one went.

Run as a file with nothing but the standard library, so that it starts in milliseconds and needs no site-packages:

    python -I -S supervisor.py HOME

It inherits, open, the lock that says "this home has a server" and a pipe whose closing says "it has none". Clients
share the lock on HOME/clients.lock; the kernel hands it to us when the last one closes it or dies.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# A fast shutdown checkpoints; on a slow disk that takes a while, and an immediate one costs only WAL replay later.
_SHUTDOWN_SECONDS = 60

_PR_SET_PDEATHSIG = 1


def main(home: Path) -> None:
    """Detach, run the server that HOME/server.json describes, and clean up after it."""
    job: dict[str, Any] = json.loads((home / "server.json").read_text())
    if os.fork():  # the caller waits for this process alone; its child belongs to nobody and leaves no zombie behind
        os._exit(0)
    os.setsid()
    supervisor = os.getpid()
    postgres = subprocess.Popen(  # noqa: S603 - the caller's own arguments
        job["arguments"],
        stdin=subprocess.DEVNULL,
        cwd="/",
        env=job["environment"],
        user=job["user"],
        group=job["group"],
        extra_groups=job["groups"],
        preexec_fn=lambda: _die_with(supervisor),  # noqa: PLW1509 - there is one thread so far
    )
    with _guard(postgres.pid):
        stop = signal.SIGQUIT if job["remove"] else signal.SIGINT  # what is thrown away needs no checkpoint
        for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(asked, lambda _signal, _frame: postgres.send_signal(stop))
        clients = os.open(home / "clients.lock", os.O_RDWR | os.O_CREAT, 0o600)
        threading.Thread(target=_stop_after_clients, args=(clients, postgres, stop), daemon=True).start()
        postgres.wait()
    for folder in (job["socket_folder"], *job["remove"]):
        shutil.rmtree(folder, ignore_errors=True)


def _stop_after_clients(clients: int, postgres: "subprocess.Popen[bytes]", stop: signal.Signals) -> None:
    fcntl.flock(clients, fcntl.LOCK_EX)
    postgres.send_signal(stop)
    with suppress(subprocess.TimeoutExpired):
        postgres.wait(_SHUTDOWN_SECONDS)
        return
    postgres.send_signal(signal.SIGQUIT)


def _die_with(parent: int) -> None:
    """Ask Linux for a fast shutdown when the supervisor is killed with a signal that it cannot answer."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:  # killed before we could ask
            os._exit(1)


@contextmanager
def _guard(postgres: int, *, needed: bool = sys.platform != "linux") -> Generator[None]:
    """Elsewhere, leave that to a shell that waits for our end of a pipe: closed unsaid means killed."""
    if not needed:
        yield
        return
    read_end, write_end = os.pipe()
    script = 'read -r done || kill -INT "$0"'
    shell = subprocess.Popen(["/bin/sh", "-c", script, str(postgres)], stdin=read_end, cwd="/")  # noqa: S603
    os.close(read_end)
    yield
    os.write(write_end, b"done\n")
    os.close(write_end)
    shell.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
