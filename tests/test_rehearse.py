"""docs/how-to/rehearse.md does what it says: a server in one shell, a deployment in another."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
SECONDS = 120.0

CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r'^```python title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not of tmp_path: only its owner may enter that, and root's embedded server becomes another user.
    with TemporaryDirectory(prefix="ibex-rehearse-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o755)
        yield Path(made)


def _shell(block: str) -> str:
    """Return what a block of the page types; what `uv run` runs is installed here already."""
    return "\n".join(line.removeprefix("$ ").replace("uv run ", "") for line in block.splitlines())


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IBEX_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@contextmanager
def _server(command: str, folder: Path) -> Generator[None]:
    printed = folder / "rehearsal.env"
    running = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=_environment())  # noqa: S603, S607
    try:
        end = time.monotonic() + SECONDS
        while not printed.exists() or "IBEX_OWNER_URL" not in printed.read_text():
            assert running.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        yield
    finally:
        running.terminate()
        running.wait(SECONDS)


def test_a_deployment_is_rehearsed_as_written(folder: Path) -> None:
    page = (DOCS / "how-to" / "rehearse.md").read_text()
    tutorial = (DOCS / "tutorial.md").read_text()
    for title, text in [*FILE.findall(page), *FILE.findall(tutorial)]:
        (folder / title).write_text(text)
    server, *steps = map(_shell, CONSOLE.findall(page))

    with _server(server, folder):
        done = subprocess.run(  # noqa: S603
            ["bash", "-ec", "\n".join(steps)],  # noqa: S607
            cwd=folder,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing to do: every revision is applied." in done.stdout  # the owner's login finds it done
    assert "Nothing found" in done.stdout
    assert done.stdout.endswith("new\nacme: ['The vault code is 4711.']\nglobex: []\n")
