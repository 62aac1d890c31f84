"""How much is loaded and how often each thing is timed: smoke for the tests, small for a look, full for the docs."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size of the whole run.

    Attributes:
        name: as the command line says it.
        tenants: how many tenants have so many memories, by that number.
        peers_up_to: the largest tenant that the peers hold; fewer rows in their tables are to their favour.
        searches: timed searches of each contestant in tenants of each number of memories.
        writes: timed writes of one memory.
        batches: timed writes of many memories.
        batch: how many memories these are.
        streamed: memories of one remember_many whose memory use is watched.
        growth: numbers of memories of whole tables; each is a database of its own.
        growth_tenants: memories of the tenants that stay as the table grows.
        partitions: partition counts that are compared, over the middle table of ``growth``.
        tasks: how many units of work at once.
        pools: connections.
        seconds: of each closed loop of the concurrency measure.
        isolation_seconds: of the isolation measure.
        starts: fresh interpreters.
        build_workers: processes that help to build a vector index; their memory is shared memory.
    """

    name: str
    tenants: Mapping[int, int]
    peers_up_to: int
    searches: int
    writes: int
    batches: int
    batch: int
    streamed: int
    growth: tuple[int, ...]
    growth_tenants: tuple[int, ...]
    partitions: tuple[int, ...]
    tasks: tuple[int, ...]
    pools: tuple[int, ...]
    seconds: float
    isolation_seconds: float
    starts: int
    build_workers: int = 0


SIZES: Mapping[str, Size] = {
    size.name: size
    for size in (
        Size(
            name="smoke",
            tenants={10: 4, 100: 4, 5_100: 1},
            peers_up_to=100,
            searches=10,
            writes=5,
            batches=1,
            batch=100,
            streamed=1_000,
            growth=(300, 900),
            growth_tenants=(100,),
            partitions=(1, 16),
            tasks=(1, 8),
            pools=(1, 4),
            seconds=0.3,
            isolation_seconds=1.5,
            starts=1,
        ),
        Size(
            name="small",
            tenants={10: 20, 100: 20, 1_000: 4, 10_000: 1},
            peers_up_to=1_000,
            searches=100,
            writes=100,
            batches=10,
            batch=250,
            streamed=20_000,
            growth=(2_000, 20_000),
            growth_tenants=(500,),
            partitions=(1, 16),
            tasks=(1, 4, 16, 64),
            pools=(1, 4, 16),
            seconds=1.0,
            isolation_seconds=10.0,
            starts=7,
        ),
        Size(
            name="full",
            tenants={10: 100, 100: 40, 1_000: 8, 10_000: 1, 100_000: 1},
            peers_up_to=10_000,
            searches=300,
            writes=400,
            batches=40,
            batch=250,
            streamed=100_000,
            growth=(10_000, 100_000, 1_000_000),
            growth_tenants=(1_000, 6_000),
            partitions=(1, 16, 64),
            tasks=(1, 4, 16, 64),
            pools=(1, 4, 16),
            seconds=5.0,
            isolation_seconds=60.0,
            starts=15,
            build_workers=1,
        ),
    )
}
