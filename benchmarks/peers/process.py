"""The harness's end of a peer's process."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.recipes import Recipe
from benchmarks.timing import Shot

_ROOT = Path(__file__).parents[2]
# A line of answer to a load of many rows stays far below this.
_LONGEST_LINE = 1 << 20


class PeerError(Exception):
    """A peer's process ended, or could not be started: its log says why."""


class PeerProcess:
    """One peer, running over its own database."""

    def __init__(self, recipe: Recipe, process: asyncio.subprocess.Process, log: Path) -> None:
        self.recipe = recipe
        self.name = recipe.name
        self.database = database_of(recipe)
        self._process = process
        self._log = log

    async def ask(self, **command: object) -> dict[str, Any]:
        """Have one thing done.

        Raises:
            PeerError: the process ended.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise PeerError(self.name)
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            raise PeerError(f"{self.name} ended: {self._log.read_text(errors='replace')[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def search(self, rows: int, number: int) -> Shot[Sequence[int]]:
        """Search with the query of that number among tenants of so many memories."""
        answer = await self.ask(do="search", rows=rows, number=number)
        return Shot(answer["seconds"], answer["found"])

    async def versions(self) -> dict[str, str]:
        """Say what is installed, and how it is set."""
        return {**await self.ask(do="versions"), "settings": self.recipe.settings}

    async def stop(self) -> None:
        """End it: at the end of its input, or by force."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def database_of(recipe: Recipe) -> str:
    """Return the database that a peer has to itself."""
    return f"bench_{recipe.module}"


@asynccontextmanager
async def running(recipe: Recipe, dsn: str, data: Path, size: str) -> AsyncGenerator[PeerProcess]:
    """Start a peer in an environment of its own; the first time, uv fetches it from PyPI."""
    log = data.parent / "logs" / f"{recipe.module}.log"
    log.parent.mkdir(exist_ok=True)
    packages = [part for name in (*recipe.requirements, "numpy") for part in ("--with", name)]
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *("uv", "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable, *packages),
            *("python", "-m", "benchmarks.peers.worker", recipe.module, str(data), size, dsn, *recipe.shown),
            cwd=_ROOT,
            env={name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            limit=_LONGEST_LINE,
        )
    peer = PeerProcess(recipe, process, log)
    try:
        yield peer
    finally:
        await peer.stop()
