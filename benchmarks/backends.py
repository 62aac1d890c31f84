"""What the server's processes spend of a processor: exact to the nanosecond, where Linux tells it."""

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress

from benchmarks.server import superuser
from ibex_db_core.provisioning import Cluster

_SERVING = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend' AND pid <> $2"


class Backends:
    """The backends of a database's sessions at one moment."""

    def __init__(self, told: Sequence[int]) -> None:
        """Take the open files in which the kernel counts for each."""
        self._told = told

    def seconds(self) -> float:
        """Return what all of them have spent so far; 0 where the system does not tell."""
        return sum(int(os.pread(told, 64, 0).split()[0]) for told in self._told) / 1e9


@asynccontextmanager
async def watched(cluster: Cluster, database: str) -> AsyncGenerator[Backends]:
    """Watch the backends that a database has now; those that come later are not seen."""
    async with superuser(cluster, database) as connection:
        own = connection.get_server_pid()
        serving = [int(row[0]) for row in await connection.fetch(_SERVING, database, own)]
    told: list[int] = []
    try:
        for process in serving:
            with suppress(FileNotFoundError):
                told.append(os.open(f"/proc/{process}/schedstat", os.O_RDONLY))
        yield Backends(told)
    finally:
        for file in told:
            os.close(file)
