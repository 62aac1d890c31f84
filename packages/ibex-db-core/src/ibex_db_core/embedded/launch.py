"""One cold start, by the holder of the server lock: find, check, make, serve."""

import hashlib
import os
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ibex_db_core.embedded import binaries, cluster, postmaster
from ibex_db_core.embedded.account import Account, environment, temporary_folder
from ibex_db_core.embedded.record import ServerRecord
from ibex_db_core.errors import EmbeddedPostgresError

LOG_FILE = "postgres.log"

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_POLL_SECONDS = 0.005
_RETRY_SECONDS = 0.05
_LONGEST_LOG = 8 * 1024 * 1024  # bytes; one older file of this size is kept

# A backend outlives a killed postmaster until it next looks up from its query.
_STILL_IN_USE = "pre-existing shared memory block"
_PORT_TAKEN = "could not create any TCP/IP sockets"


@dataclass(frozen=True)
class Launch:
    """What a caller asked of the server over `home`."""

    home: Path
    durable: bool = True
    port: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    throwaway: bool = False

    def run(self, server_lock: int, deadline: float) -> ServerRecord:
        """Start the server and its supervisor, which inherits the lock; returns when connections are taken."""
        record = self._prepare()
        while True:
            record.save(self.home)
            complaint = self._serve(record, server_lock, deadline)
            if complaint is None:
                return record
            again = _STILL_IN_USE in complaint or (_PORT_TAKEN in complaint and self.port is None)
            if not again or time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"Postgres did not start over {record.data}: {complaint.strip()[-2000:] or 'no word in its log'}. "
                    f"The whole log is {self.home / LOG_FILE}; IBEX_DATABASE_URL names another server"
                )
            time.sleep(_RETRY_SECONDS)
            record = self._addressed(replace(record, port=0), Account.owning(Path(record.data)))

    def _prepare(self) -> ServerRecord:
        binaries.check_processor()
        installation = binaries.find()
        major = installation.major()
        account = Account.owning(cluster.folder(self.home, major))
        installation = installation.readable_by(account)
        data = cluster.place(self.home, major, account)
        postmaster.end(data)
        if not (data / "PG_VERSION").exists():
            cluster.create(data, self.home, installation, major, account, durable=self.durable)
        served = cluster.settings(self.settings, durable=self.durable)
        options = [word for name, value in served.items() for word in ("-c", f"{name}={value}")]
        last = ServerRecord.load(self.home)
        away = [str(data.parent)] if data.parent != self.home else []
        record = ServerRecord(
            arguments=[str(installation.program("postgres")), "-D", str(data), *options],
            environment=environment(),
            user=account.user,
            group=account.group,
            groups=account.groups,
            data=str(data),
            major=major,
            port=last.port if last else 0,  # addresses that clients hold stay good across a crash, where possible
            socket_folder="",
            tcp=bool(served["listen_addresses"]),
            durable=self.durable,
            remove=[*away, str(self.home)] if self.throwaway else [],
        )
        return self._addressed(record, account)

    def _addressed(self, record: ServerRecord, account: Account) -> ServerRecord:
        port = self.port or _free_port(record.port)
        folder = str(_socket_folder(self.home, account))
        options = record.arguments[: record.arguments.index("-k")] if "-k" in record.arguments else record.arguments
        arguments = [*options, "-k", folder, "-p", str(port)]
        return replace(record, arguments=arguments, port=port, socket_folder=folder)

    def _serve(self, record: ServerRecord, server_lock: int, deadline: float) -> str | None:
        """Returns: None when the server is ready, else what it wrote to the log."""
        path = self.home / LOG_FILE
        with suppress(FileNotFoundError):
            if path.stat().st_size > _LONGEST_LOG:
                path.replace(path.with_suffix(".log.1"))
        alive, supervisors_end = os.pipe()
        log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            begin = os.fstat(log).st_size
            try:
                subprocess.run(  # noqa: S603 - our own file, by this Python
                    [sys.executable, "-I", "-S", _SUPERVISOR, self.home],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    check=False,
                    pass_fds=(supervisors_end, server_lock),
                )
            finally:
                os.close(supervisors_end)
            data = Path(record.data)
            while not select.select([alive], [], [], _POLL_SECONDS)[0]:
                if postmaster.is_ready(data):
                    return None
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"Postgres over {data} is still starting, perhaps recovering from a crash: see {path}, and try "
                        f"again later"
                    )
            return os.pread(log, _LONGEST_LOG, begin).decode(errors="replace")
        finally:
            os.close(log)
            os.close(alive)


def _socket_folder(home: Path, account: Account) -> Path:
    """An empty 0700 folder with a short path, the same for each start over this home unless a stranger sits there."""
    parent = temporary_folder(account)
    name = hashlib.sha256(f"{account.uid}:{home}".encode()).hexdigest()[:12]
    folder = parent / f"ibex-db-{name}"
    with suppress(FileNotFoundError):
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid in {account.uid, os.geteuid()}:
            shutil.rmtree(folder)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        folder = Path(tempfile.mkdtemp(prefix="ibex-db-", dir=parent))
    account.own(folder)
    return folder


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise EmbeddedPostgresError("no TCP port is free on 127.0.0.1: set IBEX_DATABASE_URL")
