"""Writing many memories at once: rows/s of ours, of raw statements over the same rows' shape, of the peers.

Beside as many rows in one vector index as each peer has, in many batches: the machine's speed changes within minutes.
"""

from benchmarks import handwritten, ours
from benchmarks.bench import Bench
from benchmarks.dataset import Array
from benchmarks.peers.process import PeerProcess
from benchmarks.results import OURS, RAW, Finding
from benchmarks.server import Raw
from benchmarks.tables import Table, table
from benchmarks.timing import Contestant, Shot, Times, interleave, prepared

NAME = "remember_many"
COPY = f"{RAW}, COPY"
UNNEST = f"{RAW}, unnest"

Fresh = list[tuple[str, Array]]


async def measure(bench: Bench) -> list[Finding]:
    """Write batches in turn, each in a transaction of its own, into the same indexed table."""
    async with (
        table(bench, bench.data.peer_rows, partitions=1) as one,
        one.by_hand(bench) as service,
        Raw.connected(bench.cluster, one.name, pool_size=1, user="postgres") as superuser,
    ):
        return await _beside(bench, one, service, superuser)


async def _beside(bench: Bench, one: Table, service: Raw, superuser: Raw) -> list[Finding]:
    rounds, tenant = bench.size.batches, one.spare

    def fresh() -> Fresh:
        return list(zip(*bench.fresh_memories(bench.size.batch), strict=True))

    async def mine(memories: Fresh) -> int:
        drafts = [ours.draft(tenant, said, vector) for said, vector in memories]
        return await ours.remember_many(one.database, tenant, drafts)

    async def unnest(memories: Fresh) -> int:
        rows = [handwritten.row_of(tenant, said, vector) for said, vector in memories]
        return await handwritten.insert_many(service, tenant, rows)

    async def copy(memories: Fresh) -> int:
        rows = [handwritten.row_of(tenant, said, vector) for said, vector in memories]
        return await handwritten.copy_many(superuser, tenant, rows)

    contestants: dict[str, Contestant[int]] = {
        UNNEST: prepared(fresh, unnest),
        COPY: prepared(fresh, copy),
        OURS: prepared(fresh, mine),
        **{peer.name: _of(bench, peer) for peer in bench.peers},
    }
    times = await interleave(contestants, rounds, warm=0, step=bench.steps(rounds))
    return [
        Finding(
            NAME,
            name,
            {"batch": bench.size.batch, "beside rows": one.rows},
            {
                "rows_per_s": bench.size.batch / run.p50,
                **_rates("of_unnest", run, times[UNNEST]),
                **_rates("of_copy", run, times[COPY]),
                "rows": float(sum(run.answers)),
            },
        )
        for name, run in times.items()
    ]


def _rates(name: str, run: Times[int], base: Times[int]) -> dict[str, float]:
    """Return how many rows a second it writes for each of the base's, and the interval of that."""
    seconds = base.over(run)
    return {name: seconds["ratio"], f"{name}_low": seconds["ratio_low"], f"{name}_high": seconds["ratio_high"]}


def _of(bench: Bench, peer: PeerProcess) -> Contestant[int]:
    count = bench.size.batch

    async def shoot(_number: int) -> Shot[int]:
        answer = await peer.ask(do="add", first=bench.fresh_numbers(count), count=count)
        return Shot(answer["seconds"], answer["rows"])

    return shoot
