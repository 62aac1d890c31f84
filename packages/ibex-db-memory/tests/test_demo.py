"""`ibex-db demo` as a person runs it: a process of its own, its words and its exit code."""

# ruff: noqa: S603 - the processes are ours

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import asyncpg
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from ibex_db_core.cli.app import build
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN, Cluster
from ibex_db_memory.demo.report import Report
from ibex_db_memory.demo.story import play

SECONDS = 120
CLAIMS = 38

Environment = Mapping[str, str]

# What would make Rich believe in a terminal, or ibex-db in another database.
_MISLEADING = re.compile("IBEX_|FORCE_COLOR|GITHUB_ACTIONS|PY_COLORS|NO_COLOR|COLUMNS|TTY_|_IBEX")


def clean(**more: str) -> Environment:
    return {name: value for name, value in os.environ.items() if not _MISLEADING.match(name)} | more


def run(environment: Environment, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ibex_db_core.cli", "demo", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)


def within(environment: Environment, *arguments: str) -> Result:
    """Run it in this process, which spares a start: what an exit code and two streams can tell."""
    none = dict.fromkeys((name for name in os.environ if _MISLEADING.match(name)), None)
    return CliRunner().invoke(build(), ["demo", *arguments], env={**none, **environment})


def report(environment: Environment, *arguments: str) -> dict[str, Any]:
    done = within(environment, "--json", *arguments)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return cast("dict[str, Any]", json.loads(done.stdout))


def outcomes(told: dict[str, Any]) -> list[str]:
    return [chapter["outcome"] for chapter in told["chapters"]]


@pytest.fixture
def database(ibex_cluster: Cluster, ibex_template: str) -> Iterator[str]:
    name = f"ibex_test_{uuid4().hex[:12]}"
    asyncio.run(ibex_cluster.create_database(name, template=ibex_template))
    yield name
    asyncio.run(ibex_cluster.drop_database(name))


@pytest.fixture
def addresses(ibex_cluster: Cluster, database: str) -> Environment:
    """Give the environment of a service on a migrated database of its own."""
    logins = {"IBEX_DATABASE_URL": SERVICE_LOGIN, "IBEX_PLATFORM_URL": PLATFORM_LOGIN, "IBEX_OWNER_URL": None}
    return clean(
        **{
            name: ibex_cluster.url(database, user=login).render_as_string(hide_password=False)
            for name, login in logins.items()
        }
    )


@pytest.fixture
def own_corpus(tmp_path: Path) -> list[str]:
    """Write a small corpus, and return the options that name it."""
    random = np.random.default_rng(7)
    memories = [{"conversation": at % 2, "dia_id": f"D{at}", "text": f"Turn {at}."} for at in range(40)]
    questions = [{"conversation": at % 2, "question": f"Which {at}?", "evidence": [f"D{at}"]} for at in range(6)]
    vectors = random.standard_normal((40, 384)).astype(np.float32)
    asked = vectors[:6] + np.float32(0.1) * random.standard_normal((6, 384)).astype(np.float32)
    options: list[str] = []
    for option, rows, array in (("input", memories, vectors), ("questions", questions, asked)):
        path = tmp_path / f"{option}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        np.save(tmp_path / f"{option}.npy", array)
        of_it = "--vectors" if option == "input" else "--question-vectors"
        options += [f"--{option}", str(path), of_it, str(tmp_path / f"{option}.npy")]
    return options


def test_with_nothing_configured_it_runs_twice(tmp_path: Path) -> None:
    """On the embedded Postgres of a fresh home: everything is new, then everything is known."""
    home = clean(IBEX_HOME=str(tmp_path / "home"))

    runs = run(home, "--json"), run(home, "--json")

    assert [(done.returncode, done.stderr) for done in runs] == [(0, "")] * 2
    first, second = (json.loads(done.stdout) for done in runs)
    for told in (first, second):
        assert told["holds"] is True
        assert (told["claims_held"], told["claims_made"]) == (CLAIMS, CLAIMS)
        assert all(claim["holds"] for chapter in told["chapters"] for claim in chapter["claims"])
        assert [(each["slug"], each["memories"]) for each in told["organizations"]] == [
            ("demo-northwind-clinic", 111),  # one of them has the history
            ("demo-harbor-robotics", 95),
        ]
        assert told["searches"][0]["evidence_recall_at_10"] == 1.0
        assert [one["operation"] for one in told["history"]] == ["created", "updated", "reverted"]
        assert len(told["hot"]) == 5
    assert any("205 created, 0 known" in outcome for outcome in outcomes(first))
    assert any("0 created, 205 known" in outcome for outcome in outcomes(second))
    assert [each["id"] for each in first["organizations"]] == [each["id"] for each in second["organizations"]]


def test_people_read_the_verdict_first_and_last(addresses: Environment) -> None:
    """And what was done, and how long it took."""
    done = run(addresses)

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "ibex-db demo" in lines[0]
    assert f"{CLAIMS} of {CLAIMS} claims hold" in done.stdout
    assert lines[-1] == f"All {CLAIMS} claims hold."
    for told in ("205 created", "Isolation", "Hot memories", "Version history", "<-", "ForeignKeyError"):
        assert told in done.stdout, told
    assert "cross-tenant session" not in done.stderr


def test_it_leaves_with_1_where_a_claim_does_not_hold(
    ibex_cluster: Cluster, database: str, addresses: Environment
) -> None:
    """Somebody switched row-level security off."""

    async def open_the_wall() -> None:
        connection = await asyncpg.connect(ibex_cluster.url(database).render_as_string(hide_password=False))
        try:
            await connection.execute("ALTER TABLE ibex_core.memories DISABLE ROW LEVEL SECURITY")
        finally:
            await connection.close()

    asyncio.run(open_the_wall())

    people, machine = run(addresses), within(addresses, "--json")

    assert people.returncode == machine.exit_code == 1
    assert "claims do NOT hold" in people.stdout
    told = json.loads(machine.stdout)
    assert told["holds"] is False
    assert told["claims_held"] < told["claims_made"]


def test_two_at_once_do_not_disturb_each_other(addresses: Environment) -> None:
    """Both find all their claims to hold, whoever created what."""
    command = [sys.executable, "-m", "ibex_db_core.cli", "demo", "--json"]
    both = [
        subprocess.Popen(command, env=addresses, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]

    told = [process.communicate(timeout=SECONDS) for process in both]

    assert [process.returncode for process in both] == [0, 0, 0], told


def test_somebodys_own_memories_go_into_an_organization_of_their_own(
    addresses: Environment, own_corpus: list[str]
) -> None:
    """Its questions are asked, and a second run loses nothing."""
    first, second = report(addresses, *own_corpus), report(addresses, *own_corpus)

    for told in (first, second):
        own = told["organizations"][2]
        assert (own["slug"], own["agents"], own["memories"]) == ("demo-input", ["0", "1"], 40)
        searched = told["searches"][1]
        assert (searched["corpus"], searched["questions"], searched["counted"]) == ("input", 6, 6)
        assert searched["evidence_recall_at_10"] == 1.0
        assert searched["samples"][0]["hits"][0]["expected"] is True
        assert told["proof_of"] == ["Input", "Harbor Robotics"]
    assert any("40 created, 0 known" in outcome for outcome in outcomes(first))
    assert any("0 created, 40 known" in outcome for outcome in outcomes(second))


def test_memories_without_questions_are_enough(addresses: Environment, own_corpus: list[str]) -> None:
    told = report(addresses, *own_corpus[:4])

    assert told["organizations"][2]["memories"] == 40
    assert len(told["searches"]) == 1


def test_a_bad_file_is_told_before_anything_is_stored(tmp_path: Path, own_corpus: list[str]) -> None:
    """File, line and rule; no database is opened for it."""
    Path(own_corpus[1]).write_text('{"text": "fine"}\n{"content": ""}\n')
    home = tmp_path / "home"

    people = within({"IBEX_HOME": str(home)}, *own_corpus)
    machine = within({"IBEX_HOME": str(home)}, "--json", *own_corpus)

    assert people.exit_code == machine.exit_code == 3
    assert "error: input.jsonl, line 2: content must not be blank" in people.stderr
    error = json.loads(machine.stdout)["error"]
    assert (error["type"], error["file"], error["line"], error["field"]) == (
        "FileInputError",
        "input.jsonl",
        2,
        "content",
    )
    assert not home.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--input", "a.jsonl"],
        ["--vectors", "a.npy"],
        ["--input", "a.jsonl", "--vectors", "a.npy", "--questions", "q.jsonl"],
        ["--questions", "q.jsonl", "--question-vectors", "q.npy"],
    ],
)
def test_files_that_belong_together_are_asked_for(options: list[str]) -> None:
    assert within({}, *options).exit_code == 2


