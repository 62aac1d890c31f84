"""The one data set: clustered vectors, tenants of many sizes, queries and their true answers.

Made once by the harness and kept in files, which the peers' processes map into
memory: every contestant has the same rows, whichever numpy it brings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt

from benchmarks.sizes import Size
from benchmarks.words import question

DIMENSIONS = 384
K = 10
"""Neighbours that a search asks for."""

_SEED = 7
_CLUSTERS = 300
# How far a memory lies from its cluster's middle, and a query from a memory, in each dimension.
_SPREAD, _NEAR = 0.06, 0.03
_NAMESPACE = UUID("6f1d3c58-5a07-4b69-9e0c-1be0db02be11")
# Slices in which tenants' rows are written in turn, as they would come in over time.
_SLICES = 10

Array = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


def memory_id(row: int) -> UUID:
    """Return the id of a row of the data set."""
    return UUID(int=row + 1)


def unit(array: "npt.NDArray[np.float64]") -> Array:
    """Bring vectors to length one."""
    shorter: Array = (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)
    return shorter


@cache
def _centres() -> Array:
    return unit(np.random.default_rng(_SEED).normal(size=(_CLUSTERS, DIMENSIONS)))


def clustered(count: int, seed: int) -> Array:
    """Return so many vectors, shape (count, 384), around 300 centres that are the same for every seed."""
    draw = np.random.default_rng((_SEED, seed))
    chosen = _centres()[draw.integers(0, _CLUSTERS, size=count)]
    return unit(chosen + draw.normal(size=(count, DIMENSIONS)) * _SPREAD)


def near(vectors: Array, seed: int) -> Array:
    """Return queries near the vectors."""
    return unit(vectors + np.random.default_rng((_SEED, seed)).normal(size=vectors.shape) * _NEAR)


def nearest(vectors: Array, query: Array) -> list[int]:
    """Return the places of the true K nearest by cosine, all of them where there are fewer."""
    return [int(place) for place in np.argsort(-(vectors @ query), kind="stable")[:K]]


@dataclass(frozen=True)
class Tenant:
    """One organization: rows ``first`` to ``first + rows`` of the data set are its memories, by one agent."""

    number: int
    rows: int
    first: int

    @cached_property
    def org_id(self) -> UUID:
        """The organization's id."""
        return uuid5(_NAMESPACE, f"tenant {self.number}")

    @cached_property
    def agent_id(self) -> UUID:
        """The agent's id."""
        return uuid5(_NAMESPACE, f"agent {self.number}")


@dataclass(frozen=True)
class Query:
    """One search.

    Attributes:
        tenant: whose.
        vector: shape (384,).
        text: words that one of the tenant's memories says.
        truth: the rows that a search by vector should find.
    """

    tenant: Tenant
    vector: Array
    text: str
    truth: frozenset[int]

    def recall(self, rows: Sequence[int]) -> float:
        """Return the share of the truth among the rows found."""
        return len(self.truth.intersection(rows)) / len(self.truth)


def mean_recall(queries: Sequence[Query], answers: Sequence[Sequence[int]]) -> float:
    """Return the mean of the queries' recalls."""
    return float(np.mean([query.recall(answer) for query, answer in zip(queries, answers, strict=True)]))


class DataSet:
    """Tenants from the smallest to the largest, their vectors, and queries."""

    def __init__(self, folder: Path, size: Size) -> None:
        self._folder = folder
        self._size = size
        self.tenants: list[Tenant] = []
        first = 0
        for rows, count in sorted(size.tenants.items()):
            for _ in range(count):
                self.tenants.append(Tenant(len(self.tenants), rows, first))
                first += rows
        self.rows = first

    @property
    def vectors(self) -> Array:
        """All vectors, shape (rows, 384), mapped from the file."""
        vectors: Array = np.load(self._folder / "vectors.npy", mmap_mode="r")
        return vectors

    @property
    def for_peers(self) -> Sequence[Tenant]:
        """The tenants that the peers hold as well."""
        return [tenant for tenant in self.tenants if tenant.rows <= self._size.peers_up_to]

    @property
    def peer_rows(self) -> int:
        """How many memories these have."""
        return sum(tenant.rows for tenant in self.for_peers)

    def make(self) -> None:
        """Write the files where they are missing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        done = self._folder / "truth.npy"
        if done.exists():
            return
        path = self._folder / "vectors.npy"
        vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(self.rows, DIMENSIONS))
        for tenant in self.tenants:
            vectors[tenant.first : tenant.first + tenant.rows] = clustered(tenant.rows, tenant.number)
        vectors.flush()
        queries: list[Array] = []
        truth: list[list[int]] = []
        for rows in self._size.tenants:
            for number, (tenant, row) in enumerate(self._asked(rows)):
                own = self.vectors[tenant.first : tenant.first + tenant.rows]
                query = near(self.vectors[row][None, :], rows + number)[0]
                queries.append(query)
                truth.append([tenant.first + place for place in nearest(own, query)])
        np.save(self._folder / "queries.npy", np.stack(queries))
        np.save(done, np.array(truth, dtype=np.int64))

    def queries(self, rows: int) -> Sequence[Query]:
        """Return the queries to tenants of so many memories, over these tenants in turn."""
        sizes = list(self._size.tenants)
        start = sizes.index(rows) * self._size.searches
        vectors: Array = np.load(self._folder / "queries.npy")
        truth: Numbers = np.load(self._folder / "truth.npy")
        return [
            Query(tenant, vectors[start + number], question(row), frozenset(truth[start + number].tolist()))
            for number, (tenant, row) in enumerate(self._asked(rows))
        ]

    def slices(self, tenants: Sequence[Tenant]) -> Iterator[tuple[Tenant, range]]:
        """Yield rows to write, tenant by tenant and round by round, as they would come in over time."""
        for turn in range(_SLICES):
            for tenant in tenants:
                bounds = [tenant.first + tenant.rows * at // _SLICES for at in (turn, turn + 1)]
                if bounds[0] < bounds[1]:
                    yield tenant, range(*bounds)

    def _asked(self, rows: int) -> Iterator[tuple[Tenant, int]]:
        tenants = [tenant for tenant in self.tenants if tenant.rows == rows]
        draw = np.random.default_rng((_SEED, rows))
        for number in range(self._size.searches):
            tenant = tenants[number % len(tenants)]
            yield tenant, tenant.first + int(draw.integers(tenant.rows))
