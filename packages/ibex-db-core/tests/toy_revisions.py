"""A wheel of a service's own, installed for one test: its revisions are the bodies that the test writes."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent, indent
from uuid import uuid4

import pytest

Bodies = Sequence[tuple[str, str]]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, bodies: Bodies, *, after: str = "core_0001") -> Path:
    """Install revisions toy_0001 and on, each of the bodies of upgrade() and downgrade(); return where they lie."""
    package = f"toys_{uuid4().hex[:12]}"  # Python remembers a package that it has seen, and where
    versions = folder / package / "migrations" / "versions"
    versions.mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    facts = folder / f"{package}-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(f"[ibex_db.wheels]\ntoy = {package}\n")
    write(versions, bodies, after=after)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    importlib.invalidate_caches()
    return versions


def write(versions: Path, bodies: Bodies, *, after: str = "core_0001") -> None:
    """Write the revisions."""
    for number, (up, down) in enumerate(bodies, 1):
        first = number == 1
        (versions / f"toy_{number:04}.py").write_text(
            f'"""Step {number}."""\n'
            "from alembic import op\nfrom ibex_db_core.migrations import online\n"
            f"revision, down_revision = 'toy_{number:04}', {None if first else f'toy_{number - 1:04}'!r}\n"
            f"branch_labels, depends_on = {('toy',) if first else None!r}, {after if first else None!r}\n"
            f"def upgrade():\n{indent(dedent(up).strip() or 'pass', '    ')}\n"
            f"def downgrade():\n{indent(dedent(down).strip() or 'pass', '    ')}\n"
        )
