"""What the doctor finds, and how grave each kind of it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CODES", "PERFORMANCE_CODES", "Finding", "Report", "Severity", "finding"]


class Severity(StrEnum):
    """How soon somebody should act."""

    CRITICAL = "critical"
    """Rows of one organization are open to another, now."""
    HIGH = "high"
    """One more mistake, or one curious tenant, away from that; or data are lost."""
    MEDIUM = "medium"
    """A guard is weakened, or the service will break or slow down."""
    LOW = "low"
    """Worth knowing; may be meant."""

    @property
    def rank(self) -> int:
        """0 for the gravest."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        code: what kind, stable from release to release; docs/doctor.md explains each.
        object: which table, policy, function, role, ...; qualified where it lies in a schema.
        risk: what an attacker or an accident could do.
        remedy_sql: the statements that mend it, run as they are by the owner (roles and
            versions: by a superuser); lines that begin with ``--`` where no SQL can.
    """

    code: str
    severity: Severity
    object: str
    risk: str
    remedy_sql: str


@dataclass(frozen=True, slots=True)
class Report:
    """All findings of one audit, the gravest first."""

    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """True where nothing was found."""
        return not self.findings

    def without(self, codes: frozenset[str]) -> "Report":
        """Return the report without some kinds of finding."""
        return Report(tuple(found for found in self.findings if found.code not in codes))


def finding(code: str, where: str, risk: str, *remedy: str, severity: Severity | None = None) -> Finding:
    """Make a finding; its severity is that of its code unless the case is graver or milder."""
    return Finding(code, severity or CODES[code], where, risk, _script(remedy))


def _script(statements: tuple[str, ...]) -> str:
    """Join statements, each ended by a semicolon, comments left as they are."""
    return "\n".join(line if line.startswith("--") else f"{line};" for line in statements)


_C, _H, _M, _L = Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM, Severity.LOW

PERFORMANCE_CODES: Mapping[str, Severity] = {
    "hot-updates": _M,
    "dead-rows": _M,
    "statistics-stale": _M,
    "partition-skew": _L,
    "index-unused": _L,
    "index-bloated": _L,
    "vector-index-memory": _M,
    "vector-index-build": _L,
    "transaction-old": _M,
    "statement-slow": _M,
    "transaction-age": _H,
    "activity-hidden": _L,
}
"""Those of the audit of performance."""

CODES: Mapping[str, Severity] = {
    # tables
    "rls-disabled": _C,
    "rls-not-forced": _H,
    "org-nullable": _H,
    "table-owner": _H,
    "table-rule": _H,
    "table-unlogged": _M,
    "table-heir": _C,
    # policies
    "policy-missing": _M,
    "policy-floor-missing": _H,
    "policy-changed": _C,
    "policy-extra": _C,
    "policy-function": _H,
    # signing
    "signing-mixed": _C,
    "signing-keys": _C,
    # grants
    "grant-public": _H,
    "grant-excess": _H,
    "grant-column": _H,
    "grant-partition": _H,
    "grant-other": _M,
    "grant-missing": _M,
    "grant-default": _H,
    "schema-create": _H,
    "schema-usage": _M,
    "schema-owner": _H,
    # keys
    "key-without-org": _C,
    "unique-without-org": _H,
    "constraint-missing": _H,
    "constraint-changed": _H,
    "constraint-unknown": _L,
    "constraint-not-valid": _M,
    # triggers
    "trigger-missing": _H,
    "trigger-changed": _H,
    "trigger-disabled": _H,
    "trigger-unknown": _M,
    "key-disabled": _C,
    # functions
    "function-missing": _H,
    "function-changed": _H,
    "function-unknown": _L,
    "function-owner": _H,
    "function-definer": _C,
    "function-search-path": _C,
    "function-public": _H,
    "function-leakproof": _H,
    # views
    "view-not-invoker": _C,
    "view-materialized": _C,
    # roles
    "role-missing": _H,
    "role-attribute": _C,
    "role-membership": _C,
    "login-bypasses": _C,
    "login-powers": _H,
    "login-mixes": _C,
    "login-admin": _C,
    "role-setting": _C,
    # server
    "parameter-grant": _C,
    "function-reserved": _C,
    "event-trigger": _L,
    # storage
    "repartition-under-way": _L,
    "index-invalid": _M,
    "index-changed": _M,
    "index-options": _M,
    "fillfactor": _M,
    "column-storage": _M,
    "partition-missing": _H,
    # shards
    "shard-open": _C,
    "shard-changed": _H,
    "shard-unseen": _H,
    # replication
    "publication": _L,
    # versions
    "server-version": _H,
    "vector-version": _H,
    "extension-outdated": _M,
    # drift
    "revision-pending": _M,
    "revision-unknown": _M,
    "table-missing": _H,
    "table-unknown": _L,
    "column-missing": _H,
    "column-unknown": _L,
    "column-changed": _M,
    "index-missing": _M,
    "index-unknown": _L,
    "drift": _M,
    **PERFORMANCE_CODES,
}
"""Every code, and how grave it is where the case does not say otherwise."""
