"""Writing one memory: ours, which looks for a twin and tags, over a bare INSERT of the same row; and the peers.

Into tenants of each size it is rolled back, so that they keep their size: the times compare with each other alone.
"""

from collections.abc import Awaitable, Callable

from benchmarks import handwritten, homes, ours
from benchmarks.bench import Bench
from benchmarks.dataset import Tenant
from benchmarks.peers.process import PeerProcess
from benchmarks.results import OURS, RAW, Finding
from benchmarks.server import Raw
from benchmarks.tables import Table, table
from benchmarks.timing import Contestant, Shot, clocked, interleave

NAME = "remember"
DUPLICATE = f"{OURS}, a duplicate"
UNDONE = f"{OURS}, rolled back"

_WARM = 5


async def measure(bench: Bench) -> list[Finding]:
    """Write new memories in turn, each in a transaction of its own."""
    return [*await _side_by_side(bench), *await _by_tenant(bench)]


async def _side_by_side(bench: Bench) -> list[Finding]:
    """Write to a tenant that grows by them alone, beside as many rows in one vector index as the peers have."""
    async with table(bench, bench.data.peer_rows, partitions=1) as one, one.by_hand(bench) as raw:
        return await _beside(bench, one, raw)


async def _beside(bench: Bench, one: Table, by_hand: Raw) -> list[Finding]:
    rounds = bench.size.writes
    tenant = one.spare
    mine = iter(zip(*bench.fresh_memories(rounds + _WARM), strict=True))
    theirs = iter(zip(*bench.fresh_memories(rounds + _WARM), strict=True))
    known = next(iter(zip(*bench.fresh_memories(1), strict=True)))

    async def raw(_number: int) -> bool:
        content, vector = next(theirs)
        return await handwritten.insert(by_hand, tenant, handwritten.row_of(tenant, content, vector)) is not None

    async def remember(_number: int) -> bool:
        return (await ours.remember(one.database, tenant, *next(mine))).created

    async def again(_number: int) -> bool:
        return (await ours.remember(one.database, tenant, *known)).created

    await again(0)
    contestants: dict[str, Contestant[bool]] = {
        RAW: clocked(raw),
        OURS: clocked(remember),
        DUPLICATE: clocked(again),
        **{peer.name: _of(bench, peer) for peer in bench.peers},
    }
    times = await interleave(contestants, rounds, warm=_WARM, step=bench.steps(rounds))
    return [
        Finding(
            NAME,
            name,
            {"beside rows": one.rows},
            {**run.milliseconds(), **run.over(times[RAW]), "created": float(sum(run.answers))},
        )
        for name, run in times.items()
    ]


async def _by_tenant(bench: Bench) -> list[Finding]:
    """Write to a tenant of each size, and undo it."""
    tenants = {tenant.rows: tenant for tenant in bench.data.tenants}
    beside = await homes.rows_beside(bench, bench.database_name, [tenant.org_id for tenant in tenants.values()])
    contestants = {str(rows): clocked(_undone(bench, tenant)) for rows, tenant in tenants.items()}
    rounds = bench.size.writes
    times = await interleave(contestants, rounds, warm=_WARM, step=bench.steps(rounds))
    return [
        Finding(
            NAME,
            UNDONE,
            {"tenant": rows, "beside rows": beside[tenant.org_id]},
            {**times[str(rows)].milliseconds(), "created": float(sum(times[str(rows)].answers))},
        )
        for rows, tenant in tenants.items()
    ]


def _undone(bench: Bench, tenant: Tenant) -> Callable[[int], Awaitable[bool]]:
    fresh = iter(zip(*bench.fresh_memories(bench.size.writes + _WARM), strict=True))

    async def work(_number: int) -> bool:
        return (await ours.remember(bench.database, tenant, *next(fresh), undo=True)).created

    return work


def _of(bench: Bench, peer: PeerProcess) -> Contestant[bool]:
    async def shoot(_number: int) -> Shot[bool]:
        answer = await peer.ask(do="add", first=bench.fresh_numbers(1), count=1)
        return Shot(answer["seconds"], answer["rows"] == 1)

    return shoot
