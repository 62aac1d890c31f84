"""Closed loops: so many tasks, each doing the next thing as soon as its last is done."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import numpy as np

Work = Callable[[int], Awaitable[object]]

_TURNS = 3


@dataclass(frozen=True)
class Loop:
    """What one loop got done.

    Attributes:
        per_s: things a second, over all tasks.
        latencies: seconds of each.
    """

    per_s: float
    latencies: list[float]

    def quantile(self, share: float) -> float:
        """Return the milliseconds that this share of things did not exceed."""
        return float(np.quantile(self.latencies, share)) * 1000


async def loop(work: Work, tasks: int, seconds: float) -> Loop:
    """Run a closed loop for so many seconds; what is under way at the end is finished and counts."""
    numbers = itertools.count()
    latencies: list[float] = []
    start = time.perf_counter()

    async def task() -> None:
        while (began := time.perf_counter()) - start < seconds:
            await work(next(numbers))
            latencies.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(task())
    return Loop(len(latencies) / (time.perf_counter() - start), latencies)


async def in_turn(
    works: Mapping[str, Work], tasks: int, seconds: float, step: Callable[[], None]
) -> Mapping[str, Loop]:
    """Run a loop of each, several times in turn; return each one's loop of median rate."""
    loops: dict[str, list[Loop]] = {name: [] for name in works}
    for turn in range(_TURNS):
        for name in list(works)[:: 1 if turn % 2 else -1]:
            loops[name].append(await loop(works[name], tasks, seconds / _TURNS))
            step()
    return {name: sorted(made, key=lambda one: one.per_s)[_TURNS // 2] for name, made in loops.items()}


def steps(works: int) -> int:
    """Return how often in_turn() calls step."""
    return works * _TURNS
