"""`EmbeddedPostgres`: the client's side."""

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from ibex_db_core.embedded import binaries, cluster, locks, postmaster
from ibex_db_core.embedded.account import Account, temporary_folder
from ibex_db_core.embedded.launch import Launch
from ibex_db_core.embedded.record import ServerRecord
from ibex_db_core.errors import EmbeddedPostgresError

# Recovery after a crash may replay a lot of WAL; past this a person should look.
_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
# The supervisor grants a shutdown with its checkpoint a minute, and then ends the server without one.
_SHUTDOWN_SECONDS = 75.0
_LAST_CLIENT_SECONDS = 1.0
_POLL_SECONDS = 0.005


class EmbeddedPostgres:
    """A Postgres with pgvector that lives while any process uses it, and never longer.

    Every process that starts the same home shares one server. Each holds a file lock; when the last lets go, by
    `stop()` or by dying of anything, kill -9 included, a detached supervisor stops the server.

    Run as root, the server becomes the user `ibex-db` if there is one, else `nobody`. No folder that was there before
    has its mode changed: where `home` lies under a folder that only root may enter (as in /root), the data go to a
    folder of their own under /var/lib/ibex-db, /var/tmp/ibex-db or /tmp/ibex-db, and `home` holds a link to them.

    Args:
        home: Where data, log and locks live. By default $IBEX_HOME, else $XDG_DATA_HOME/ibex-db, else
            ~/.local/share/ibex-db. The data are in `pgdata-<major>` inside.
        durable: False turns fsync off: faster, and a power cut may lose everything.
        port: For TCP on 127.0.0.1. By default the last one if still free, else any free one.
        settings: postgresql.conf settings, on top of ours. They count for the process that starts the server; those
            who come later share it as it is.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        durable: bool = True,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._home = Path(home).expanduser().resolve() if home is not None else None
        self._durable = durable
        self._port = port
        self._settings = dict(settings or {})
        self._throwaway = False
        self._client: int | None = None
        self._owner = 0
        self._record: ServerRecord | None = None

    @classmethod
    def throwaway(cls) -> Self:
        """A server for tests: fsync off, in a temporary home that is gone after `stop()` or with this process."""
        server = cls(durable=False)
        server._throwaway = True
        return server

    def start(self) -> Self:
        """Make sure that the server takes connections, and keep it for this process until `stop()`.

        Blocking, and safe to repeat: on a running server it returns at once, on a crashed one it starts it again.

        Raises:
            EmbeddedPostgresError: It cannot run here, or this home is served with other promises than asked for.
        """
        held_before = self._client is not None
        try:
            self._start(time.monotonic() + _START_SECONDS)
        except OSError as error:
            self._undo(held_before=held_before)
            raise EmbeddedPostgresError(
                f"the embedded Postgres cannot use {self._home or 'its home'}: {error}. Pass a home= of your own, or "
                f"set IBEX_DATABASE_URL"
            ) from error
        except BaseException:
            self._undo(held_before=held_before)
            raise
        return self

    def stop(self) -> None:
        """Let go of the server; the last to do so stops it. A throwaway one is gone when this returns."""
        if self._client is None:
            return
        with suppress(OSError):
            os.close(self._client)  # never LOCK_UN: a forked child may still count on its copy
        self._client = None
        self._record = None
        if self._throwaway and self._home is not None and self._owner == os.getpid():
            _wait_until_removed(self._home)
            self._home = None

    def stop_and_wait(self) -> bool:
        """Let go of the server, and wait for its end.

        Returns: False where it runs on, because another process uses it.
        """
        record, home = self._record, self._home
        self.stop()
        if record is None or home is None:
            return True
        began = time.monotonic()
        while time.monotonic() - began < _SHUTDOWN_SECONDS:
            with suppress(FileNotFoundError):
                lock = locks.attempt(home / "server.lock", create=False)
                if lock is None:
                    # The supervisor takes the clients' lock alone before it stops Postgres. Asked for a while: two who
                    # ask this at once share it for a moment.
                    if time.monotonic() - began > _LAST_CLIENT_SECONDS and locks.is_shared(home / "clients.lock"):
                        return False
                    time.sleep(_POLL_SECONDS)
                    continue
                os.close(lock)
            return True
        return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def url(
        self, database: str = "postgres", *, user: str = "postgres", password: str | None = None, tcp: bool = False
    ) -> str:
        """The address of a database, over the unix socket or, on demand, TCP on 127.0.0.1.

        The socket lies in a folder that only this user can enter, and asks for no password. TCP asks for one
        (SCRAM); the superuser's own is filled in where `password` is None.
        """
        record = self._running()
        if tcp and not record.tcp:
            raise EmbeddedPostgresError(
                "this server was started with listen_addresses = '': leave that setting out to reach it over TCP"
            )
        if tcp and password is None and user == "postgres":
            password = self._superuser_password()
        who = quote(user, safe="") + (f":{quote(password, safe='')}" if password is not None else "")
        name = quote(database, safe="")
        if tcp:
            return f"postgresql://{who}@127.0.0.1:{record.port}/{name}"
        return f"postgresql://{who}@/{name}?host={quote(record.socket_folder)}&port={record.port}"

    def is_running(self) -> bool:
        """Whether the server lives: False before `start()`, after `stop()`, and where it was killed."""
        return self._record is not None and postmaster.pid(Path(self._record.data)) is not None

    @property
    def home(self) -> Path:
        """Where data, log and locks live; known once started."""
        self._running()
        return self._home or Path()

    @property
    def server_version(self) -> int:
        """The major version: 18. Of the running server, or else of the installed binaries."""
        return self._record.major if self._record else binaries.find().major()

    def _start(self, deadline: float) -> None:
        home = self._home = self._home or (self._temporary_home() if self._throwaway else _default_home())
        _make_home(home)
        with locks.held(home / "start.lock", deadline):
            if self._client is None:
                # Waits while the supervisor, who takes this lock when nobody holds it, is shutting the server down.
                self._client = locks.take(home / "clients.lock", deadline, shared=True)
                self._owner = os.getpid()
            self._record = self._launch_or_join(home, deadline)

    def _launch_or_join(self, home: Path, deadline: float) -> ServerRecord:
        while time.monotonic() < deadline:
            server_lock = locks.attempt(home / "server.lock")
            if server_lock is not None:
                launch = Launch(home, self._durable, self._port, self._settings, self._throwaway)
                try:
                    return launch.run(server_lock, deadline)
                finally:
                    os.close(server_lock)
            record = ServerRecord.load(home)
            if record is not None and postmaster.is_ready(Path(record.data)):
                self._check_promises(home, record)
                return record
            time.sleep(_POLL_SECONDS)  # it is stopping, or was killed and its supervisor is about to notice
        raise EmbeddedPostgresError(
            f"the server over {home} neither answers nor ends: see postgres.log there, or set IBEX_DATABASE_URL"
        )

    def _check_promises(self, home: Path, record: ServerRecord) -> None:
        if self._durable and not record.durable:
            raise EmbeddedPostgresError(
                f"{home} is being served with durable=False, so nothing written to it is safe: stop its other clients "
                f"first, or pass another home="
            )
        if self._port not in {None, record.port}:
            raise EmbeddedPostgresError(
                f"{home} is being served on port {record.port}, not {self._port}: leave port= out to share that "
                f"server, or stop its other clients first"
            )

    def _undo(self, *, held_before: bool) -> None:
        if not held_before:
            self.stop()

    def _running(self) -> ServerRecord:
        if self._record is None:
            raise EmbeddedPostgresError("this EmbeddedPostgres is not started: call start(), or enter it with `with`")
        return self._record

    def _superuser_password(self) -> str:
        path = (self._home or Path()) / cluster.PASSWORD_FILE
        try:
            return path.read_text()
        except OSError as error:
            raise EmbeddedPostgresError(
                f"{path} is gone, and with it the password of postgres: pass password=, "
                f"after ALTER ROLE over the socket"
            ) from error

    @staticmethod
    def _temporary_home() -> Path:
        folder = temporary_folder(Account.owning(Path("/nonexistent")))
        home = Path(tempfile.mkdtemp(prefix="ibex-db-throwaway-", dir=folder))
        _open_to_passage(home)
        return home


def _default_home() -> Path:
    if home := os.environ.get("IBEX_HOME"):
        return Path(home).expanduser().resolve()
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # as the XDG specification wants it
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError as error:
            raise EmbeddedPostgresError("this user has no home directory: set IBEX_HOME, or pass home=") from error
    return (data / "ibex-db").resolve()


def _make_home(home: Path) -> None:
    """Private to its user; root's can be walked through (not listed) by the user that root's server becomes."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
        _open_to_passage(home)


def _open_to_passage(fresh: Path) -> None:
    if os.geteuid() == 0:
        fresh.chmod(0o711)


def _wait_until_removed(home: Path) -> None:
    """Wait for the supervisor to remove the home; do it in its place if it was killed."""
    deadline = time.monotonic() + _STOP_SECONDS
    while home.exists() and time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            lock = locks.attempt(home / "server.lock", create=False)
            if lock is not None:
                record = ServerRecord.load(home)
                if record is not None:
                    postmaster.end(Path(record.data))
                for folder in (*(record.remove if record else ()), str(home)):
                    shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
        time.sleep(_POLL_SECONDS)
