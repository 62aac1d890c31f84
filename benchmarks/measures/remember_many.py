"""Writing many memories at once: rows/s of ours, of raw statements over the same rows' shape, of the peers."""

from benchmarks import handwritten, homes, ours
from benchmarks.bench import Bench
from benchmarks.dataset import Array
from benchmarks.peers.process import PeerProcess
from benchmarks.results import OURS, RAW, Finding
from benchmarks.server import Raw
from benchmarks.timing import Contestant, Shot, interleave, prepared

NAME = "remember_many"
COPY = f"{RAW}, COPY"
UNNEST = f"{RAW}, unnest"

Fresh = list[tuple[str, Array]]


async def measure(bench: Bench) -> list[Finding]:
    """Write batches in turn, each in a transaction of its own, into the same indexed table."""
    rounds = bench.size.batches
    tenant, beside = await homes.average_tenant(bench)
    async with Raw.connected(bench.cluster, bench.database_name, pool_size=1, user="postgres") as superuser:

        def fresh() -> Fresh:
            return list(zip(*bench.fresh_memories(bench.size.batch), strict=True))

        async def mine(memories: Fresh) -> int:
            drafts = [ours.draft(tenant, said, vector) for said, vector in memories]
            return await ours.remember_many(bench.database, tenant, drafts)

        async def unnest(memories: Fresh) -> int:
            rows = [handwritten.row_of(tenant, said, vector) for said, vector in memories]
            return await handwritten.insert_many(bench.raw, tenant, rows)

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
    peers = {peer.name for peer in bench.peers}
    return [
        Finding(
            NAME,
            name,
            {"batch": bench.size.batch, "beside rows": bench.data.peer_rows if name in peers else beside},
            {
                "rows_per_s": bench.size.batch / run.p50,
                "of_unnest": times[UNNEST].p50 / run.p50,
                "of_copy": times[COPY].p50 / run.p50,
                "rows": float(sum(run.answers)),
            },
        )
        for name, run in times.items()
    ]


def _of(bench: Bench, peer: PeerProcess) -> Contestant[int]:
    count = bench.size.batch

    async def shoot(_number: int) -> Shot[int]:
        answer = await peer.ask(do="add", first=bench.fresh_numbers(count), count=count)
        return Shot(answer["seconds"], answer["rows"])

    return shoot
