"""The embedded Postgres: what it promises to the processes that share it."""

# ruff: noqa: ASYNC220, ASYNC240 - nothing else waits on a test's event loop
# ruff: noqa: S603 - the processes are ours

import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest

from ibex_db_core import embedded
from ibex_db_core.embedded import EmbeddedPostgres, binaries
from ibex_db_core.embedded.account import Account
from ibex_db_core.embedded.postmaster import pid as postmaster_pid
from ibex_db_core.errors import EmbeddedPostgresError

AS_ROOT = os.geteuid() == 0
MAJOR = 18
FOLDER = f"pgdata-{MAJOR}"

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads parents from /proc")
needs_root = pytest.mark.skipif(not AS_ROOT, reason="is about running as root")

CLIENT = """
import sys
from ibex_db_core.embedded import EmbeddedPostgres
server = EmbeddedPostgres(sys.argv[1], durable=False).start()
print(server.url(), flush=True)
sys.stdin.read()
"""


def until(holds: Callable[[], bool], *, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Without trusting the code under test; a zombie is not alive, once its last thread is one."""
    try:
        os.kill(pid, 0)
        threads = list(Path(f"/proc/{pid}/task").glob("*/stat"))
        states = [thread.read_text().rpartition(")")[2].split()[0] for thread in threads]
        return any(state != "Z" for state in states) or not Path("/proc/self").exists()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _gone(file: Path) -> bool:
    return not file.exists()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def server_pid(home: Path) -> int:
    return int((home / FOLDER / "postmaster.pid").read_text().split()[0])


def owner_of(pid: int) -> dict[str, list[int]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        line.partition(":")[0]: [int(word) for word in line.partition(":")[2].split()]
        for line in lines
        if line.startswith(("Uid", "Gid", "Groups"))
    }


async def fetch(url: str, *statements: str) -> object:
    """Run the statements over a fresh connection; the last one's first value."""
    connection = await cast("Any", asyncpg).connect(url, timeout=10)  # it ships no types
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


class Client:
    """Another Python, with warnings as errors and no XDG_RUNTIME_DIR, that holds the server until it is let go."""

    def __init__(self, home: Path, code: str = CLIENT) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, self.leave()
        return line

    def leave(self) -> str:
        """Let go, the polite way; returns what it complained about."""
        return self.process.communicate("", timeout=20)[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)


MakeClient = Callable[..., Client]


@pytest.fixture
def client(home: Path) -> Generator[MakeClient]:
    """Make clients of `home`; those that the test leaves behind are ended."""
    clients: list[Client] = []

    def make(code: str = CLIENT) -> Client:
        clients.append(Client(home, code))
        return clients[-1]

    yield make
    for one in clients:
        if one.process.returncode is None:
            one.kill()


@pytest.fixture
def place() -> Generator[Path]:
    """A folder that root's server may enter: pytest's own tmp_path lies in one that it may not."""
    folder = Path(tempfile.mkdtemp(prefix="ibex-test-"))
    if AS_ROOT:
        folder.chmod(0o711)
    yield folder
    for pidfile in folder.rglob("postmaster.pid"):
        if postmaster_pid(pidfile.parent):
            until(partial(_gone, pidfile))
    for record in folder.rglob("server.json"):  # a killed supervisor leaves its socket folder to the next start
        shutil.rmtree(json.loads(record.read_text())["socket_folder"], ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def home(place: Path) -> Path:
    return place / "home"


@pytest.fixture(scope="module")
def server() -> Generator[EmbeddedPostgres]:
    """For tests that only ask."""
    with EmbeddedPostgres.throwaway() as server:
        yield server


# -- one server, many processes


async def test_a_cold_start_gives_a_server_that_makes_vectors() -> None:
    with EmbeddedPostgres.throwaway() as server:
        distance = await fetch(server.url(), "CREATE EXTENSION vector", "SELECT '[1,2]'::vector <-> '[4,6]'::vector")
        locale = await fetch(server.url(), "SELECT datlocale FROM pg_database WHERE datname = 'postgres'")
        jit = await fetch(server.url(), "SELECT current_setting('jit')")

        assert (distance, locale, jit, server.server_version) == (5.0, "C.UTF-8", "off", MAJOR)


async def test_a_throwaway_server_leaves_no_process_and_no_file_behind() -> None:
    server = EmbeddedPostgres.throwaway().start()
    data = Path(str(await fetch(server.url(), "SHOW data_directory")))
    socket_folder = Path(str(await fetch(server.url(), "SHOW unix_socket_directories")))
    pid = server_pid(data.parent)

    server.stop()

    assert not data.parent.exists()
    assert not socket_folder.exists()
    assert not alive(pid)


async def test_a_throwaway_server_of_a_killed_process_leaves_nothing_either(client: MakeClient) -> None:
    one = client(CLIENT.replace("EmbeddedPostgres(sys.argv[1], durable=False)", "EmbeddedPostgres.throwaway()"))
    data = Path(str(await fetch(one.answer(), "SHOW data_directory")))

    one.kill()

    assert until(lambda: not data.parent.exists())


async def test_a_second_process_shares_the_server_and_the_last_one_stops_it(home: Path, client: MakeClient) -> None:
    first, second = client(), client()
    assert first.answer() == second.answer()
    pid = server_pid(home)

    complaints = first.leave()
    with EmbeddedPostgres(home, durable=False) as server:
        assert await fetch(server.url(), "SELECT 1") == 1
        assert server_pid(home) == pid
    complaints += second.leave()

    assert until(lambda: not alive(pid))
    assert complaints == ""


def test_four_processes_that_start_at_once_get_one_server(client: MakeClient) -> None:
    clients = [client() for _ in range(4)]

    urls = {one.answer() for one in clients}

    assert len(urls) == 1
    assert [one.leave() for one in clients] == [""] * 4


async def test_start_may_be_called_again_and_stop_too(home: Path) -> None:
    server = EmbeddedPostgres(home, durable=False).start()
    pid = server_pid(home)

    assert server.start() is server
    assert server_pid(home) == pid
    server.stop()
    server.stop()

    assert until(lambda: not alive(pid))
    with pytest.raises(EmbeddedPostgresError, match=r"call start\(\)"):
        server.url()


async def test_without_a_home_it_takes_ibex_home_and_the_callers_settings(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IBEX_HOME", str(home))

    with EmbeddedPostgres(durable=False, settings={"work_mem": "7MB"}) as server:
        assert await fetch(server.url(), "SHOW work_mem") == "7MB"
        assert await fetch(server.url(), "SHOW fsync") == "off"

    assert (home / FOLDER).is_dir()


# -- deaths


def test_when_its_only_client_is_killed_the_server_stops(home: Path, client: MakeClient) -> None:
    one = client()
    one.answer()
    pid = server_pid(home)

    one.kill()

    assert until(lambda: not alive(pid))


async def test_a_client_killed_in_the_middle_of_a_start_does_not_hinder_the_next(
    home: Path, client: MakeClient
) -> None:
    one = client()
    until(lambda: any(home.glob(f".{FOLDER}-*")))
    one.kill()

    with EmbeddedPostgres(home, durable=False) as server:
        assert await fetch(server.url(), "SELECT 1") == 1
        assert not list(home.glob(f".{FOLDER}-*/data/PG_VERSION"))


@needs_proc
async def test_when_the_supervisor_is_killed_the_server_stops_and_the_next_start_works(
    home: Path, client: MakeClient
) -> None:
    one = client()
    one.answer()
    pid = server_pid(home)
    supervisor = parent(pid)

    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not alive(supervisor))

    with EmbeddedPostgres(home, durable=False) as server:
        assert await fetch(server.url(), "SELECT 1") == 1
        assert not alive(pid)
    one.leave()


@needs_proc
async def test_when_supervisor_and_client_are_killed_together_the_server_stops(home: Path, client: MakeClient) -> None:
    one = client()
    one.answer()
    pid = server_pid(home)

    os.kill(parent(pid), signal.SIGKILL)
    one.kill()

    assert until(lambda: not alive(pid))


async def test_when_the_postmaster_is_killed_the_next_start_recovers_what_was_committed(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        url = server.url()
        await fetch(url, "CREATE TABLE kept AS SELECT 7 AS n", "SELECT 1")
        pid = server_pid(home)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid))

        server.start()

        assert await fetch(url, "SELECT n FROM kept") == 7  # at the old address, so that pools reconnect
        assert server_pid(home) != pid


async def test_durable_data_survive_a_restart(home: Path) -> None:
    with EmbeddedPostgres(home) as server:
        assert await fetch(server.url(), "CREATE TABLE kept AS SELECT 7 AS n", "SHOW fsync") == "on"
        pid = server_pid(home)
    until(lambda: not alive(pid))

    with EmbeddedPostgres(home) as server:
        assert await fetch(server.url(), "SELECT n FROM kept") == 7


@pytest.mark.parametrize("kind", ["live", "zombie"])
async def test_a_pid_file_that_names_somebody_elses_process_is_not_believed(home: Path, kind: str) -> None:
    with EmbeddedPostgres(home, durable=False):
        pidfile = home / FOLDER / "postmaster.pid"
        words = pidfile.read_text().split("\n")
    until(lambda: not pidfile.exists())
    account = Account.owning(home / FOLDER)
    command = ["sleep", "60"] if kind == "live" else ["true"]
    foreign = subprocess.Popen(command, user=account.user, group=account.group)
    if kind == "zombie":
        assert until(lambda: not alive(foreign.pid))
    pidfile.write_text("\n".join([str(foreign.pid), *words[1:]]))

    try:
        with EmbeddedPostgres(home, durable=False) as server:
            assert await fetch(server.url(), "SELECT 1") == 1
            assert foreign.poll() in {None, 0}
            assert kind == "zombie" or alive(foreign.pid)
    finally:
        foreign.kill()
        foreign.wait()


def test_where_the_kernel_sends_no_signal_a_guard_ends_the_server_of_a_killed_supervisor(client: MakeClient) -> None:
    code = """
import subprocess, sys
from ibex_db_core.embedded.supervisor import _guard
server = subprocess.Popen(["sleep", "60"])
with _guard(server.pid, needed=True):
    print(server.pid, flush=True)
    sys.stdin.read()
server.kill(); server.wait()
"""
    one = client(code)
    pid = int(one.answer())

    one.kill()

    assert until(lambda: not alive(pid))
    polite = client(code)
    polite.answer()
    assert polite.leave() == ""


# -- places


async def test_a_path_with_a_space_and_a_quote_works(place: Path) -> None:
    with EmbeddedPostgres(place / "it's a, home", durable=False) as server:
        assert await fetch(server.url(), "SELECT 1") == 1


async def test_a_path_longer_than_a_socket_address_works(place: Path) -> None:
    with EmbeddedPostgres(place / ("long" * 30) / ("path" * 30), durable=False) as server:
        assert await fetch(server.url(), "SELECT 1") == 1


async def test_the_socket_folder_is_open_to_its_owner_alone(server: EmbeddedPostgres) -> None:
    folder = Path(str(await fetch(server.url(), "SHOW unix_socket_directories")))

    assert folder.stat().st_mode & 0o777 == 0o700


async def test_a_stranger_on_the_socket_folders_name_is_stepped_around(home: Path) -> None:
    with EmbeddedPostgres(home, durable=False) as server:
        folder = Path(str(await fetch(server.url(), "SHOW unix_socket_directories")))
    until(lambda: not folder.exists())
    folder.symlink_to("/")

    try:
        with EmbeddedPostgres(home, durable=False) as server:
            assert await fetch(server.url(), "SELECT 1") == 1
            assert folder.name not in server.url()
    finally:
        folder.unlink()


async def test_the_callers_environment_stays_out_of_the_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGDATA", "PGOPTIONS", "PGTZ", "SECRET"):
        monkeypatch.setenv(name, "leaked")

    server = EmbeddedPostgres(home, durable=False).start()

    for name in ("PGDATA", "PGOPTIONS", "PGTZ", "SECRET"):
        monkeypatch.delenv(name)
    with server:
        copied = "CREATE TEMP TABLE seen (line text); COPY seen FROM PROGRAM 'env'"
        leaks = await fetch(server.url(), copied, "SELECT count(*) FROM seen WHERE line LIKE '%leaked%'")

    assert leaks == 0


# -- TCP


async def test_tcp_asks_for_the_right_password(server: EmbeddedPostgres) -> None:
    assert await fetch(server.url(tcp=True), "SHOW password_encryption") == "scram-sha-256"
    assert "127.0.0.1" in server.url(tcp=True)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await fetch(server.url(tcp=True, password="guessed"), "SELECT 1")


async def test_a_url_carries_any_name_and_password(server: EmbeddedPostgres) -> None:
    name, password = "ann @/ö", "p:a@s/s?"
    await fetch(server.url(), f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'", "SELECT 1")
    await fetch(server.url(), f'CREATE DATABASE "{name}"', "SELECT 1")

    for tcp in (True, False):
        url = server.url(name, user=name, password=password, tcp=tcp)
        assert await fetch(url, "SELECT current_user || current_database()") == name * 2


async def test_without_listening_a_tcp_url_is_refused(home: Path) -> None:
    with (
        EmbeddedPostgres(home, durable=False, settings={"listen_addresses": ""}) as server,
        pytest.raises(EmbeddedPostgresError, match="listen_addresses"),
    ):
        server.url(tcp=True)


# -- refusals


def test_missing_binaries_say_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_CARRIERS", (("no_such_wheel", "pginstall18"),))

    with pytest.raises(EmbeddedPostgresError, match=r"install ibex-db-core\[embedded\] or set IBEX_DATABASE_URL"):
        EmbeddedPostgres(home).start()


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "feature"),
    [("x86_64", "flags\t\t: fpu sse2 avx\n", "AVX2"), ("aarch64", "Features\t: fp asimd\n", "SVE")],
)
def test_a_processor_without_the_vector_instructions_is_refused_before_the_start(
    place: Path, monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str, feature: str
) -> None:
    (place / "cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}")
    monkeypatch.setattr(binaries, "_CPUINFO", place / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)

    with pytest.raises(EmbeddedPostgresError, match=f"{feature}.*Set IBEX_DATABASE_URL"):
        EmbeddedPostgres(place / "home").start()
    assert not (place / "home" / FOLDER).exists()


