"""What was found: kept for each measure in a file of its own, so that an interrupted run goes on."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.peers.recipes import Recipe

OURS = "ibex-db"
RAW = "hand-written asyncpg"

Case = Mapping[str, int | str]

_ROOT = Path(__file__).parents[1]
_PACKAGES = (
    *("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory", "sqlalchemy", "asyncpg", "pgvector", "numpy"),
    "advanced-alchemy",  # the rival of the repository verbs; with the group bench
)
_CODE = ("benchmarks", "packages", "uv.lock")


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
    """The folder of a run: one file for each measure that is done.

    A measure is done where it was made with the same things: code, versions, server and peers.  So no figures of
    another run get among this one's.
    """

    def __init__(self, folder: Path, made_with: Mapping[str, Any]) -> None:
        self._folder = folder / "measures"
        self._made_with = made_with
        self._folder.mkdir(parents=True, exist_ok=True)

    def done(self, measure: str) -> bool:
        """Tell whether a measure was made with the same things."""
        path = self._path(measure)
        return path.exists() and Results.read(path).environment.get("with") == self._made_with

    def keep(self, measure: str, findings: Sequence[Finding], moment: Mapping[str, Any]) -> None:
        """Keep a measure's findings and when it was made, whole or not at all."""
        draft = self._path(measure).with_suffix(".draft")
        Results(findings, {"with": self._made_with, "moment": moment}).write(draft)
        draft.rename(self._path(measure))

    def collect(self, measures: Iterable[str], peers: Mapping[str, Mapping[str, str]]) -> Results:
        """Return the findings of the measures that are done, when each was made, and what the peers consist of."""
        done = {name: Results.read(self._path(name)) for name in measures if self.done(name)}
        found = [finding for kept in done.values() for finding in kept.findings]
        moments = {name: kept.environment["moment"] for name, kept in done.items()}
        return Results(found, {**self._made_with, "peers": peers, "measures": moments})

    def _path(self, measure: str) -> Path:
        return self._folder / f"{measure}.json"


def environment(size: str, server: Mapping[str, str], peers: Sequence[Recipe]) -> dict[str, Any]:
    """Say what the numbers are made with; nothing of it is a secret or a place."""
    return {
        "size": size,
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "server": dict(server),
        "packages": {name: known for name in _PACKAGES if (known := _version(name)) is not None},
        "peers": {peer.name: {"requirements": [*peer.requirements], "settings": peer.settings} for peer in peers},
    }


def moment() -> dict[str, Any]:
    """Say when it is, and how many processes have wanted a processor in the last minute."""
    return {"began": datetime.now(UTC).isoformat(timespec="seconds"), "load": round(os.getloadavg()[0], 2)}


def _commit() -> str:
    """Name the code that runs: a commit, and what of it is changed by a short hash."""
    commit = _git("rev-parse", "--short", "HEAD").strip()
    changed = _git("diff", "HEAD", "--", *_CODE)
    return (commit or "unknown") + (f" changed {hashlib.sha256(changed.encode()).hexdigest()[:7]}" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own words
        ["git", *arguments],  # noqa: S607 - whichever git is there
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") if abs(value) < 1000 else round(value) for name, value in values.items()}
