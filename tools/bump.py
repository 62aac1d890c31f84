"""Move the three wheels' version and their bounds on each other, and write the changelog from its fragments.

    nox -s bump -- minor        or patch, or major

Nothing is committed: look at the diff first.  RELEASING.md has the steps around it.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory")
PARTS = ("major", "minor", "patch")


def bumped(version: str, part: str) -> str:
    """Return the version after it."""
    numbers = [int(number) for number in version.split(".")]
    at = PARTS.index(part)
    return ".".join(map(str, [*numbers[:at], numbers[at] + 1, *[0] * (2 - at)]))


def bounds(version: str) -> str:
    """Return how a wheel requires its siblings: the same minor version, and no older patch."""
    major, minor, _ = version.split(".")
    return f">={version},<{major}.{int(minor) + 1}"


def moved(text: str, old: str, new: str) -> str:
    """Return a pyproject.toml at the new version."""
    text, versions = re.subn(rf'^version = "{re.escape(old)}"$', f'version = "{new}"', text, flags=re.MULTILINE)
    if versions != 1:
        raise SystemExit(f"a pyproject.toml names its version {versions} times, not once")
    text = re.sub(rf'("ibex-db-[a-z]+(?:\[[a-z,]+\])?){re.escape(bounds(old))}"', rf'\g<1>{bounds(new)}"', text)
    left = re.findall(r'"(ibex-db-[a-z]+[^"]*[<>=][^"]*)"', text)
    if wrong := [line for line in left if not line.endswith(bounds(new))]:
        raise SystemExit(f"these bounds are not {bounds(old)}, and so were not moved: {wrong}")
    return text


def main(words: list[str]) -> None:
    """Do it."""
    if len(words) != 1 or words[0] not in PARTS:
        raise SystemExit("say which part moves: nox -s bump -- patch, minor or major")
    files = {wheel: ROOT / "packages" / wheel / "pyproject.toml" for wheel in WHEELS}
    versions = {tomllib.loads(file.read_text())["project"]["version"] for file in files.values()}
    if len(versions) != 1:
        raise SystemExit(f"the wheels disagree on their version: {sorted(versions)}")
    if not any(ROOT.joinpath("changes").glob("*.*.md")):
        raise SystemExit("changes/ holds no fragment: a release without a change is none")
    (old,) = versions
    new = bumped(old, words[0])
    texts = {file: moved(file.read_text(), old, new) for file in files.values()}  # all of them, before one is written
    for file, text in texts.items():
        file.write_text(text)
    _run("uv", "lock", "--quiet")
    _run("towncrier", "build", "--yes", "--version", new)
    # What is public now is what the next changes are compared with.
    shutil.copy(ROOT / "tests" / "public_api" / "now.txt", ROOT / "tests" / "public_api" / "released.txt")
    print(f"{old} is now {new}; look at `git diff`, then go on in RELEASING.md")


def _run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603 - our own words


if __name__ == "__main__":
    main(sys.argv[1:])