@pytest.mark.parametrize("left", ["pgdata-17", FOLDER])
def test_data_of_another_major_say_what_to_do(home: Path, left: str) -> None:
    (home / left).mkdir(parents=True)
    (home / left / "PG_VERSION").write_text("17\n")

    with pytest.raises(EmbeddedPostgresError, match=r"PostgreSQL 18, which cannot read it: dump it"):
        EmbeddedPostgres(home).start()


def test_a_promise_that_the_running_server_does_not_keep_is_refused(home: Path) -> None:
    with EmbeddedPostgres(home, durable=False):
        with pytest.raises(EmbeddedPostgresError, match="durable=False"):
            EmbeddedPostgres(home).start()
        with pytest.raises(EmbeddedPostgresError, match="served on port"):
            EmbeddedPostgres(home, durable=False, port=1).start()


def test_a_server_that_cannot_start_shows_its_log(home: Path) -> None:
    server = EmbeddedPostgres(home, durable=False, settings={"no_such_setting": "1"})

    with pytest.raises(EmbeddedPostgresError, match=r"unrecognized configuration parameter .*no_such_setting"):
        server.start()


def test_a_home_that_cannot_be_made_is_an_error_of_ours(place: Path) -> None:
    (place / "file").touch()

    with pytest.raises(EmbeddedPostgresError, match="Pass a home= of your own"):
        EmbeddedPostgres(place / "file" / "home").start()


