"""What `nox -s build` looks at would be seen: a file too many, one too few, bytes that differ."""

import zipfile
from pathlib import Path

import artifacts
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

WHEELS = ("ibex-db-tenancy",)
INFO = "ibex_db_tenancy-1.0.0.dist-info"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Make a wheel of the right names, with nothing in them."""
    sources = ROOT / "packages" / "ibex-db-tenancy" / "src"
    names = [path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.is_file()]
    names = [name for name in names if "__pycache__" not in name]
    file = tmp_path / "ibex_db_tenancy-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in [*names, *(f"{INFO}/{one}" for one in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE"))]:
            archive.writestr(name, "")
    return file


def test_the_right_names_pass(wheel: Path) -> None:
    assert artifacts.check_contents(wheel, ROOT) > 20


def test_a_file_too_many_is_told(wheel: Path) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("ibex_db_tenancy/.env", "")

    with pytest.raises(SystemExit, match=r"ibex_db_tenancy/\.env"):
        artifacts.check_contents(wheel, ROOT)


def test_a_file_too_few_is_told(wheel: Path) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{INFO}/METADATA", "")

    with pytest.raises(SystemExit, match=r"py\.typed"):
        artifacts.check_contents(wheel, ROOT)


def test_builds_that_differ_are_told(wheel: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    (again / wheel.name).write_bytes(wheel.read_bytes() + b"\0")

    with pytest.raises(SystemExit, match="differ"):
        artifacts.assert_equal([wheel], again)


def test_a_folder_of_two_versions_is_refused(wheel: Path) -> None:
    wheel.with_name("ibex_db_tenancy-0.9.0.tar.gz").write_bytes(b"")

    with pytest.raises(SystemExit, match="not one"):
        artifacts.files(wheel.parent, WHEELS)


def test_a_folder_without_an_sdist_is_refused(wheel: Path) -> None:
    with pytest.raises(SystemExit, match=r"ibex_db_tenancy-1\.0\.0\.tar\.gz"):
        artifacts.files(wheel.parent, WHEELS)
