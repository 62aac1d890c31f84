"""What `nox -s build` made: the same bytes each time, with the right things inside."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# What an sdist holds beside the sources; what a wheel holds beside them is its .dist-info.
_BESIDE = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}
_DIST_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def epoch(root: Path) -> Mapping[str, str]:
    """Return SOURCE_DATE_EPOCH: what is set, or the time of the last commit."""
    if (given := os.environ.get("SOURCE_DATE_EPOCH")) is not None:
        return {"SOURCE_DATE_EPOCH": given}
    git = shutil.which("git") or "git"
    done = subprocess.run(  # noqa: S603 - our own words
        [git, "log", "-1", "--format=%ct"], cwd=root, capture_output=True, text=True, check=False
    )
    # Not a clone: hatchling's own date is as constant.
    return {"SOURCE_DATE_EPOCH": done.stdout.strip()} if done.returncode == 0 else {}


def files(folder: Path, wheels: Sequence[str]) -> list[Path]:
    """Return a wheel and an sdist for each, all of one version, and nothing else beside them."""
    found = sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")])
    versions = {file.name.removesuffix(".tar.gz").split("-")[1] for file in found}
    if len(versions) != 1:
        raise SystemExit(f"{folder} holds the versions {sorted(versions)}, not one: uv run nox -s build")
    (version,) = versions
    names = {wheel.replace("-", "_") for wheel in wheels}
    expected = {f"{name}-{version}{end}" for name in names for end in ("-py3-none-any.whl", ".tar.gz")}
    if {file.name for file in found} != expected:
        raise SystemExit(f"{folder} holds {[file.name for file in found]}, not {sorted(expected)}")
    return found


def sha256(file: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def assert_equal(built: Sequence[Path], again: Path) -> None:
    """Refuse two builds that differ."""
    different = [file.name for file in built if sha256(file) != sha256(again / file.name)]
    if different:
        raise SystemExit(f"two builds of the same sources differ: {different}")


def check_contents(file: Path, root: Path) -> int:
    """Refuse a file that lacks a source, or holds anything else; return how many files it holds."""
    name = file.name.split("-")[0]
    sources = root / "packages" / name.replace("_", "-") / "src"
    ours = {
        path.relative_to(sources).as_posix()
        for path in sources.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if file.suffix == ".whl":
        held = set(zipfile.ZipFile(file).namelist())
        info = f"{'-'.join(file.name.split('-')[:2])}.dist-info"
        expected, optional = ours | {f"{info}/{one}" for one in _DIST_INFO}, {f"{info}/entry_points.txt"}
    else:
        with tarfile.open(file) as archive:
            held = {one.name.partition("/")[2] for one in archive.getmembers() if one.isfile()}
        expected, optional = {f"src/{one}" for one in ours} | _BESIDE, {".gitignore"}
    if wrong := (held - expected) | (expected - held - optional):
        raise SystemExit(
            f"{file.name}: {sorted(wrong)} {'are' if len(wrong) > 1 else 'is'} missing, or should not be there"
        )
    return len(held)
