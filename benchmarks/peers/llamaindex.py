"""llama-index's PGVectorStore, asynchronous, the tenant in the metadata."""

import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from benchmarks.dataset import DIMENSIONS, Array
from benchmarks.peers.rows import Row


class Adapter:
    """Nodes with their vectors on them; the filter is on metadata that has an index."""

    _store: Any

    async def open(self, dsn: str) -> None:
        """Connect; tables and indexes are made on first use."""
        warnings.filterwarnings("ignore")
        self._store = import_module("llama_index.vector_stores.postgres").PGVectorStore.from_params(
            connection_string=dsn.replace("postgresql:", "postgresql+psycopg2:", 1),
            async_connection_string=dsn.replace("postgresql:", "postgresql+asyncpg:", 1),
            table_name="memories",
            embed_dim=DIMENSIONS,
            use_jsonb=True,
            indexed_metadata_keys={("org", "text")},
            hnsw_kwargs={
                "hnsw_m": 16,
                "hnsw_ef_construction": 64,
                "hnsw_ef_search": 100,
                "hnsw_dist_method": "vector_cosine_ops",
            },
        )

    async def add_many(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        node: Any = import_module("llama_index.core.schema").TextNode
        await self._store.async_add(
            [
                node(id_=str(row.number), text=row.content, metadata={"org": row.tenant}, embedding=row.vector.tolist())
                for row in rows
            ]
        )

    async def search(self, tenant: str, vector: Array, k: int) -> Sequence[int]:
        """Search with a filter on the metadata."""
        types: Any = import_module("llama_index.core.vector_stores.types")
        found = await self._store.aquery(
            types.VectorStoreQuery(
                query_embedding=vector.tolist(),
                similarity_top_k=k,
                filters=types.MetadataFilters(filters=[types.MetadataFilter(key="org", value=tenant)]),
            )
        )
        return [int(ident) for ident in found.ids]

    async def close(self) -> None:
        """Close the pools."""
        await self._store.close()
