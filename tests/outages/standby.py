"""A standby of an embedded server, made as an operator makes one: pg_basebackup, and a walreceiver of its own."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ibex_db_core.embedded import EmbeddedPostgres, binaries
from ibex_db_core.embedded.account import Account, environment, temporary_folder

_PORT = 5432  # a name only: it listens on a socket in a folder of its own
_START_SECONDS = 30.0


@dataclass
class Standby:
    """A server that streams from another one.

    Attributes:
        folder: of its data and of its socket.
    """

    folder: Path
    account: Account
    program: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def url(self, database: str, *, user: str = "postgres") -> str:
        """Its address, over its socket."""
        return f"postgresql://{user}@/{database}?host={self.folder}&port={_PORT}"

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        # No fewer connections than the primary has, or recovery ends itself.
        options = ("-k", self.folder, "-p", _PORT, "-h", "", "-c", "max_connections=200", "-c", "fsync=off")
        self.process = self.run("postgres", "-D", self.folder / "data", *options)
        deadline = time.monotonic() + _START_SECONDS
        while self.run("pg_isready", "-q", "-h", self.folder, "-p", _PORT).wait() != 0:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, as a failing machine does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()
        self.process = None

    def promote(self) -> None:
        """Make it a primary of its own."""
        assert self.run("pg_ctl", "promote", "-w", "-D", self.folder / "data").wait() == 0

    def run(self, program: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a program of the server's, as its user."""
        log = (self.folder / "log").open("ab")
        with log:
            return subprocess.Popen(  # noqa: S603 - our own words
                [self.program.with_name(program), *map(str, arguments)],
                user=self.account.user,
                group=self.account.group,
                extra_groups=self.account.groups,
                env=environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


@contextmanager
def standby(primary: EmbeddedPostgres) -> Generator[Standby]:
    """Copy a running server, and stream from it."""
    account = Account.owning(Path(primary.url().partition("host=")[2].partition("&")[0].replace("%2F", "/")))
    folder = Path(tempfile.mkdtemp(prefix="ibex-standby-", dir=temporary_folder(account)))
    account.own(folder)
    made = Standby(folder, account, binaries.find().readable_by(account).program("pg_basebackup"))
    try:
        copy = made.run("pg_basebackup", "-d", primary.url(), "-D", folder / "data", "-R", "-X", "stream", "-c", "fast")
        assert copy.wait() == 0, (folder / "log").read_text()
        made.start()
        yield made
    finally:
        if made.process is not None:
            made.kill()
        shutil.rmtree(folder, ignore_errors=True)
