"""The built wheels: those of the nox session, or made here."""

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory")


def uv(*words: str | Path) -> str:
    """Run uv, and return what it printed."""
    program = shutil.which("uv")
    assert program, "this test builds or installs wheels: install uv"
    done = subprocess.run([program, *words], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - uv
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def built() -> Path:
    """Return the folder of all three."""
    if given := os.environ.get("IBEX_WHEELS"):
        return Path(given)
    # One build for each process of tests; /tmp is the system's to empty.
    folder = Path(tempfile.mkdtemp(prefix="ibex-wheels-"))
    uv("build", "--quiet", "--wheel", "--all-packages", "--out-dir", folder)
    return folder


def files(wheels: Sequence[str]) -> list[Path]:
    """Return these wheels' files."""
    return [next(built().glob(f"{wheel.replace('-', '_')}-*.whl")) for wheel in wheels]
