"""docs/tutorial.md does what it says: each command, each file, each output, in order."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from ibex_db_core.provisioning import Cluster

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
SERVER = re.compile(r"postgresql://(\w+):\.\.\.@db\.internal/notes")

# Each starts a server of its own, or talks to one.
SECONDS = 120


class Reader:
    """Somebody who follows the page, in an empty folder."""

    def __init__(self, folder: Path, home: str, cluster: Cluster, database: str, prefix: str) -> None:
        self.folder, self.cluster, self.database, self.prefix = folder, cluster, database, prefix
        # The plugin's server stays what it is in this run; all else is as on a new machine.
        theirs = {name: value for name, value in os.environ.items() if not name.startswith("IBEX_")}
        kept = {name: os.environ[name] for name in ("IBEX_TEST_DATABASE_URL",) if name in os.environ}
        self.environment = {**theirs, **kept, "IBEX_HOME": home, "PYTHONDONTWRITEBYTECODE": "1"}
        self.printed = ""

    def write(self, title: str, text: str) -> None:
        name, at_the_end, _ = title.partition(", at its end")
        with (self.folder / name).open("a" if at_the_end else "w") as file:
            file.write(text)

    def run(self, line: str) -> None:
        match shlex.split(self.addressed(line), comments=True):
            case ["uv", "init" | "add", *_]:
                pass  # what it would bring is installed here already
            case ["export", assignment]:
                name, _, value = assignment.partition("=")
                self.environment[name] = value
            case ["unset", name]:
                del self.environment[name]
            case ["uv", "run", *command]:
                self.printed = self.execute(command)
            case words:
                pytest.fail(f"the reader does not know what to do with {words}")

    def execute(self, command: list[str]) -> str:
        program = str(Path(sys.executable).with_name(command[0]))
        done = subprocess.run(  # noqa: S603 - what the page says
            [program, *command[1:]],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        assert "Warning" not in done.stderr, done.stderr
        return done.stdout

    def addressed(self, text: str) -> str:
        """Put this run's server in place of the page's, and logins of its own."""

        def address(found: re.Match[str]) -> str:
            login = found[1]
            if login == "postgres":
                return self.cluster.url(self.database).render_as_string(hide_password=False)
            url = self.cluster.url(self.database).set(
                username=login.replace("notes_", self.prefix), password=self.prefix
            )
            return url.render_as_string(hide_password=False)

        return SERVER.sub(address, text)

    async def ask_the_database(self, sql: str) -> None:
        address = self.cluster.url(self.database).render_as_string(hide_password=False)
        connection = await asyncpg.connect(address)
        try:
            await connection.execute(sql.replace("notes_", self.prefix).replace("'...'", f"'{self.prefix}'"))
        finally:
            await connection.close()


@pytest_asyncio.fixture
async def reader(tmp_path: Path, ibex_cluster: Cluster) -> AsyncIterator[Reader]:
    name = f"ibex_tutorial_{uuid4().hex[:12]}"
    prefix = f"t{uuid4().hex[:8]}_"
    await ibex_cluster.create_database(name)
    # Not tmp_path: only its owner may enter that, and root's embedded server becomes another user.
    with TemporaryDirectory(prefix="ibex-tutorial-", ignore_cleanup_errors=True) as home:
        reader = Reader(tmp_path, home, ibex_cluster, name, prefix)
        reader.write("pyproject.toml", '[project]\nname = "notes"\nversion = "0.1.0"\n')
        yield reader
    await ibex_cluster.drop_database(name)
    reader.database = "postgres"
    await reader.ask_the_database(
        "DROP ROLE IF EXISTS notes_service; DROP ROLE IF EXISTS notes_platform; DROP ROLE IF EXISTS notes_owner"
    )


async def test_the_first_hour_goes_as_written(reader: Reader) -> None:
    for language, title, text in BLOCKS:
        if title:
            reader.write(title, text)
        elif language == "console":
            for line in text.splitlines():
                reader.run(line.removeprefix("$ "))
        elif language == "text":
            assert reader.printed == text
        elif language == "sql":
            await reader.ask_the_database(text)
        else:
            pytest.fail(f"nobody runs this block: {text}")


def test_the_page_has_all_that_a_reader_needs() -> None:
    """A page that lost its blocks would pass the test above."""
    assert {title for _, title, _ in BLOCKS if title} == {
        "notes.py",
        "main.py",
        "walls.py",
        "test_notes.py",
        "pyproject.toml, at its end",
    }
    assert [language for language, _, _ in BLOCKS].count("text") == 4
