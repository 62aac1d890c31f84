"""Types are an interface: what a consumer's mypy and pyright, both strict, make of the installed wheels."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CONSUMER = Path(__file__).parent / "typing" / "consumer.py"

# A mistake, and the word that both checkers' messages must name.
MISTAKES = {
    "a misspelt name": ("Memroy", "from ibex_db import Memroy"),
    "a misspelt attribute": ("Memroy", "import ibex_db; print(ibex_db.Memroy)"),
    "an unknown keyword": (
        "embeding",
        """
from ibex_db import MemoryRepository

async def search(memories: MemoryRepository) -> None:
    await memories.search(embeding=[1.0])
""",
    ),
    "another model": (
        "User",
        """
from uuid import UUID
from ibex_db import Agent, ScopedSession, UserRepository

async def get(session: ScopedSession, ident: UUID) -> Agent:
    return await UserRepository(session).get(ident)
""",
    ),
}

Check = Callable[[Path], subprocess.CompletedProcess[str]]


def _mypy(file: Path) -> subprocess.CompletedProcess[str]:
    cache = file.parent.parent / "mypy-cache"  # shared: what is slow is SQLAlchemy, not the file
    return _run(sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", file.name, at=file)


def _pyright(file: Path) -> subprocess.CompletedProcess[str]:
    (file.parent / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    return _run(sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", ".", at=file)


def _run(*command: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=at.parent, capture_output=True, text=True, check=False)  # noqa: S603 - checkers


both = pytest.mark.parametrize("check", [pytest.param(_mypy, id="mypy"), pytest.param(_pyright, id="pyright")])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder away from the repository, and so from its settings and its sources."""
    return tmp_path_factory.mktemp("consumer")


@both
def test_a_consumer_gets_the_types_that_are_promised(place: Path, check: Check) -> None:
    file = place / "right" / "consumer.py"
    file.parent.mkdir(exist_ok=True)
    shutil.copy(CONSUMER, file)

    done = check(file)

    assert done.returncode == 0, done.stdout + done.stderr


@both
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_consumers_mistake_is_told(place: Path, check: Check, mistake: str) -> None:
    word, code = MISTAKES[mistake]
    file = place / mistake.replace(" ", "-") / "mistake.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(code)

    done = check(file)

    assert done.returncode == 1, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if "mistake.py:" in line and "error" in line]
    assert any(f'"{word}"' in line for line in told), done.stdout
