"""Index or full scan: decided from the size of the scope, and checked by what comes back.

Up to EXACT_UP_TO live rows in scope a full scan is as fast as the index and
finds everything; past it the HNSW index answers, and where it returns fewer
rows than asked for, the full scan is run after all, so that a filter never
loses rows in silence.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Protocol, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

V = TypeVar("V")

# Between 1,000 and 5,000 rows the planner already picks the index where a scan
# is as fast (3-12 ms p95 against 20-60) and better (1.0 against .96-.98).
EXACT_UP_TO = 5000

# A scope's size is asked for this rarely.  Stale sizes cost time, never rows.
_FRESH_SECONDS = 30.0
_REMEMBERED = 10_000

Scope = tuple[UUID, tuple[UUID, ...] | None]
"""An organization, and the agents that a search is limited to (None: all)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a search was answered.

    Attributes:
        exact: by a full scan of the scope, which misses nothing; otherwise by the HNSW index.
            Words are always found in full, by their own index.
        reason: why.
        scope_rows: live and other rows of the scope's agents, counted up to EXACT_UP_TO + 1 unless
            a text is given; None: not counted.
        rescanned: the index returned too few rows, so that the full scan was run as well.
    """

    exact: bool
    reason: str
    scope_rows: int | None = None
    rescanned: bool = False


class ScopeCache(Generic[V]):
    """Facts about scopes, remembered for half a minute, the least used forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._facts: OrderedDict[Scope, tuple[V, float]] = OrderedDict()

    async def get(self, scope: Scope, count: Callable[[], Awaitable[V]]) -> V:
        """Return the fact about a scope, counting it where the last count is stale."""
        found = self._facts.get(scope)
        if found is not None and found[1] > self._clock():
            self._facts.move_to_end(scope)
            return found[0]
        fact = await count()
        self._facts[scope] = (fact, self._clock() + _FRESH_SECONDS)
        self._facts.move_to_end(scope)
        while len(self._facts) > _REMEMBERED:
            self._facts.popitem(last=False)
        return fact

    def forget(self, org_id: UUID, *, where: Callable[[V], bool] | None = None) -> None:
        """Count an organization's scopes anew: many of its rows have just changed.

        Args:
            org_id: whose.
            where: only facts of which this says that they no longer do.
        """
        for scope in [
            scope for scope, (fact, _) in self._facts.items() if scope[0] == org_id and (where is None or where(fact))
        ]:
            del self._facts[scope]


ScopeSizes = ScopeCache[int]

_by_engine: "WeakKeyDictionary[object, ScopeSizes]" = WeakKeyDictionary()


def sizes_for(bind: object) -> ScopeSizes:
    """Return the sizes that are remembered for an engine; they go when it goes."""
    if (found := _by_engine.get(bind)) is None:
        found = _by_engine[bind] = ScopeSizes()
    return found


class _Indexed(Protocol):
    """What is asked of a space of vectors (ibex_db_memory.search.spaces)."""

    @property
    def indexed(self) -> bool: ...
    @property
    def dimensions(self) -> int: ...


def decide(size: int, space: _Indexed | None = None) -> Plan:
    """Choose by a scope's size, and by whether the vectors have an index at all."""
    if size <= EXACT_UP_TO:
        return _small(size)
    if space is not None and not space.indexed:
        reason = f"more than {EXACT_UP_TO} rows in scope, but vectors of {space.dimensions} dimensions have no index"
        return Plan(exact=True, reason=reason, scope_rows=size)
    return Plan(exact=False, reason=f"more than {EXACT_UP_TO} rows in scope", scope_rows=size)


@lru_cache(_REMEMBERED)
def _small(size: int) -> Plan:
    return Plan(exact=True, reason=f"{size} rows in scope, at most {EXACT_UP_TO}", scope_rows=size)
