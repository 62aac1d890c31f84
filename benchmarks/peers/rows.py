"""What a peer is asked to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.dataset import Array


@dataclass(frozen=True)
class Row:
    """One memory: its number is the id that a search must give back."""

    number: int
    tenant: str
    content: str
    vector: Array


class Peer(Protocol):
    """One memory store of others, with vectors made before: no model is called."""

    async def open(self, dsn: str) -> None:
        """Connect, and make tables and indexes where they are missing."""
        ...

    async def add_many(self, rows: Sequence[Row]) -> None:
        """Write rows as the store's documentation writes many."""
        ...

    async def search(self, tenant: str, vector: Array, k: int) -> Sequence[int]:
        """Return the numbers of a tenant's rows that are nearest."""
        ...

    async def close(self) -> None:
        """Let go of every connection."""
        ...
