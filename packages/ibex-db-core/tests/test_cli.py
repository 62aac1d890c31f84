"""The `ibex-db` command: what people read, what machines read, and how it leaves."""

# ruff: noqa: S603 - the processes are ours

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import asyncpg
import pytest
import typer
from typer.testing import CliRunner, Result

from ibex_db_core.cli.app import build
from ibex_db_core.console import Output
from ibex_db_core.embedded import locks, postmaster
from ibex_db_core.errors import ConflictError, IbexError, InvalidInputError, Shown
from ibex_db_core.migrations import Migrator, migrator, runner
from ibex_db_core.provisioning import SERVICE_LOGIN, Cluster

ESCAPE = "\x1b"
NOWHERE = "postgresql://somebody:hush@127.0.0.1:1/nothing"
SECONDS = 60
SAID, SIZE = "Ahab hunts whales", "text of 17 characters"

inside = cast("Any", migrator)

# What would make Rich or Typer believe in a terminal, or ibex-db in another database.
_MISLEADING = re.compile("IBEX_|FORCE_COLOR|GITHUB_ACTIONS|PY_COLORS|NO_COLOR|COLUMNS|TTY_|_IBEX")


@pytest.fixture(autouse=True)
def _no_other_database(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("ibex_cluster")  # reads the environment first
    for name in list(os.environ):
        if _MISLEADING.match(name):
            monkeypatch.delenv(name)


@pytest.fixture
def empty(ibex_cluster: Cluster) -> Iterator[str]:
    """Give the owner's address of a database with nothing in it."""
    yield from _database(ibex_cluster, None)


@pytest.fixture
def migrated(ibex_cluster: Cluster, ibex_template: str) -> Iterator[str]:
    """Give the owner's address of a database with every revision applied."""
    yield from _database(ibex_cluster, ibex_template)


def _database(cluster: Cluster, template: str | None) -> Iterator[str]:
    name = f"ibex_test_{uuid4().hex[:12]}"
    asyncio.run(cluster.create_database(name, template=template))
    yield cluster.url(name).render_as_string(hide_password=False)
    asyncio.run(cluster.drop_database(name))


@pytest.fixture
def home() -> Iterator[Path]:
    """Give a home for an embedded server that the user it becomes under root can enter."""
    path = Path(tempfile.mkdtemp(prefix="ibex-db-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(build(), words)


def answer(*words: str) -> Any:
    """Run a command with --json; its one document."""
    return json.loads(invoke(*words, "--json").stdout)


def execute(*words: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the real thing, piped."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "ibex_db_core.cli", *words],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=SECONDS,
        env={**os.environ, **(env or {})},
    )


def sql(url: str, statement: str) -> Any:
    async def work() -> Any:
        connection = await cast("Any", asyncpg).connect(url, timeout=10)  # it ships no types
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(work())


# -- upgrade


def test_upgrade_applies_every_revision_and_lists_them(empty: str) -> None:
    result = invoke("upgrade", "--url", empty)

    assert result.exit_code == 0
    assert "core_0001" in result.stdout
    assert re.search(r"Applied \d+ revisions? in", result.stdout)
    assert sql(empty, "SELECT to_regclass('ibex_core.alembic_version')") is not None


def test_upgrade_says_so_where_nothing_is_to_do(migrated: str) -> None:
    result = invoke("upgrade", "--url", migrated)

    assert result.exit_code == 0
    assert "Nothing to do" in result.stdout
    assert answer("upgrade", "--url", migrated)["applied"] == []


def test_upgrade_tells_machines_what_it_applied(empty: str) -> None:
    told = answer("upgrade", "core@head", "--url", empty)

    assert [(step["id"], step["wheel"], step["applied"]) for step in told["applied"]] == [
        ("core_0001", "core", True),
        ("core_0002", "core", True),
    ]
    assert told["seconds"] > 0


def test_upgrade_tells_its_progress_on_stderr(empty: str) -> None:
    ran = execute("upgrade", "--url", empty)

    assert ran.returncode == 0
    assert "applying core_0001\n" in ran.stderr
    assert "applying" not in ran.stdout


def test_upgrade_sql_prints_a_script_that_runs_and_needs_no_database(empty: str) -> None:
    ran = execute("upgrade", "--sql", env={"IBEX_DATABASE_URL": NOWHERE})

    assert ran.returncode == 0
    assert ran.stdout.rstrip() == Migrator.sql().rstrip()
    asyncio.run(_script(empty, ran.stdout))
    assert invoke("check", "--url", empty).exit_code == 0
    assert "CREATE SCHEMA" in answer("upgrade", "--sql")["sql"]


async def _script(url: str, script: str) -> None:
    connection = await cast("Any", asyncpg).connect(url, timeout=10)
    try:
        await connection.execute(script)
    finally:
        await connection.close()


def test_an_unknown_revision_is_an_error_with_a_way_out(empty: str) -> None:
    for words in (("upgrade", "nonesuch", "--url", empty), ("upgrade", "nonesuch", "--sql")):
        result = invoke(*words)

        assert result.exit_code == 3
        assert "nonesuch" in result.stderr
        assert "ibex-db current" in result.stderr


def test_a_login_that_does_not_own_the_schema_is_told_which_one_does(ibex_cluster: Cluster, migrated: str) -> None:
    service = ibex_cluster.url(migrated.rpartition("/")[2].partition("?")[0], user=SERVICE_LOGIN)

    result = invoke("current", "--url", service.render_as_string(hide_password=False))

    assert result.exit_code == 3
    assert "IBEX_OWNER_URL" in result.stderr


# -- downgrade


def test_downgrade_takes_revisions_back_newest_first(migrated: str) -> None:
    before = [step["id"] for step in answer("current", "--url", migrated)["revisions"]]

    reverted = answer("downgrade", "base", "--yes", "--allow-destructive", "--url", migrated)["reverted"]

    assert [step["id"] for step in reverted] == before[::-1]
    assert not any(step["applied"] for step in answer("current", "--url", migrated)["revisions"])
    assert "Nothing to do" in invoke("downgrade", "base", "--yes", "--url", migrated).stdout


def test_downgrade_with_yes_alone_destroys_nothing(migrated: str) -> None:
    ran = invoke("downgrade", "base", "--yes", "--url", migrated)

    assert ran.exit_code == 3
    assert "core_0002: table ibex_core.signing_keys with all its rows" in ran.stderr
    assert "--allow-destructive" in ran.stderr
    assert answer("upgrade", "--url", migrated)["applied"] == []


def test_a_dry_run_tells_sql_and_locks_and_changes_nothing(migrated: str) -> None:
    told = answer("downgrade", "core_0001", "--dry-run", "--scratch", migrated, "--url", migrated)

    assert told["changed"] is False
    (step,) = (one for one in told["revisions"] if one["id"] == "core_0002")
    assert {
        "table": "ibex_core.signing_keys",
        "mode": "ACCESS EXCLUSIVE",
        "rows": None,
        "blocks": "reads and writes",
    } in [{**lock, "rows": None} for lock in step["locks"]]
    assert "DROP TABLE ibex_core.signing_keys" in [said["sql"] for said in step["statements"]]
    assert step["destroys"][0].startswith("core_0002: table ibex_core.signing_keys with all its rows")
    shown = invoke("downgrade", "core_0001", "--dry-run", "--scratch", migrated, "--url", migrated).stdout
    assert "Nothing was changed" in shown
    assert "DESTROYS core_0002: table ibex_core.signing_keys" in shown
    assert answer("upgrade", "--url", migrated)["applied"] == []


def test_a_dry_run_of_a_database_without_the_schema_makes_it_first(migrated: str, empty: str) -> None:
    told = answer("upgrade", "core_0001", "--dry-run", "--scratch", migrated, "--url", empty)

    statements = [said["sql"] for one in told["revisions"] for said in one["statements"]]
    assert statements[0] == "CREATE SCHEMA ibex_core"
    assert sql(empty, "SELECT to_regnamespace('ibex_core')") is None
    ours = answer("downgrade", "core_0001", "--dry-run", "--scratch", migrated, "--url", migrated)
    assert not [said for one in ours["revisions"] for said in one["statements"] if said["sql"].startswith("CREATE SCH")]


def test_sql_and_dry_run_exclude_each_other() -> None:
    assert invoke("upgrade", "--sql", "--dry-run").exit_code == 2


def test_downgrade_changes_nothing_where_nobody_can_be_asked(migrated: str) -> None:
    ran = execute("downgrade", "base", "--url", migrated)

    assert ran.returncode == 2
    assert "--yes" in ran.stderr
    assert answer("upgrade", "--url", migrated)["applied"] == []


@pytest.mark.parametrize(("said", "code"), [("y\n", 0), ("n\n", 130), ("\n", 130), ("\x03", 130)])
def test_downgrade_asks_on_a_terminal(migrated: str, said: str, code: int) -> None:
    shown, left = terminal("downgrade", "base", "--url", migrated, said=said)

    assert left == code
    assert "[y/N]" in shown
    assert ("nothing was changed" in shown) == (code != 0)
    assert (answer("upgrade", "--url", migrated)["applied"] == []) == (code != 0)


# -- current


def test_current_lists_revisions_and_what_is_left_to_apply(empty: str) -> None:
    assert "to apply: ibex-db upgrade" in invoke("current", "--url", empty).stdout

    invoke("upgrade", "--url", empty)

    shown = invoke("current", "--url", empty).stdout
    assert re.search(r"core +core_0001 .* yes", shown)
    assert "to apply" not in shown
    first = answer("current", "--url", empty)["revisions"][0]
    assert set(first) == {"id", "wheel", "message", "applied"}
    assert first["applied"] is True


# -- check


def test_check_finds_nothing_after_an_upgrade(migrated: str) -> None:
    result = invoke("check", "--url", migrated)

    assert result.exit_code == 0
    assert answer("check", "--url", migrated) == {"findings": []}


def test_check_finds_revisions_that_are_not_applied(empty: str) -> None:
    result = invoke("check", "--url", empty)

    assert result.exit_code == 1
    assert "core_0001" in result.stdout
    assert "ibex-db upgrade" in result.stdout


def test_check_finds_each_drift_and_says_the_way_out(migrated: str) -> None:
    sql(migrated, "CREATE TABLE ibex_core.stray (id int CONSTRAINT stray_pkey PRIMARY KEY)")

    result = invoke("check", "--url", migrated)

    assert result.exit_code == 1
    assert "table stray is in the database and in no model" in result.stdout
    findings = answer("check", "--url", migrated)["findings"]
    assert len(findings) == 1
    assert findings[0]["way_out"]


def test_drift_is_told_in_words() -> None:
    from sqlalchemy import Column, Index, Integer, MetaData, String, Table

    table = Table("shelf", MetaData(), Column("id", Integer), Column("label", String))
    cases: list[tuple[object, str]] = [
        (("add_table", table), "table shelf is missing in the database"),
        (("add_column", "s", "shelf", table.c.label), "column shelf.label is missing in the database"),
        (("remove_index", Index("ix_shelf", table.c.id)), "index ix_shelf on shelf is in the database and in no model"),
        (
            [("modify_nullable", "s", "shelf", "id", {}, True, False)],
            "column shelf.id: nullable is True in the database, False in the models",
        ),
        (("something_new", "x"), "something_new x"),
    ]
    for difference, words in cases:
        assert runner.told(difference) == words


# -- postgres


def test_postgres_serves_until_it_is_interrupted_and_leaves_nothing_behind(home: Path) -> None:
    for asked in (signal.SIGINT, signal.SIGTERM):
        with serving("postgres", "--home", str(home)) as process:
            addresses = [process.stdout.readline() for _ in range(3)] if process.stdout else []
            found = dict(shlex.split(line)[1].split("=", 1) for line in addresses)
            data = (home / "pgdata-18").resolve()  # a link, where the server's user cannot enter the home
            pid = postmaster.pid(data)

            assert list(found) == ["IBEX_DATABASE_URL", "IBEX_PLATFORM_URL", "IBEX_OWNER_URL"]
            assert sql(found["IBEX_DATABASE_URL"], "SELECT current_user::text") == SERVICE_LOGIN
            assert sql(found["IBEX_OWNER_URL"], "SELECT to_regclass('ibex_core.alembic_version')") is None
            assert pid is not None

            process.send_signal(asked)
            rest, told = process.communicate(timeout=SECONDS)
        assert (process.returncode, rest) == (0, "")
        assert "Stopped." in told
        assert "Traceback" not in told
        assert not Path(f"/proc/{pid}").exists()
        assert postmaster.pid(data) is None


def test_postgres_says_that_its_server_was_killed_and_leaves_with_3(home: Path) -> None:
    with serving("postgres", "--home", str(home)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pid = postmaster.pid((home / "pgdata-18").resolve())
        assert pid is not None

        os.kill(pid, signal.SIGKILL)
        _, told = process.communicate(timeout=SECONDS)

    assert process.returncode == 3
    assert "warning: PostgreSQL has ended, and nobody here stopped it" in told
    assert "Traceback" not in told


def test_postgres_gives_addresses_over_tcp_that_stay_good(home: Path) -> None:
    told: list[Any] = []
    for _ in range(2):
        with serving("postgres", "--home", str(home), "--tcp", "--upgrade", "--json") as process:
            told.append(document(process))
            for name in ("IBEX_DATABASE_URL", "IBEX_PLATFORM_URL", "IBEX_OWNER_URL"):
                assert "127.0.0.1" in told[-1]["environment"][name]
                assert sql(told[-1]["environment"][name], "SELECT inet_client_addr() IS NOT NULL") is True
            ran = execute("check", env=told[-1]["environment"])
            assert ran.returncode == 0, ran.stderr
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0

    assert told[0]["environment"] == told[1]["environment"]
    assert told[0]["applied"][0]["id"] == "core_0001"
    assert told[1]["applied"] == []
    assert told[0]["home"] == str(home)


def test_postgres_leaves_the_server_to_others_who_use_it(home: Path) -> None:
    with serving("postgres", "--home", str(home), "--json") as first:
        address = document(first)["environment"]["IBEX_DATABASE_URL"]
        with serving("postgres", "--home", str(home)) as second:
            assert second.stdout is not None
            second.stdout.readline()
            second.send_signal(signal.SIGINT)
            _, told = second.communicate(timeout=SECONDS)

        assert "another program uses this server" in told
        assert sql(address, "SELECT 1") == 1
        first.send_signal(signal.SIGINT)
        assert first.wait(SECONDS) == 0


def test_no_url_means_the_embedded_postgres(home: Path) -> None:
    ran = execute("upgrade", "--json", env={"IBEX_HOME": str(home)})

    assert ran.returncode == 0
    assert json.loads(ran.stdout)["applied"]
    assert (home / "pgdata-18").exists()
    until_stopped(home)


class serving:  # noqa: N801 - reads as a function
    """A command that keeps running; killed at the end, should it still be there."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "ibex_db_core.cli", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> "subprocess.Popen[str]":
        return self.process

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=SECONDS)


def document(process: "subprocess.Popen[str]") -> Any:
    """Read one JSON document off a process that goes on running."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if line == "}\n":
            return json.loads(read)
    raise AssertionError(f"no document, but {read!r} and {process.stderr.read() if process.stderr else ''}")


def until_stopped(home: Path) -> None:
    os.close(locks.take(home / "server.lock", time.monotonic() + SECONDS))


# -- which database


def test_url_takes_the_place_of_every_other_address(migrated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IBEX_DATABASE_URL", "IBEX_OWNER_URL", "IBEX_PLATFORM_URL"):
        monkeypatch.setenv(name, NOWHERE)

    assert invoke("current").exit_code == 3
    assert invoke("current", "--url", migrated).exit_code == 0


def test_the_owners_address_alone_is_enough_to_migrate(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBEX_OWNER_URL", empty)

    result = invoke("upgrade", "core@head")

    assert result.exit_code == 0, result.stderr
    assert sql(empty, "SELECT to_regclass('ibex_core.alembic_version')") is not None


def test_migrations_go_by_the_owners_address(migrated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IBEX_DATABASE_URL", NOWHERE)
    monkeypatch.setenv("IBEX_OWNER_URL", migrated)

    assert invoke("current").exit_code == 0


# -- errors


def test_an_error_of_ours_is_one_line_without_a_traceback() -> None:
    ran = execute("current", "--url", NOWHERE)

    assert ran.returncode == 3
    assert ran.stdout == ""
    lines = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "check host and port" in lines[0]
    assert "Traceback" not in ran.stderr
    assert "hush" not in ran.stderr


def test_machines_get_an_error_as_a_document() -> None:
    error = answer("current", "--url", NOWHERE)["error"]

    assert error["type"] == "ConnectionLostError"
    assert error["message"].startswith("no connection")
    assert answer("current", "--url", "mysql://x")["error"]["type"] == "ConfigurationError"


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (InvalidInputError("content", SAID, "must be shorter"), {"value": "text of 17 characters"}),
        (InvalidInputError("embedding", [0.125], "must have exactly 3 dimensions"), {"value": "list of 1"}),
        (InvalidInputError("embedding", Shown("2 numbers"), "must have exactly 3"), {"value": "2 numbers"}),
        (InvalidInputError("rank", 101, "must lie in [-100, 100]"), {"value": 101}),
        (
            ConflictError("taken", values={"content": SAID, "slug": "robin"}),
            {"values": {"content": SIZE, "slug": "robin"}},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_errors_document_tells_no_more_than_its_message_may(
    error: IbexError, facts: Mapping[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    async def refused() -> None:
        raise error

    with pytest.raises(typer.Exit):
        Output(as_json=True).run(refused)

    printed = capsys.readouterr().out
    assert facts.items() <= json.loads(printed)["error"].items()
    assert SAID not in printed
    assert "0.125" not in printed


def test_debug_shows_the_traceback() -> None:
    ran = execute("current", "--url", NOWHERE, "--debug", "--json")

    assert ran.returncode == 3
    assert "Traceback" in ran.stderr
    assert json.loads(ran.stdout)["error"]


def test_a_defect_has_a_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_revision: str) -> str:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(Migrator, "sql", broken)

    result = invoke("upgrade", "--sql")

    assert result.exit_code == 4
    assert "report" in result.stderr
    assert answer("upgrade", "--sql")["error"] == {"type": "ZeroDivisionError", "message": "oops"}


@pytest.mark.parametrize(
    "words",
    [("nonesuch",), ("current", "--nonesuch"), ("downgrade",), ("--json", "current"), ("upgrade", "--url", "")],
)
def test_a_wrong_command_line_leaves_with_2(words: tuple[str, ...]) -> None:
    result = invoke(*words)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr


def test_control_c_leaves_with_130_and_no_traceback(empty: str) -> None:
    async def hold() -> tuple[int, str, str]:
        connection = await cast("Any", asyncpg).connect(empty, timeout=10)
        try:
            await connection.execute(f"SELECT pg_advisory_lock({inside._LOCK})")
            with serving("upgrade", "--url", empty) as process:
                # It asks again and again: nothing stands in a queue.
                waiting = (
                    "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                    " AND datname = current_database() AND query LIKE '%pg_try_advisory_lock%'"
                )
                for _ in range(SECONDS * 20):
                    if await connection.fetchval(waiting) or process.poll() is not None:
                        break
                    await asyncio.sleep(0.05)
                process.send_signal(signal.SIGINT)
                out, err = await asyncio.to_thread(process.communicate, timeout=SECONDS)
                return process.returncode, out, err
        finally:
            await connection.close()

    code, out, err = asyncio.run(hold())

    assert (code, out) == (130, ""), err
    assert "Traceback" not in err
    assert "error" not in err
    assert invoke("upgrade", "--url", empty).exit_code == 0


# -- what it looks like


def test_piped_output_has_no_codes_and_keeps_a_row_on_a_line(migrated: str) -> None:
    for words in (("--help",), ("current", "--url", migrated), ("upgrade", "--url", migrated), ("--version",)):
        ran = execute(*words, env={"TERM": "xterm-256color"})

        assert ran.returncode == 0
        assert ESCAPE not in ran.stdout + ran.stderr
    shown = execute("current", "--url", migrated).stdout
    assert re.search(r"^core +core_0001 +Roles, the vector extension.* +yes *$", shown, re.MULTILINE)


def test_a_narrow_terminal_gets_whole_revisions_in_colour(migrated: str) -> None:
    shown, left = terminal("current", "--url", migrated, columns=48)

    assert left == 0
    assert ESCAPE in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "core_0001" in plain
    assert max(len(line) for line in plain.splitlines() if "warning" not in line) <= 48


def test_no_color_is_honoured(migrated: str) -> None:
    shown, left = terminal("current", "--url", migrated, env={"NO_COLOR": "1"})

    assert left == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown)


def terminal(*words: str, said: str = "", columns: int = 100, env: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Run a command on a terminal of its own.

    Args:
        words: the command line.
        said: typed when the command asks.
        columns: the terminal's width.
        env: on top of this process's.
    """
    code = f"from ibex_db_core.cli import main; import sys; sys.argv = {['ibex-db', *words]!r}; main()"
    child, screen = pty.fork()
    if child == 0:  # pragma: no cover - another process
        os.execve(sys.executable, [sys.executable, "-c", code], {**os.environ, "TERM": "xterm", **(env or {})})  # noqa: S606
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    shown = b""
    while True:
        if not select.select([screen], [], [], 120)[0]:  # a command that waits for what was said long ago
            os.kill(child, signal.SIGKILL)
        try:
            read = os.read(screen, 65536)
        except OSError:  # Linux's end of file on a terminal
            break
        if not read:
            break
        shown += read
        if said and b"[y/N]" in shown:
            time.sleep(0.1)
            os.write(screen, said.encode())
            said = ""
    os.close(screen)
    _, status = os.waitpid(child, 0)
    return shown.decode(), os.waitstatus_to_exitcode(status)


# -- help and versions


def test_help_documents_commands_and_exit_codes() -> None:
    shown = " ".join(invoke("--help").stdout.split())

    for word in ("upgrade", "downgrade", "current", "check", "postgres", "embedded", "Exit codes: 0 fine", "130"):
        assert word in shown
    assert "IBEX_DATABASE_URL" in invoke("current", "--help").stdout
    assert invoke().stdout == invoke("--help").stdout


def test_version_prints_every_wheel_and_what_it_stands_on() -> None:
    found = answer("--version")

    assert list(found) == ["ibex-db-core", "ibex-db-tenancy", "ibex-db-memory", "sqlalchemy", "asyncpg", "pgvector"]
    assert found["ibex-db-core"] == version("ibex-db-core")
    assert f"sqlalchemy {version('sqlalchemy')}" in " ".join(invoke("--version").stdout.split())


# -- without the extra


def test_the_core_never_imports_the_command_lines_packages() -> None:
    code = "import sys, ibex_db_core, ibex_db_core.cli; print({'typer', 'rich', 'click'} & set(sys.modules))"

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=SECONDS)

    assert ran.stdout == "set()\n"


@pytest.mark.parametrize("absent", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(absent: str) -> None:
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from ibex_db_core.cli import main
main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=SECONDS)

    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr.count("\n") == 1
    assert "ibex-db-core[cli]" in ran.stderr


# -- other packages' commands


def test_another_package_adds_commands(tmp_path: Path) -> None:
    env = plugin(
        tmp_path,
        """
        def hello(name: str) -> None:
            print("hello", name)

        def register(app):
            app.command()(hello)
        """,
    )

    ran = execute("hello", "world", env=env)

    assert (ran.returncode, ran.stdout) == (0, "hello world\n"), ran.stderr
    assert "hello" in execute("--help", env=env).stdout


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (None, ["No module named 'ibex_db_plugin'", "reinstall ibex-db-plugin"]),
        ("import nonesuch_at_all", ["nonesuch_at_all", "install ibex-db-plugin[cli]"]),
        ("def register(app): raise RuntimeError('out of order')", ["RuntimeError: out of order", "authors"]),
        ("def other(app): ...", ["AttributeError", "register"]),
        (
            """
            from typing import Annotated
            from typer import Option

            def bad(x: Annotated[int, Option(), Option()] = 1): ...
            def register(app): app.command()(bad)
            """,
            ["MultipleTyperAnnotationsError"],
        ),
    ],
)
def test_a_broken_package_is_told_and_breaks_nothing_else(
    tmp_path: Path,
    source: str | None,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plugin(tmp_path, source)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "ibex_db_plugin", raising=False)

    result = invoke("upgrade", "--sql")

    assert result.exit_code == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "ibex-db-plugin" in line]
    assert len(warnings) == 1
    assert all(word in warnings[0] for word in ["warning:", *told])


def test_a_warning_keeps_out_of_the_document_and_of_the_exit_code(tmp_path: Path) -> None:
    ran = execute("upgrade", "--sql", "--json", env=plugin(tmp_path, "raise RuntimeError('out of order')"))

    assert ran.returncode == 0
    assert json.loads(ran.stdout)["sql"]
    assert "out of order" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_completion_is_not_disturbed_by_a_broken_package(tmp_path: Path) -> None:
    env = plugin(tmp_path, None) | {"_IBEX_DB_COMPLETE": "complete_bash", "COMP_WORDS": "ibex-db up", "COMP_CWORD": "1"}

    ran = execute(env=env)

    assert (ran.stdout.strip(), ran.stderr) == ("upgrade", "")


def plugin(folder: Path, source: str | None) -> dict[str, str]:
    """Install a package with an entry point; None: without its module.  The environment that has it."""
    from textwrap import dedent

    told = folder / "ibex_db_plugin-1.0.dist-info"
    told.mkdir()
    told.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: ibex-db-plugin\nVersion: 1.0\n")
    told.joinpath("entry_points.txt").write_text("[ibex_db.commands]\nplugin = ibex_db_plugin:register\n")
    if source is not None:
        folder.joinpath("ibex_db_plugin.py").write_text(dedent(source))
    return {"PYTHONPATH": str(folder)}
