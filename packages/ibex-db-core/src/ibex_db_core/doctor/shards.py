"""Shards: on Citus the rows lie there, under policies and grants of the shard's own."""

from collections.abc import Iterator

from ibex_db_core.base import SCHEMA
from ibex_db_core.distribution import differences
from ibex_db_core.distribution.cluster import on_placements
from ibex_db_core.distribution.verify import Difference
from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, Severity, finding

__all__ = ["check_shards"]

_AGAIN = "-- run: ibex-db distribute"


def check_shards(audit: Audit) -> Iterator[Finding]:
    """Every copy of every shard is as closed as its table, which the other checks look at."""
    if not audit.distributed:
        return
    for found in differences(audit.connection, audit.metadata):
        where = f"{SCHEMA}.{found.shard} on {found.node}"
        if found.what is None:
            risk = f"nobody could look at it: {found.said}"
            yield finding("shard-unseen", where, risk, "-- have the node answer this login, and look again")
        elif found.opens:
            risk = f"{found.what}: {found.said}: its rows are less guarded than the table says"
            severity = None if found.what == "row-level security" else Severity.HIGH
            yield finding("shard-open", where, risk, *_remedy(found), severity=severity)
        else:
            risk = f"{found.what}: {found.said}: what the table promises does not hold for its organizations"
            yield finding("shard-changed", where, risk, *_remedy(found))


def _remedy(found: Difference) -> list[str]:
    words = {"row-level security": "ENABLE ROW LEVEL SECURITY", "forced": "FORCE ROW LEVEL SECURITY"}.get(
        found.what or ""
    )
    if words is not None:
        return [on_placements(found.table, f"ALTER TABLE %s {words}")]
    if found.what == "policies":
        return [f"{_AGAIN}; it makes the floors anew", "-- another policy: drop it on that node"]
    return [f"-- mend it on {found.node}, as {SCHEMA}.{found.table} is on the coordinator; then {_AGAIN[3:]}"]
