"""What every measure is given."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress, TaskID

from benchmarks import ours
from benchmarks.dataset import Array, DataSet, Tenant, clustered
from benchmarks.peers.process import PeerProcess
from benchmarks.placement import Placement
from benchmarks.server import Raw, superuser
from benchmarks.sizes import Size
from benchmarks.words import content
from ibex_db import Database
from ibex_db_core.provisioning import Cluster

# Tenants that measures make are numbered from here, out of the data set's way.
_FRESH = 10_000_000


@dataclass
class Bench:
    """One run.

    Attributes:
        size: how much and how often.
        data: the data set.
        cluster: the server.
        conversations: a folder of real ones, as benchmarks.evidence_recall describes it; None: there are none.
        folder: of what is kept between interrupted runs.
        database: ours, over the loaded data set.
        database_name: on the server.
        raw: the hand-written side's connections to the same database.
        peers: those that run, loaded.
        placement: of client and server on processors.
        progress: what the reader watches.
        task: the line of the measure that is running.
    """

    size: Size
    data: DataSet
    cluster: Cluster
    conversations: Path | None
    folder: Path
    database: Database
    database_name: str
    raw: Raw
    peers: Sequence[PeerProcess]
    placement: Placement
    progress: Progress
    task: TaskID
    _written: int = field(default_factory=lambda: int(time.time()) * _FRESH)  # beyond what an interrupted run wrote
    _settled: int = field(default=0)

    def steps(self, total: int) -> Callable[[], None]:
        """Announce how many steps the measure takes (more each time it is asked); call the result after each."""
        known = self.progress.tasks[self.progress.task_ids.index(self.task)].total or 0
        self.progress.update(self.task, total=known + total)
        return lambda: self.progress.advance(self.task)

    async def fresh_tenant(self, database: Database | None = None) -> Tenant:
        """Make a tenant that is in nobody's data."""
        tenant = await self._unused()
        await ours.settle(database or self.database, [tenant])
        return tenant

    async def _unused(self) -> Tenant:
        """Find a tenant's number that no earlier, interrupted run has used."""
        async with superuser(self.cluster, self.database_name) as connection:
            while True:
                self._settled += 1
                tenant = Tenant(_FRESH + self._settled, 0, 0)
                taken = await connection.fetchval(
                    "SELECT count(*) FROM ibex_core.organizations WHERE id = $1", tenant.org_id
                )
                if not taken:
                    return tenant

    def fresh_numbers(self, count: int) -> int:
        """Return the first of so many numbers that no memory has been made of yet."""
        first, self._written = self._written, self._written + count
        return first

    def fresh_memories(self, count: int) -> tuple[Sequence[str], Array]:
        """Return contents and vectors that nobody has written yet."""
        first = self.fresh_numbers(count)
        return [content(number) for number in range(first, first + count)], clustered(count, first)
