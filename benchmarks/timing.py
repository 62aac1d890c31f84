"""Times taken side by side: all in each round, in an order drawn anew, and their medians compared."""

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

A = TypeVar("A")
P = TypeVar("P")

_RESAMPLES = 500


@dataclass(frozen=True)
class Shot(Generic[A]):
    """One thing done: the seconds that it took, what came of it, and of them the processor's for client and server."""

    seconds: float
    answer: A
    processor: float = 0.0
    server: float = 0.0


Contestant = Callable[[int], Awaitable[Shot[A]]]
"""Does the thing for the round of that number."""


def _nothing() -> float:
    return 0.0


def clocked(work: Callable[[int], Awaitable[A]], server: Callable[[], float] = _nothing) -> Contestant[A]:
    """Take the time around a coroutine; ``server`` tells the seconds that its backends have spent so far."""

    async def shoot(number: int) -> Shot[A]:
        before, used, start = server(), time.process_time(), time.perf_counter()
        answer = await work(number)
        seconds, spent = time.perf_counter() - start, time.process_time() - used
        return Shot(seconds, answer, spent, server() - before)

    return shoot


def prepared(prepare: Callable[[], P], work: Callable[[P], Awaitable[A]]) -> Contestant[A]:
    """Take the time around a coroutine, but not around making what it works on."""

    async def shoot(_number: int) -> Shot[A]:
        given = prepare()
        used, start = time.process_time(), time.perf_counter()
        answer = await work(given)
        return Shot(time.perf_counter() - start, answer, time.process_time() - used)

    return shoot


@dataclass
class Times(Generic[A]):
    """What one contestant needed, round by round."""

    shots: list[Shot[A]] = field(default_factory=list[Shot[A]])

    @property
    def seconds(self) -> Sequence[float]:
        """Each round's time."""
        return [shot.seconds for shot in self.shots]

    @property
    def answers(self) -> Sequence[A]:
        """Each round's answer."""
        return [shot.answer for shot in self.shots]

    @property
    def p50(self) -> float:
        """The median, in seconds."""
        return float(np.median(self.seconds))

    @property
    def p95(self) -> float:
        """What 95 of 100 rounds do not exceed, in seconds."""
        return float(np.quantile(self.seconds, 0.95))

    def milliseconds(self) -> dict[str, float]:
        """Return p50 and p95 as a finding shows them, and the medians of what client and server spent."""
        client = float(np.median([shot.processor for shot in self.shots]))
        server = float(np.median([shot.server for shot in self.shots]))
        spent = {"client_ms": client * 1000, "server_ms": server * 1000}
        return {
            "p50_ms": self.p50 * 1000,
            "p95_ms": self.p95 * 1000,
            **{name: value for name, value in spent.items() if value},
        }

    def over(self, other: "Times[A]") -> dict[str, float]:
        """Return this median over the other's, and where 95 % of resampled pairs of rounds put it."""
        mine, theirs = np.array(self.seconds), np.array(other.seconds)
        draw = np.random.default_rng(7)
        ratios: list[float] = []
        for _ in range(_RESAMPLES):
            rounds = draw.integers(min(len(mine), len(theirs)), size=min(len(mine), len(theirs)))
            ratios.append(float(np.median(mine[rounds]) / np.median(theirs[rounds])))
        low, high = np.quantile(ratios, (0.025, 0.975))
        return {"ratio": self.p50 / other.p50, "ratio_low": float(low), "ratio_high": float(high)}


_drawn: Counter[str] = Counter()


def _turns(names: Sequence[str]) -> str:
    """Seed each comparison by itself, the same in each run: a draw's own imbalance must not be everybody's."""
    who = ", ".join(names)
    _drawn[who] += 1
    return f"{who} {_drawn[who]}"


async def interleave(
    contestants: Mapping[str, Contestant[A]],
    rounds: int,
    *,
    warm: int = 5,
    block: int = 1,
    lead: int = 0,
    step: Callable[[], None] = lambda: None,
) -> dict[str, Times[A]]:
    """Have every contestant do every round, in an order drawn anew for each.

    Turned by one from round to round, the order would have each follow the same other one nearly always, and find
    what that one has just read.

    Args:
        contestants: by name.
        rounds: how many are timed, numbered from 0.
        warm: rounds before them that are not.
        block: rounds of one contestant before the next one's turn: within a block the processor's caches hold what it
            and its backend use, as in a service that does one thing much; else the others have just emptied them.
        lead: rounds before each block that are not timed.
        step: called after each timed block of all.
    """
    names = list(contestants)
    times: dict[str, Times[A]] = {name: Times() for name in names}
    draw = random.Random(_turns(names))
    for first in (*range(-min(warm, rounds), 0), *range(0, rounds, block)):
        after = first + 1 if first < 0 else min(first + block, rounds)
        for name in draw.sample(names, len(names)):
            for number in range(first - lead, after):
                shot = await contestants[name](number % rounds)
                if number >= max(first, 0):
                    times[name].shots.append(shot)
        if first >= 0:
            step()
    return times
