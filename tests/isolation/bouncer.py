"""A PgBouncer in transaction mode in front of the test server, private to one run."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import URL

from ibex_db import Database, EngineSettings
from ibex_db_core.embedded.account import Account, temporary_folder
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN, Cluster
from ibex_db_core.testing import TestDatabase

POOL_SIZE = 3
"""Server connections of one login to one database: what the properties hold open at once, and fewer than a crowd."""

BEHIND = EngineSettings(statement_cache_size=0)
"""All that a service sets, as the README says."""

_PORT = 6432  # a name only: it listens on a socket in a folder of its own
_START_SECONDS = 10.0


@dataclass(frozen=True)
class Route:
    """How a service reaches the server, and the one setting that goes with it."""

    bounced: Cluster | None

    def leads_to(self, database: TestDatabase) -> TestDatabase:
        """Return the address of a database on this route."""
        return database if self.bounced is None else replace(database, cluster=self.bounced)

    def connect(self, database: TestDatabase, settings: EngineSettings) -> Database:
        """Make a Database on this route."""
        if self.bounced is not None:
            settings = replace(settings, statement_cache_size=BEHIND.statement_cache_size)
        return self.leads_to(database).connect(settings)


def find_pgbouncer() -> str:
    """Return the program's path, or skip the test that asks."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer, as .ci/run does")
    return found


@contextmanager
def pgbouncer(cluster: Cluster, *settings: str) -> Generator[Cluster]:
    """Run it, and give the addresses of the same cluster through it; settings are further lines of its file."""
    program = find_pgbouncer()
    server = _server(cluster)
    # The account that owns the server's socket folder: nobody else may enter it.
    account = Account.owning(Path(server["host"]))
    folder = Path(tempfile.mkdtemp(prefix="ibex-pgb-", dir=temporary_folder(account)))
    try:
        account.own(folder)
        (folder / "users.txt").write_text(
            "".join(f'"{login}" "{cluster.password or ""}"\n' for login in (SERVICE_LOGIN, PLATFORM_LOGIN))
        )
        (folder / "pgbouncer.ini").write_text("\n".join((_ini(folder, server), *settings, "")))
        log = (folder / "log").open("w+")
        with log, _running(program, folder, account, log.fileno()):
            admin = cluster.admin
            query = {"host": str(folder), "port": str(_PORT)}
            yield replace(cluster, admin=URL.create(admin.drivername, admin.username, database="postgres", query=query))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _server(cluster: Cluster) -> Mapping[str, str]:
    """Return host and port as PgBouncer wants them; a host that starts with a slash is a socket's folder."""
    query = cluster.admin.query
    host = cluster.admin.host or query.get("host", "127.0.0.1")
    port = cluster.admin.port or query.get("port", "5432")
    return {"host": str(host), "port": str(port)}


def _ini(folder: Path, server: Mapping[str, str]) -> str:
    """Write what a plain installation has, and nothing for our sake: no ignore_startup_parameters, no reset query."""
    return f"""
[databases]
* = host={server["host"]} port={server["port"]}

[pgbouncer]
pool_mode = transaction
default_pool_size = {POOL_SIZE}
max_client_conn = 200
unix_socket_dir = {folder}
listen_port = {_PORT}
auth_type = trust
auth_file = {folder}/users.txt
"""


@contextmanager
def _running(program: str, folder: Path, account: Account, log: int) -> Generator[None]:
    process = subprocess.Popen(  # noqa: S603 - the system's program, with our file
        [program, str(folder / "pgbouncer.ini")],
        user=account.user,
        group=account.group,
        extra_groups=account.groups,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(folder):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PgBouncer did not start: {(folder / 'log').read_text()}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(folder / f".s.PGSQL.{_PORT}")) == 0
