"""The partitions that tenants are in, and how many rows are there: what is written enters a graph of that size."""

from uuid import UUID

from benchmarks.bench import Bench
from benchmarks.dataset import Tenant
from benchmarks.server import superuser
from ibex_db import Database

_CANDIDATES = 64
_FILLED = "SELECT tableoid::regclass::text, count(*) FROM ibex_core.memories GROUP BY 1"
_HOMES = """SELECT o.id, p.inhrelid::regclass::text FROM unnest($1::uuid[]) o (id), pg_inherits p
    WHERE p.inhparent = 'ibex_core.memories'::regclass AND satisfies_hash_partition(p.inhparent,
        (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = p.inhparent)::int,
        substring(p.inhrelid::regclass::text FROM '\\d+$')::int, o.id)"""


async def fresh_tenant(bench: Bench, database: Database, name: str, *, beside: int) -> tuple[Tenant, int]:
    """Make a tenant in the partition whose rows come nearest to so many.

    Args:
        bench: the run.
        database: where it is made.
        name: of that database on the server.
        beside: how many rows should be there.

    Returns:
        The tenant, and the rows that are there.
    """
    tenants = [await bench.fresh_tenant(database) for _ in range(_CANDIDATES)]
    homes = await rows_beside(bench, name, [tenant.org_id for tenant in tenants])
    chosen = min(tenants, key=lambda tenant: abs(homes[tenant.org_id] - beside))
    return chosen, homes[chosen.org_id]


async def rows_beside(bench: Bench, name: str, asked: list[UUID]) -> dict[UUID, int]:
    """Return how many rows, its own among them, are in the partition of each organization."""
    async with superuser(bench.cluster, name) as connection:
        filled: dict[str, int] = {row[0]: row[1] for row in await connection.fetch(_FILLED)}
        homes: dict[UUID, str] = {row[0]: row[1] for row in await connection.fetch(_HOMES, asked)}
    return {org_id: filled.get(home, 0) for org_id, home in homes.items()}
