"""Types are an interface: what a consumer's mypy and pyright, both strict, make of the installed wheels."""

import functools
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from wheels import WHEELS, files, uv

CONSUMERS = Path(__file__).parent / "typing"

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
    "a misspelt column of a factory": (
        "nmae",
        """
from ibex_db_tenancy.testing import MakeAgent

async def test_a_service(make_agent: MakeAgent) -> None:
    await make_agent(nmae="Support")
""",
    ),
    "a factory's column of another type": (
        "role",
        """
from ibex_db import UserStatus
from ibex_db_tenancy.testing import MakeUser

async def test_a_service(make_user: MakeUser) -> None:
    await make_user(role=UserStatus.ACTIVE)
""",
    ),
    "a misspelt field of a draft": (
        "catgory",
        """
from ibex_db_memory.testing import MakeMemory

async def test_a_service(make_memory: MakeMemory) -> None:
    await make_memory("Prefers tea.", catgory="preference")
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

Check = Callable[[Path, str], subprocess.CompletedProcess[str]]


def _mypy(file: Path, python: str) -> subprocess.CompletedProcess[str]:
    cache = file.parent.parent / f"mypy-cache-{zlib.crc32(python.encode())}"  # what is slow is SQLAlchemy, not the file
    options = ("--strict", "--config-file=", f"--cache-dir={cache}", f"--python-executable={python}")
    return _run(sys.executable, "-m", "mypy", *options, file.name, at=file)


def _pyright(file: Path, python: str) -> subprocess.CompletedProcess[str]:
    (file.parent / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    return _run(sys.executable, "-m", "pyright", "--pythonpath", python, "-p", ".", at=file)


def _run(*command: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=at.parent, capture_output=True, text=True, check=False)  # noqa: S603 - checkers


both = pytest.mark.parametrize("check", [pytest.param(_mypy, id="mypy"), pytest.param(_pyright, id="pyright")])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder away from the repository, and so from its settings and its sources."""
    return tmp_path_factory.mktemp("consumer")


@pytest.fixture(scope="module")
def python_with(place: Path) -> Callable[[str], str]:
    """Make an environment of one wheel and what it requires, as a service has it, and give its Python."""

    @functools.cache
    def make(wheel: str) -> str:
        environment = place / f"with-{wheel}"
        python = environment / "bin" / "python"
        here = "".join(f"{line}\n" for line in uv("pip", "freeze", "--python", sys.executable).splitlines())
        versions = place / "versions.txt"
        # What this run is about; our own come as files.
        versions.write_text("".join(line for line in here.splitlines(keepends=True) if "ibex" not in line))
        uv("venv", "--quiet", "--python", sys.executable, environment)
        chosen = files(WHEELS[: WHEELS.index(wheel) + 1])
        plugin = ["pytest"] if wheel != WHEELS[0] else []
        uv("pip", "install", "--quiet", "--python", python, "--constraint", versions, *chosen, *plugin)
        return str(python)

    return make


@both
@pytest.mark.parametrize("wheel", WHEELS)
def test_a_service_gets_the_types_that_are_promised(
    place: Path, check: Check, wheel: str, python_with: Callable[[str], str]
) -> None:
    name = wheel.removeprefix("ibex-db-")
    file = place / f"right-{name}" / f"service_on_{name}.py"
    file.parent.mkdir(exist_ok=True)
    shutil.copy(CONSUMERS / f"{name}.py", file)

    done = check(file, python_with(wheel))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("wheel", WHEELS[:-1])
def test_a_name_of_an_absent_wheel_is_told(place: Path, wheel: str, python_with: Callable[[str], str]) -> None:
    """Otherwise the files above would pass with everything unknown."""
    file = place / f"absent-{wheel}" / "mistake.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("from ibex_db import Memory\n\nreveal_type(Memory.content)\n")

    done = _pyright(file, python_with(wheel))

    assert done.returncode == 1, done.stdout


@both
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_consumers_mistake_is_told(place: Path, check: Check, mistake: str) -> None:
    word, code = MISTAKES[mistake]
    file = place / mistake.replace(" ", "-") / "mistake.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(code)

    done = check(file, sys.executable)

    assert done.returncode == 1, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if "mistake.py:" in line and "error" in line]
    assert any(f'"{word}"' in line for line in told), done.stdout
