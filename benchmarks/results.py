"""What was found: kept for each measure in a file of its own, so that an interrupted run goes on."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

OURS = "ibex-db"
RAW = "hand-written asyncpg"

Case = Mapping[str, int | str]

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory", "sqlalchemy", "asyncpg", "pgvector", "numpy")


@dataclass(frozen=True)
class Finding:
    """Some numbers about one contestant in one case.

    Attributes:
        measure: which module found it.
        contestant: who.
        case: what the numbers hold for, as {"tenant": 1000}.
        values: the numbers, named with their units.
    """

    measure: str
    contestant: str
    case: Case
    values: Mapping[str, float]


class Results:
    """The findings of one run: a folder of JSON files, or the one file made of them."""

    def __init__(self, findings: Iterable[Finding], environment: Mapping[str, Any]) -> None:
        self.findings = list(findings)
        self.environment = environment

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read what :meth:`write` wrote."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        return cls([Finding(**found) for found in kept["findings"]], kept["environment"])

    def write(self, path: Path) -> None:
        """Write one file, the numbers to four digits."""
        findings = [asdict(found) | {"values": _rounded(found.values)} for found in self.findings]
        lines = ",\n".join(f"  {json.dumps(found)}" for found in findings)
        path.write_text(
            f'{{"environment": {json.dumps(self.environment, indent=1)},\n"findings": [\n{lines}\n]}}\n',
            encoding="utf-8",
        )

    def of(self, measure: str, contestant: str | None = None, /, **case: int | str) -> Sequence[Finding]:
        """Return the findings of a measure, of one contestant and in the cases that agree."""
        return [
            found
            for found in self.findings
            if found.measure == measure
            and contestant in {None, found.contestant}
            and all(found.case.get(name) == value for name, value in case.items())
        ]

    def values(self, name: str, measure: str, contestant: str | None = None, /, **case: int | str) -> Sequence[float]:
        """Return one number of each of these findings."""
        found = self.of(measure, contestant, **case)
        return [one.values[name] for one in found if name in one.values]


class Store:
    """The folder of a run: one file for each measure that is done."""

    def __init__(self, folder: Path, size: str) -> None:
        self._folder = folder / "measures"
        self._size = size
        self._folder.mkdir(parents=True, exist_ok=True)

    def done(self, measure: str) -> bool:
        """Tell whether a measure was made at this size."""
        path = self._path(measure)
        return path.exists() and json.loads(path.read_text(encoding="utf-8"))["environment"]["size"] == self._size

    def keep(self, measure: str, findings: Sequence[Finding]) -> None:
        """Keep a measure's findings, whole or not at all."""
        draft = self._path(measure).with_suffix(".draft")
        Results(findings, {"size": self._size}).write(draft)
        draft.rename(self._path(measure))

    def collect(self, measures: Iterable[str], environment: Mapping[str, Any]) -> Results:
        """Return the findings of the measures that are done."""
        done = [name for name in measures if self.done(name)]
        found = [finding for name in done for finding in Results.read(self._path(name)).findings]
        return Results(found, environment)

    def _path(self, measure: str) -> Path:
        return self._folder / f"{measure}.json"


def environment(size: str, server: Mapping[str, str], peers: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Say what the numbers were made with; nothing of it is a secret or a place."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 - whichever git is there
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "size": size,
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "server": dict(server),
        "packages": {name: version(name) for name in _PACKAGES},
        "peers": {name: dict(versions) for name, versions in peers.items()},
    }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") if abs(value) < 1000 else round(value) for name, value in values.items()}