def test_on_windows_the_error_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    on_windows = runpy.run_path(str(embedded.__file__))["EmbeddedPostgres"]

    for make in (on_windows, on_windows.throwaway):
        with pytest.raises(EmbeddedPostgresError, match="set IBEX_DATABASE_URL"):
            make()


# -- as root


@needs_root
@needs_proc
def test_as_root_the_server_gives_up_uid_gid_and_groups(home: Path) -> None:
    with EmbeddedPostgres(home, durable=False):
        ids = owner_of(server_pid(home))

        account = Account.owning(home / FOLDER)
        assert 0 not in {account.uid, account.gid}
        assert set(ids["Uid"]) == {account.uid}
        assert set(ids["Gid"]) == {account.gid}
        assert set(ids["Groups"]) == {account.gid}


@needs_root
async def test_as_root_a_home_that_only_root_may_enter_works_and_no_folder_changes_its_mode(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    home = closed / "home"
    home.mkdir(mode=0o700)
    folders = [home, *home.parents]
    modes = [folder.stat().st_mode for folder in folders]

    with EmbeddedPostgres(home, durable=False) as server:
        await fetch(server.url(), "CREATE TABLE kept AS SELECT 7 AS n", "SELECT 1")
        pid = server_pid(home)
    until(lambda: not alive(pid))
    with EmbeddedPostgres(home, durable=False) as server:
        kept = await fetch(server.url(), "SELECT n FROM kept")
        pid = server_pid(home)
    until(lambda: not alive(pid))
    shutil.rmtree((home / FOLDER).resolve().parent)

    assert kept == 7
    assert [folder.stat().st_mode for folder in folders] == modes


@needs_root
async def test_as_root_binaries_that_only_root_may_read_are_copied(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = binaries.find()
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(installed.root, closed / installed.package.name / installed.root.name, symlinks=True)
    libraries = f"{installed.package.name}.libs"
    shutil.copytree(installed.package.with_name(libraries), closed / libraries)
    (closed / installed.package.name / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(closed), *sys.path])
    importlib.invalidate_caches()

    with EmbeddedPostgres(place / "home", durable=False) as server:
        await fetch(server.url(), "CREATE EXTENSION vector", "SELECT 1")
        program = Path(f"/proc/{server_pid(place / 'home')}/exe").readlink()

    assert closed.stat().st_mode & 0o777 == 0o700
    assert closed not in program.parents
    until(lambda: not (place / "home" / FOLDER / "postmaster.pid").exists())
    shutil.rmtree(program.parents[3])
