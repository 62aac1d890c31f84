"""The built wheels: what they require, what is in them, and what is not."""

import re
import tomllib
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import wheels as wheels_built

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = {
    "ibex-db-core": {"ibex_db", "ibex_db_core"},
    "ibex-db-tenancy": {"ibex_db_tenancy"},
    "ibex-db-memory": {"ibex_db_memory"},
}
BELOW: dict[str, set[str]] = {
    "ibex-db-core": set(),
    "ibex-db-tenancy": {"ibex-db-core"},
    "ibex-db-memory": {"ibex-db-core", "ibex-db-tenancy"},
}
# What a wheel carries besides Python: migrations are Python, but not packages, and demo data are data.
DATA = {
    "ibex-db-core": {
        "ibex_db_core/migrations/env.py",
        "ibex_db_core/migrations/script.py.mako",
        "ibex_db_core/migrations/versions/core_0001_roles.py",
    },
    "ibex-db-tenancy": {"ibex_db_tenancy/migrations/versions/tenancy_0001_initial.py"},
    "ibex-db-memory": {
        "ibex_db_memory/migrations/versions/memory_0001_initial.py",
        "ibex_db_memory/demo_data/memories.jsonl",
        "ibex_db_memory/demo_data/memory_vectors.npy",
        "ibex_db_memory/demo_data/questions.jsonl",
        "ibex_db_memory/demo_data/question_vectors.npy",
    },
}

_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[(?P<extras>[^]]*)\])?\s*(?P<bounds>[^;]*)")

wheels = pytest.mark.parametrize("wheel", PACKAGES)


@pytest.fixture(scope="session")
def built() -> Path:
    """Give the folder of the built wheels."""
    return wheels_built.built()


def _open(built: Path, wheel: str) -> zipfile.ZipFile:
    (file,) = built.glob(f"{wheel.replace('-', '_')}-*.whl")
    return zipfile.ZipFile(file)


def _metadata(built: Path, wheel: str) -> Message:
    with _open(built, wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def _requirements(lines: Iterable[str]) -> dict[str, set[str]]:
    """Return the bounds of each required distribution."""
    found: dict[str, set[str]] = {}
    for line in lines:
        match = _REQUIREMENT.match(line)
        assert match, line
        bounds = {bound.strip() for bound in match["bounds"].split(",") if bound.strip()}
        found.setdefault(match["name"].lower(), set()).update(bounds)
    return found


def _project(wheel: str) -> dict[str, Any]:
    with (ROOT / "packages" / wheel / "pyproject.toml").open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return project


@wheels
def test_every_dependency_is_bounded_on_both_sides(built: Path, wheel: str) -> None:
    required = _requirements(_metadata(built, wheel).get_all("Requires-Dist") or [])
    required.pop(wheel, None)  # its own extras, by name

    assert required
    for name, bounds in required.items():
        exact = any(bound.startswith("==") for bound in bounds)
        both = any(bound.startswith(">=") for bound in bounds) and any(bound.startswith("<") for bound in bounds)
        assert exact or both, f"{wheel} requires {name} {bounds or 'without bounds'}"


@wheels
def test_siblings_are_required_within_the_shared_version(built: Path, wheel: str) -> None:
    version = _metadata(built, wheel)["Version"]
    major, minor, _ = version.split(".")
    required = _requirements(_metadata(built, wheel).get_all("Requires-Dist") or [])

    assert required.keys() & PACKAGES.keys() - {wheel} == BELOW[wheel]
    for sibling in BELOW[wheel]:
        assert required[sibling] == {f">={version}", f"<{major}.{int(minor) + 1}"}


@wheels
def test_a_wheel_holds_its_packages_and_their_data_and_nothing_else(built: Path, wheel: str) -> None:
    with _open(built, wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    sources = ROOT / "packages" / wheel / "src"
    expected = {
        path.relative_to(sources).as_posix()
        for path in sources.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES[wheel]
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert expected >= DATA[wheel]
    assert not [name for name in names if "test_" in name or "/tests/" in name or "conftest" in name]


@wheels
def test_every_package_says_that_it_is_typed(built: Path, wheel: str) -> None:
    with _open(built, wheel) as archive:
        assert {f"{package}/py.typed" for package in PACKAGES[wheel]} <= set(archive.namelist())


@wheels
def test_a_wheel_carries_its_license_and_a_description(built: Path, wheel: str) -> None:
    metadata = _metadata(built, wheel)
    with _open(built, wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()

    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"]
    assert f"# {wheel}" in metadata.get_payload()
    assert len(metadata.get_payload()) > len(f"# {wheel}\n")


@wheels
def test_the_wheels_agree_on_python_and_on_what_they_share(wheel: str) -> None:
    core, own = _project("ibex-db-core"), _project(wheel)
    shared = _requirements(core["dependencies"])

    assert own["requires-python"] == core["requires-python"]
    for name, bounds in _requirements(own["dependencies"]).items():
        assert name in PACKAGES or shared[name] == bounds
