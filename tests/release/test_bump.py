"""`nox -s bump` on a clone: three versions, their bounds and the changelog, in one step or not at all."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from bump import bounds, bumped

ROOT = Path(__file__).resolve().parent.parent.parent
WHEELS = ("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory")


@pytest.mark.parametrize(("part", "after"), [("patch", "0.4.3"), ("minor", "0.5.0"), ("major", "1.0.0")])
def test_what_stands_behind_the_part_begins_anew(part: str, after: str) -> None:
    assert bumped("0.4.2", part) == after


@pytest.mark.parametrize(("version", "told"), [("0.4.2", ">=0.4.2,<0.5"), ("1.0.0", ">=1.0.0,<1.1")])
def test_siblings_share_a_minor_version(version: str, told: str) -> None:
    assert bounds(version) == told


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Give a copy of what git would commit, and of what it would not know yet."""
    git = shutil.which("git")
    assert git, "this test asks git which files are ours"
    listed = subprocess.run(  # noqa: S603 - our own words
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run([git, "init", "--quiet"], cwd=tmp_path, check=True)  # noqa: S603 - towncrier asks git
    return tmp_path


def _bump(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(clone / "tools" / "bump.py"), *words]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)  # noqa: S603 - our own words


def _projects(clone: Path) -> dict[str, str]:
    return {wheel: (clone / "packages" / wheel / "pyproject.toml").read_text() for wheel in WHEELS}


def _version(text: str) -> str:
    version: str = tomllib.loads(text)["project"]["version"]
    return version


def test_versions_bounds_lock_and_changelog_move_together(clone: Path) -> None:
    old = _version(_projects(clone)["ibex-db-core"])
    new = bumped(old, "minor")
    (clone / "changes" / "+walks.added.md").write_text("`Database.walk()` walks.\n")
    (clone / "tests" / "public_api" / "now.txt").write_text("walks\n")

    done = _bump(clone, "minor")

    assert done.returncode == 0, done.stdout + done.stderr
    projects = _projects(clone)
    assert {_version(text) for text in projects.values()} == {new}
    told = re.findall(r'"ibex-db-[a-z]+(?:\[[^]]+\])?([<>=][^"]+)"', "".join(projects.values()))
    assert set(told) == {bounds(new)}
    assert len(told) >= 6
    assert (clone / "uv.lock").read_text().count(f'version = "{new}"\nsource = {{ editable = "packages/') == len(WHEELS)
    changelog = (clone / "CHANGELOG.md").read_text()
    assert (
        changelog.index("<!-- releases -->")
        < changelog.index(f"## [{new}] - ")
        < changelog.index("- `Database.walk()`")
    )
    assert list((clone / "changes").glob("*.*.md")) == []
    assert (clone / "changes" / "README.md").exists()
    assert (clone / "tests" / "public_api" / "released.txt").read_text() == "walks\n"
    second = _bump(clone, "minor")
    assert second.returncode == 1
    assert "a release without a change is none" in second.stderr


def test_what_cannot_be_moved_moves_nothing(clone: Path) -> None:
    memory = clone / "packages" / "ibex-db-memory" / "pyproject.toml"
    memory.write_text(memory.read_text().replace('"ibex-db-tenancy>=', '"ibex-db-tenancy>=0.0.1,>='))
    before = _projects(clone)

    done = _bump(clone, "patch")

    assert done.returncode == 1
    assert "were not moved: ['ibex-db-tenancy" in done.stderr
    assert _projects(clone) == before


@pytest.mark.parametrize("words", [[], ["tiny"], ["minor", "major"]])
def test_the_part_must_be_named(clone: Path, words: list[str]) -> None:
    done = _bump(clone, *words)

    assert done.returncode == 1
    assert "say which part moves" in done.stderr