def test_without_numpy_the_command_names_the_extra_that_brings_it(
    addresses: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel alone does not need it."""
    monkeypatch.setitem(sys.modules, "numpy", None)

    done = within(addresses)

    assert done.exit_code == 3
    assert "ibex-db-memory[cli]" in done.stderr


def test_the_proof_needs_no_terminal_library() -> None:
    """Test suites use it, and install no command line."""
    code = (
        "import sys; sys.modules['rich'] = sys.modules['typer'] = sys.modules['numpy'] = None; "
        "from ibex_db_memory.demo import Claim, prove_isolation"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=SECONDS)


def test_every_module_is_short() -> None:
    """A noun each."""
    for module in (files("ibex_db_memory") / "demo").iterdir():
        if module.name.endswith(".py"):
            assert len(module.read_text(encoding="utf-8").splitlines()) < 250, module.name


async def test_a_report_is_one_object_for_people_and_machines(ibex_cluster: Cluster, database: str) -> None:
    """Drawn from the facts alone, whatever the width; and progress is told on the way."""
    told: list[str] = []
    async with ibex_cluster.database(database) as db:
        found = await play(db, tell=lambda what, _done, _total: told.append(what))

    assert isinstance(found, Report)
    assert "proving isolation" in told
    assert found.exit_code == 0
    for width in (60, 80, 120):
        page = StringIO()
        Console(width=width, file=page).print(found)
        assert all(len(line) <= width for line in page.getvalue().splitlines())
