"""The licences of everything that the wheels bring into a service, listed in docs/licences.md, and checked.

    uv run python tools/licences.py            writes the page anew
    uv run python tools/licences.py --check    refuses a licence that is not agreed, and a page that is out of date

Looked at is what uv.lock names for the three wheels with all their extras, as it is installed here.
"""

import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
WHEELS = ("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory")

# A service may use these and say no more than their notices: permissive, or copyleft by file.
AGREED = {
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MPL-2.0",
    "PostgreSQL",
    "PSF-2.0",
    "Python-2.0",
    "Zlib",
    "0BSD",
    "CC0-1.0",
    "Unlicense",
}

# How older packages say the same.
_SPELLINGS = {
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PostgreSQL License": "PostgreSQL",
    "Python Software Foundation License": "PSF-2.0",
}

_HEAD = """\
# Licences

ibex-db is under Apache-2.0. What it brings into a service, with every extra, at the versions that are tested;
written by `uv run python tools/licences.py`, checked by `nox -s lint`.

| package | version | licence |
|---|---|---|
"""


def required() -> list[str]:
    """Return the names of what the wheels require, directly or not."""
    packages = [f"--package={wheel}" for wheel in WHEELS]
    options = ("--all-extras", "--no-dev", "--no-hashes", "--no-header", "--no-annotate", "--no-emit-workspace")
    command = ("uv", "export", "--quiet", "--locked", *packages, *options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 - our own words
    # What another system needs may lie here too, brought by a tool: it is not on the page, whatever environment asks.
    lines = (line.partition(" ; ") for line in done.stdout.splitlines())
    here = {line for line, _, marker in lines if not marker or Marker(marker).evaluate()}
    return sorted({match[1] for line in here if (match := re.match(r"([A-Za-z0-9._-]+)==", line))})


def licence(package: Distribution) -> str:
    """Return what a package says of itself, as SPDX spells it where that is known."""
    metadata = package.metadata.json
    said = str(metadata.get("license_expression", ""))
    if not said:
        classifiers = [str(line) for line in metadata.get("classifier", []) if str(line).startswith("License ::")]
        named = [line.rpartition(" :: ")[2] for line in classifiers if line != "License :: OSI Approved"]
        field = str(metadata.get("license", "")).strip()
        # The field may hold the licence's whole text; then the classifier says which.
        said = field if field and "\n" not in field else " AND ".join(named)
    return _SPELLINGS.get(said, said) or "not said"


def is_agreed(expression: str) -> bool:
    """Tell whether a licence may come into a service: every part of AND, one part of OR."""
    return any(
        all(part.strip(" ()") in AGREED for part in either.split(" AND ")) for either in expression.split(" OR ")
    )


def main(words: list[str]) -> None:
    """Write the page, or check it."""
    found: list[tuple[str, str, str]] = []
    for name in required():
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # of another system or Python
        found.append((name, package.version, licence(package)))
    if refused := [f"{name} {version}: {what}" for name, version, what in found if not is_agreed(what)]:
        raise SystemExit("these licences are not agreed (AGREED in tools/licences.py): " + "; ".join(refused))
    page = _HEAD + "".join(f"| {name} | {version} | {what} |\n" for name, version, what in found)
    if "--check" not in words:
        PAGE.write_text(page)
    elif PAGE.read_text() != page:
        raise SystemExit("docs/licences.md is out of date: uv run python tools/licences.py")
    print(f"{len(found)} packages, all under licences that are agreed")


if __name__ == "__main__":
    main(sys.argv[1:])
