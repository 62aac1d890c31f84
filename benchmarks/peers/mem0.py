"""mem0's PGVector store, under its Memory class: what mem0 itself writes and searches through."""

import asyncio
import logging
import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any
from uuid import UUID

from benchmarks.dataset import DIMENSIONS, Array
from benchmarks.peers.rows import Row


class Adapter:
    """Synchronous, as mem0 is: AsyncMemory calls it from threads, which costs more."""

    _store: Any

    async def open(self, dsn: str) -> None:
        """Connect; the collection is made on first use."""
        os.environ["MEM0_TELEMETRY"] = "False"
        logging.disable(logging.CRITICAL)
        self._store = import_module("mem0.vector_stores.pgvector").PGVector(
            dbname=None,
            collection_name="memories",
            embedding_model_dims=DIMENSIONS,
            user=None,
            password=None,
            host=None,
            port=None,
            diskann=False,
            hnsw=True,
            connection_string=dsn,
        )
        await asyncio.sleep(0.2)  # its pool connects in the background

    async def add_many(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        self._store.insert(
            [row.vector.tolist() for row in rows],
            payloads=[{"data": row.content, "user_id": row.tenant, "hash": str(row.number)} for row in rows],
            ids=[str(UUID(int=row.number + 1)) for row in rows],
        )

    async def search(self, tenant: str, vector: Array, k: int) -> Sequence[int]:
        """Search with a filter on the user."""
        found = self._store.search("", vector.tolist(), top_k=k, filters={"user_id": tenant})
        return [UUID(hit.id).int - 1 for hit in found]

    async def close(self) -> None:
        """Close the pool."""
        self._store.connection_pool.close()
