"""A system's own Postgres, 15 or newer with pgvector: found, and run for one session of tests.

On Debian: ``apt-get install postgresql-17 postgresql-17-pgvector`` from the archive of the Postgres project.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OLDEST = 15
PGVECTOR = (0, 8)


@dataclass(frozen=True)
class Installation:
    """One installed Postgres.

    Attributes:
        version: as it says itself, such as ``15.18``.
        pgvector: likewise, such as ``0.8.5``.
        programs: the folder of initdb and pg_ctl.
    """

    version: str
    pgvector: str
    programs: Path

    @property
    def major(self) -> int:
        """Return the major version."""
        return int(self.version.split(".")[0])


def find() -> Installation | None:
    """Return the oldest that will do: the newest is what the embedded one is for."""
    found = [one for program in _programs() if (one := _look(program)) is not None]
    return min(found, key=lambda one: one.major, default=None)


def _programs() -> Sequence[str]:
    """Return each pg_config: that of PATH, and those that Debian keeps by version."""
    by_version = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin/pg_config")]
    return [*([found] if (found := shutil.which("pg_config")) else []), *sorted(by_version)]


def _look(pg_config: str) -> Installation | None:
    version = re.search(r"(\d+)\.\d+", _output(pg_config, "--version"))
    programs, share = Path(_output(pg_config, "--bindir")), Path(_output(pg_config, "--sharedir"))
    control = share / "extension" / "vector.control"
    if version is None or int(version[1]) < OLDEST or not (programs / "initdb").exists() or not control.exists():
        return None
    pgvector = re.search(r"default_version = '(\d+)\.(\d+)[^']*'", control.read_text())
    if pgvector is None or (int(pgvector[1]), int(pgvector[2])) < PGVECTOR:
        return None
    return Installation(version[0], pgvector[0].split("'")[1], programs)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - pg_config


@contextmanager
def running(installation: Installation) -> Generator[str]:
    """Run a server on loopback, and give the superuser's address; gone afterwards."""
    # Postgres refuses to run as root, and no folder of root's may be in its way.
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    folder = Path(tempfile.mkdtemp(prefix="ibex-system-postgres-"))
    password, port = secrets.token_urlsafe(18), _free_port()
    secret = folder / "password"
    secret.write_text(password)
    for path in (folder, secret):
        os.chown(path, account.pw_uid, account.pw_gid)

    def run(program: str, *arguments: str) -> None:
        subprocess.run(  # noqa: S603 - the server's own programs
            [installation.programs / program, "-D", folder / "data", *arguments],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=(),
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    # Whoever ends nox politely leaves no server behind.
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        locale = ("--encoding=UTF8", "--locale=C.UTF-8")
        run("initdb", "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", *locale)
        (folder / "data" / "postgresql.auto.conf").write_text(
            f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{folder}'\n"
            # Thrown away afterwards: nothing need reach the disk.
            "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\nmax_connections = 200\n"
        )
        run("pg_ctl", "-w", "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port
