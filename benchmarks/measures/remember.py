"""Writing one memory: ours, which looks for a twin and tags, over a bare INSERT of the same row; and the peers."""

from benchmarks import handwritten, ours
from benchmarks.bench import Bench
from benchmarks.peers.process import PeerProcess
from benchmarks.results import OURS, RAW, Finding
from benchmarks.timing import Contestant, Shot, clocked, interleave

NAME = "remember"
DUPLICATE = f"{OURS}, a duplicate"

_WARM = 5


async def measure(bench: Bench) -> list[Finding]:
    """Write new memories in turn, each in a transaction of its own, to a tenant that grows by them alone."""
    rounds = bench.size.writes
    tenant = await bench.fresh_tenant()
    mine = iter(zip(*bench.fresh_memories(rounds + _WARM), strict=True))
    theirs = iter(zip(*bench.fresh_memories(rounds + _WARM), strict=True))
    known = next(iter(zip(*bench.fresh_memories(1), strict=True)))

    async def raw(_number: int) -> bool:
        content, vector = next(theirs)
        return await handwritten.insert(bench.raw, tenant, handwritten.row_of(tenant, content, vector)) is not None

    async def remember(_number: int) -> bool:
        return (await ours.remember(bench.database, tenant, *next(mine))).created

    async def again(_number: int) -> bool:
        return (await ours.remember(bench.database, tenant, *known)).created

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
            {"rows": bench.data.rows},
            {**run.milliseconds(), **run.over(times[RAW]), "created": float(sum(run.answers))},
        )
        for name, run in times.items()
    ]


def _of(bench: Bench, peer: PeerProcess) -> Contestant[bool]:
    async def shoot(_number: int) -> Shot[bool]:
        answer = await peer.ask(do="add", first=bench.fresh_numbers(1), count=1)
        return Shot(answer["seconds"], answer["rows"] == 1)

    return shoot
