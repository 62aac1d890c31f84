"""langchain-postgres' PGVectorStore, asynchronous, the tenant in a metadata column."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.dataset import DIMENSIONS, Array
from benchmarks.peers.rows import Row

_TABLE = "memories"


class Adapter:
    """Vectors come ready made, so its embedding service is never asked."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._pool: Any = None
        self._store: Any = None

    async def open(self, dsn: str) -> None:
        """Connect; make the table and its indexes where it is missing."""
        package: Any = import_module("langchain_postgres")
        indexes: Any = import_module("langchain_postgres.v2.indexes")
        fake: Any = import_module("langchain_core.embeddings").DeterministicFakeEmbedding
        # from_connection_string() would put the engine on a loop of its own, in a thread: a hop for each call.
        self._pool = create_async_engine(dsn.replace("postgresql:", "postgresql+asyncpg:", 1))
        self._engine = package.PGEngine.from_engine(self._pool)
        own = await asyncpg.connect(dsn)
        there = await own.fetchval(f"SELECT to_regclass('{_TABLE}')")
        tuned = await own.fetchval("SELECT current_setting('hnsw.ef_search', true)")
        if there is None:
            await self._engine.ainit_vectorstore_table(
                _TABLE, DIMENSIONS, metadata_columns=[package.Column("org", "TEXT", nullable=False)]
            )
            await own.execute(f"CREATE INDEX ON {_TABLE} (org)")
        await own.close()
        self._store = await package.PGVectorStore.create(
            self._engine,
            fake(size=DIMENSIONS),
            _TABLE,
            metadata_columns=["org"],
            # Sent before each search; a login that has it set needs no such statement.
            index_query_options=None if tuned else indexes.HNSWQueryOptions(ef_search=100),
        )
        if there is None:
            await self._store.aapply_vector_index(indexes.HNSWIndex(m=16, ef_construction=64))

    async def add_many(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        await self._store.aadd_embeddings(
            [row.content for row in rows],
            [row.vector.tolist() for row in rows],
            [{"org": row.tenant} for row in rows],
            [str(UUID(int=row.number + 1)) for row in rows],
        )

    async def search(self, tenant: str, vector: Array, k: int) -> Sequence[int]:
        """Search with a filter on the metadata column."""
        found = await self._store.asimilarity_search_with_score_by_vector(vector.tolist(), k=k, filter={"org": tenant})
        return [UUID(str(document.id)).int - 1 for document, _score in found]

    async def close(self) -> None:
        """Close the pool."""
        await self._pool.dispose()
