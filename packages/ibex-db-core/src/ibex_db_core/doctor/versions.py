"""Versions: the server and its extensions are past the holes that are known."""

from collections.abc import Iterator, Mapping

from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, finding

__all__ = ["OLDEST_VECTOR", "check_versions", "judge_server"]

OLDEST_MAJOR = 15

# Hole to what it lets happen, and the first release of each major without it.
_HOLES: Mapping[str, tuple[str, Mapping[int, int]]] = {
    "CVE-2025-8713": (
        "the planner's statistics tell of rows that a policy hides",
        {15: 14, 16: 10, 17: 6},
    ),
    "CVE-2026-6473": (
        "any login that runs SQL can corrupt the server's memory, and so run code in it",
        {15: 18, 16: 14, 17: 10, 18: 4},
    ),
}

# CVE-2026-3172: a parallel HNSW build reads and writes past its buffer, into other relations' data.
OLDEST_VECTOR = (0, 8, 2)

_SERVER = "SELECT current_setting('server_version_num') AS server"  # a cast would be the database's
_EXTENSIONS = """
    SELECT e.extname::text AS name, e.extversion AS installed, a.default_version AS available
      FROM pg_extension e LEFT JOIN pg_available_extensions a ON a.name = e.extname ORDER BY 1
"""


def check_versions(audit: Audit) -> Iterator[Finding]:
    """Server and extensions are new enough."""
    yield from judge_server(int(audit.rows(_SERVER)[0].server))
    for row in audit.rows(_EXTENSIONS):
        installed, available = numbers(row.installed), numbers(row.available or row.installed)
        name = audit.quote(row.name)
        update = f"ALTER EXTENSION {name} UPDATE"
        if row.name == "vector" and installed < OLDEST_VECTOR:
            wanted = ".".join(str(number) for number in OLDEST_VECTOR)
            yield finding(
                "vector-version",
                f"vector {row.installed}",
                "CVE-2026-3172: building an HNSW index can leak other tables' data, or crash the server",
                *([f"-- install pgvector {wanted} or later on the server first"] if available < OLDEST_VECTOR else []),
                update,
            )
        elif installed < available:
            yield finding(
                "extension-outdated",
                f"{name} {row.installed}",
                f"{row.available} is on the server: its library runs with the older version's definitions",
                update,
            )


def judge_server(number: int) -> Iterator[Finding]:
    """Tell what is known against a server version, as server_version_num counts: 170006 is 17.6."""
    major, minor = divmod(number, 10_000)
    if major < OLDEST_MAJOR:
        yield finding(
            "server-version",
            f"PostgreSQL {major}.{minor}",
            f"older than {OLDEST_MAJOR}: it lacks security_invoker views and ON DELETE SET NULL (column)",
            f"-- move to PostgreSQL {OLDEST_MAJOR} or later",
        )
        return
    for hole, (risk, fixed) in _HOLES.items():
        if minor < fixed.get(major, 0):
            yield finding(
                "server-version",
                f"PostgreSQL {major}.{minor}",
                f"{hole}: {risk}",
                f"-- update the server to {major}.{fixed[major]} or later",
            )


def numbers(version: str) -> tuple[int, ...]:
    """Read 0.8.10 as (0, 8, 10); what is no number ends it."""
    found: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        found.append(int(part))
    return tuple(found)
