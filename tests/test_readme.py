"""README.md does what it says: each of its blocks is run, or compared with what it quotes."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import asyncpg
import pytest

from ibex_db import Agent, AgentRepository, Database, EngineSettings, Organization
from ibex_db_core.testing import TestDatabase

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLE = ROOT / "examples" / "quickstart.py"
AGENT_LOOP = ROOT / "examples" / "agent_loop.py"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _run(*command: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - what the README says
        [sys.executable, *command], cwd=at, capture_output=True, text=True, check=False
    )


def test_the_example_is_the_file_and_prints_what_is_shown(tmp_path: Path) -> None:
    assert _blocks("python")[0] == EXAMPLE.read_text()

    done = _run(str(EXAMPLE), at=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout == _blocks("text")[0]


def test_the_agent_remembers_recalls_consolidates_and_forgets(tmp_path: Path) -> None:
    done = _run(str(AGENT_LOOP), at=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "new         I prefer tea over coffee.",
        "new         My cat is called Miso.",
        "asked       What do I prefer, tea or coffee?",
        "recalled    I prefer tea over coffee.",
        "known       I prefer tea over coffee.",
        "new         I really prefer tea over coffee.",
        "merged into I prefer tea over coffee.",
        "new         I am in Rome until noon.",
        "asked       What is my cat called?",
        "recalled    My cat is called Miso.",
        "forgotten   1",
        "at hand     My cat is called Miso. (usefulness 0.667)",
        "at hand     I prefer tea over coffee. (usefulness 0.667)",
        "turns       7",
    ]


def test_a_bare_machine_needs_two_commands() -> None:
    demo, tests = _blocks("console")[:2]

    assert demo == "$ pip install uv && uv run ibex-db demo\n"
    assert tests == "$ uv run nox\n"
    assert README.index(tests) < README.index("## ")


def test_the_demo_holds_what_it_claims() -> None:
    command = _blocks("console")[0].rpartition("uv run ")[2].split()
    program = Path(sys.executable).with_name(command[0])
    # Not tmp_path: only its owner may enter that, and root's embedded server becomes another user.
    with TemporaryDirectory(prefix="ibex-readme-", ignore_cleanup_errors=True) as home:
        own = {name: value for name, value in os.environ.items() if not name.startswith("IBEX_")}
        done = subprocess.run(  # noqa: S603 - what the README says
            [program, *command[1:], "--json"],
            env={**own, "IBEX_HOME": home},
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    assert json.loads(done.stdout)


def test_the_continuous_run_uses_the_readmes_test_command() -> None:
    command = _blocks("console")[1].removeprefix("$ ").strip()

    assert re.search(rf"^{command} ", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_a_services_test_runs_as_written(tmp_path: Path) -> None:
    (tmp_path / "test_sign_up.py").write_text(_blocks("python")[1])

    done = _run("-m", "pytest", "-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", at=tmp_path)

    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


async def test_the_logins_are_fit_for_their_work(ibex_test_database: TestDatabase) -> None:
    name, cluster, prefix = ibex_test_database.name, ibex_test_database.cluster, f"r{uuid4().hex[:8]}"
    logins = [f"{prefix}_{kind}" for kind in ("service", "platform", "owner")]
    superuser = await asyncpg.connect(cluster.url(name).render_as_string(hide_password=False))
    try:
        await superuser.execute(_blocks("sql")[0].replace("memory_", f"{prefix}_").replace("'...'", f"'{prefix}'"))
        service, platform, owner = (
            cluster.url(name).set(username=login, password=prefix if cluster.password else None) for login in logins
        )
        async with Database(service, platform_url=platform, owner_url=owner) as db:
            assert await db.upgrade() == []
            async with db.platform(reason="sign-up") as session:
                acme = Organization(name="Acme", slug="acme")
                session.add(acme)
            async with db.tenant(acme.id) as session:
                await AgentRepository(session).add(Agent(name="Support", slug="support"))
                assert await AgentRepository(session).count() == 1
    finally:
        await superuser.execute(";".join(f"DROP ROLE IF EXISTS {login}" for login in logins))
        await superuser.close()


def test_the_table_of_settings_is_the_class() -> None:
    told = re.findall(r"^\| `([a-z_]+)` \| `(.*)` \| .+ \|$", README, re.MULTILINE)

    assert told == [
        (field.name, repr(getattr(EngineSettings(), field.name))) for field in dataclasses.fields(EngineSettings)
    ]


def test_the_table_of_variables_is_what_the_sources_read() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "packages").glob("*/src/**/*.py"))
    read = set(re.findall(r"(?<![A-Z_])IBEX_[A-Z_]*[A-Z]\b", sources))

    assert set(re.findall(r"^\| `(IBEX_[A-Z_]+)` \|", README, re.MULTILINE)) == read


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(file: str) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / file).read_text())

    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    records = {path.name for path in folder.glob("[0-9]*.md")}
    listed = set(re.findall(r"\]\((\d{4}-[^)]+)\)", (folder / "README.md").read_text()))

    assert records - listed == set(), "add them to docs/decisions/README.md"
    assert listed - records == set()
