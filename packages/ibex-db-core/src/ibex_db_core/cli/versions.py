"""`ibex-db --version`."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from rich.console import RenderableType
from rich.table import Table

from ibex_db_core.console import Result

_PACKAGES = ("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory", "sqlalchemy", "asyncpg", "pgvector")


@dataclass(frozen=True)
class Versions(Result):
    """Package to version; None for one that is not installed."""

    versions: dict[str, str | None]

    @classmethod
    def installed(cls) -> "Versions":
        """Look at what is installed here."""
        return cls({package: _version(package) for package in _PACKAGES})

    def facts(self) -> object:
        """Return the mapping itself."""
        return self.versions

    def __rich__(self) -> RenderableType:
        """Return one package a line."""
        lines = Table.grid(padding=(0, 2))
        for package, number in self.versions.items():
            lines.add_row(package, number or "not installed")
        return lines


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
