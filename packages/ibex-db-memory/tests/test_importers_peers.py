"""The importers against tables that the packages themselves make: `nox -s importers` runs these.

mem0 and LangGraph are heavy, so they are not in the default group.
"""

from typing import Any
from uuid import UUID, uuid4

import pytest
from sources import MEM0_PAYLOADS, elsewhere

from ibex_db_core.provisioning import Cluster
from ibex_db_memory import MemoryRepository

_WHY = "{} is not installed: uv sync --group peers, or nox -s importers"

# Their own deprecations are not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


def vector(seed: float) -> list[float]:
    return [seed / (1 + at) for at in range(384)]


async def test_mem0s_own_table_is_the_one_that_is_tested_and_comes_in(
    ibex_cluster: Cluster, memories: MemoryRepository, agent_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEM0_TELEMETRY", "False")
    pgvector: Any = pytest.importorskip("mem0.vector_stores.pgvector", reason=_WHY.format("mem0ai"))
    ids = [str(uuid4()) for _ in MEM0_PAYLOADS]
    async with elsewhere(ibex_cluster, tables="mem0") as ours, elsewhere(ibex_cluster) as theirs:
        made = pgvector.PGVector(
            dbname=None, collection_name="mem0", embedding_model_dims=384, user=None, password=None, host=None,
            port=None, diskann=False, hnsw=True, connection_string=theirs.dsn,
        )  # fmt: skip
        made.insert([vector(at + 1) for at in range(len(ids))], payloads=list(MEM0_PAYLOADS), ids=ids)
        made.connection_pool.close()

        assert await theirs.shape() == await ours.shape()
        done = await memories.import_mem0(theirs.dsn, agent_id=agent_id)

    assert done.created == len(ids)
    hits = await memories.search(embedding=vector(1), limit=1)
    assert [hit.memory.content for hit in hits]
    assert {str(memory.id) for memory in await memories.find()} == set(ids)


async def test_langgraphs_own_tables_are_those_that_are_tested_and_come_in(
    ibex_cluster: Cluster, memories: MemoryRepository, agent_id: UUID
) -> None:
    aio: Any = pytest.importorskip("langgraph.store.postgres.aio", reason=_WHY.format("langgraph-checkpoint-postgres"))

    async def embed(texts: list[str]) -> list[list[float]]:
        return [vector(len(text)) for text in texts]

    index: dict[str, Any] = {"dims": 384, "embed": embed, "fields": ["text"], "distance_type": "cosine"}
    index["ann_index_config"] = {"kind": "hnsw", "vector_type": "vector"}
    async with elsewhere(ibex_cluster, tables="langgraph") as ours, elsewhere(ibex_cluster) as theirs:
        async with aio.AsyncPostgresStore.from_conn_string(theirs.dsn, index=index) as made:
            await made.setup()
            await made.aput(("memories", "ada"), "tea", {"text": "Likes tea.", "n": 1.5}, ttl=10)
            await made.aput(("memories", "bob"), "tea", {"text": "Likes milk."})
            await made.aput(("memories", "bob"), "list", {"items": ["a", "b"]})

        assert await theirs.shape() == await ours.shape()
        done = await memories.import_langgraph(theirs.dsn, agents={"memories": agent_id})

    assert done.created == 3
    found = {memory.content: memory for memory in await memories.find()}
    assert found.keys() == {"Likes tea.", "Likes milk.", '{"items": ["a", "b"]}'}
    assert found["Likes tea."].expires_at is not None
    assert found["Likes tea."].metadata_["namespace"] == ["memories", "ada"]
