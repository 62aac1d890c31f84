"""The postmaster's violent death, which a test waits for: a start before the kernel is done joins one who is dying."""

import asyncio
import os
import signal
from pathlib import Path

from ibex_db_core.embedded import postmaster


async def kill_postmaster(data: Path) -> None:
    """Kill the server over this data folder with signal 9, and return once it is gone."""
    pid = postmaster.pid(data)
    assert pid is not None, f"no server runs over {data}"
    os.kill(pid, signal.SIGKILL)
    while postmaster.pid(data) == pid:  # noqa: ASYNC110 - the kernel takes up to 27 ms where both processors are busy
        await asyncio.sleep(0.005)
