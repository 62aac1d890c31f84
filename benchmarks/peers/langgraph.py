"""LangGraph's AsyncPostgresStore, with an index over a field of each item."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any

from benchmarks.dataset import DIMENSIONS, Array
from benchmarks.peers.rows import Row

_ASKED = "asked"


class Adapter:
    """A namespace for each tenant; the embedding function looks vectors up that are known already."""

    def __init__(self) -> None:
        self._known: dict[str, list[float]] = {}
        self._exits = AsyncExitStack()
        self._store: Any = None

    async def open(self, dsn: str) -> None:
        """Connect with a pool, and run its migrations."""
        store = import_module("langgraph.store.postgres.aio").AsyncPostgresStore.from_conn_string(
            dsn,
            pool_config={"min_size": 1, "max_size": 4},
            index={
                "dims": DIMENSIONS,
                "embed": self._embed,
                "fields": ["text"],
                "ann_index_config": {"kind": "hnsw", "vector_type": "vector"},
                "distance_type": "cosine",
            },
        )
        self._store = await self._exits.enter_async_context(store)
        await self._store.setup()

    async def add_many(self, rows: Sequence[Row]) -> None:
        """Write rows in one batch, one by aput."""
        put: Any = import_module("langgraph.store.base").PutOp
        self._known = {row.content: row.vector.tolist() for row in rows}
        await self._store.abatch([put(("mem", row.tenant), str(row.number), {"text": row.content}) for row in rows])

    async def search(self, tenant: str, vector: Array, k: int) -> Sequence[int]:
        """Search in the tenant's namespace."""
        self._known = {_ASKED: vector.tolist()}
        return [int(item.key) for item in await self._store.asearch(("mem", tenant), query=_ASKED, limit=k)]

    async def close(self) -> None:
        """Close the pool."""
        await self._exits.aclose()

    async def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [self._known[text] for text in texts]
