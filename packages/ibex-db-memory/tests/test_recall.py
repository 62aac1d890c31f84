"""Recall: tenants of every size in one table of 30,000 memories find what an exact search finds.

The rows are loaded by the owner, and the vector index is made at the end: what is
tested is the search, and a row at a time would take minutes.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pgvector
import pytest
from sqlalchemy import event, text

from ibex_db_core.database import Database
from ibex_db_core.provisioning import Cluster
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import MemoryRepository

T = TypeVar("T")
Floats = np.ndarray[tuple[int, int], np.dtype[np.float32]]

SIZES = (100, 2_000, 10_000)
FILLERS = (1_790,) * 10
TOPICS = 120
QUERIES = 40
RARE = 12


@dataclass(frozen=True)
class Tenant:
    """One organization's vectors, row by row, and their ids."""

    org_id: UUID
    agent_id: UUID
    ids: Sequence[UUID]
    vectors: Floats

    def nearest(self, query: "np.ndarray[tuple[int], np.dtype[np.float32]]", among: Sequence[int]) -> Sequence[int]:
        """Return rows by exact cosine similarity, best first."""
        rows = np.array(among)
        return [int(row) for row in rows[np.argsort(-(self.vectors[rows] @ query), kind="stable")]]


@dataclass(frozen=True)
class Table:
    """The table, and one runner for all that is asked of it."""

    database: Database
    runner: asyncio.Runner
    tenants: Sequence[Tenant]
    topics: Floats

    def of_size(self, size: int) -> Tenant:
        return next(tenant for tenant in self.tenants if len(tenant.ids) == size)

    def queries(self, count: int = QUERIES) -> Floats:
        return around(self.topics, count, np.random.default_rng(99))

    def run(self, tenant: Tenant, work: Callable[[ScopedSession], Awaitable[T]]) -> T:
        async def run() -> T:
            async with self.database.tenant(tenant.org_id) as session:
                return await work(session)

        return self.runner.run(run())


def around(topics: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Make unit vectors scattered around topics, as embeddings of real text are."""
    found = topics[rng.integers(len(topics), size=count)] + rng.standard_normal((count, 384)).astype(np.float32) * 0.035
    unit: Floats = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture(scope="module")
def table(ibex_cluster: Cluster, ibex_template: str) -> Iterator[Table]:
    """Tenants of 100, 2,000 and 10,000 memories among ten others, in one table."""
    name = f"ibex_test_{uuid4().hex[:12]}"
    rng = np.random.default_rng(3)
    topics: Floats = rng.standard_normal((TOPICS, 384)).astype(np.float32)
    topics = (topics / np.linalg.norm(topics, axis=1, keepdims=True)).astype(np.float32)
    tenants = [
        Tenant(uuid4(), uuid4(), [uuid4() for _ in range(size)], around(topics, size, rng))
        for size in (*SIZES, *FILLERS)
    ]
    with asyncio.Runner() as runner:
        runner.run(ibex_cluster.create_database(name, template=ibex_template))
        runner.run(load(ibex_cluster.url(name).render_as_string(hide_password=False), tenants))
        database = ibex_cluster.database(name)
        yield Table(database, runner, tenants, topics)
        runner.run(database.close())
        runner.run(ibex_cluster.drop_database(name))


async def load(owner_url: str, tenants: Sequence[Tenant]) -> None:
    owner = await asyncpg.connect(owner_url)
    await owner.set_type_codec(
        "vector", encoder=pgvector.Vector.to_binary, decoder=pgvector.Vector.from_binary, format="binary"
    )
    # The vector index is made at the end, in a tenth of the time.
    await owner.execute("DROP INDEX ibex_core.memories_embedding_hnsw")
    await owner.copy_records_to_table(
        "organizations",
        schema_name="ibex_core",
        columns=["id", "name", "slug"],
        records=[(tenant.org_id, str(at), f"org-{at}") for at, tenant in enumerate(tenants)],
    )
    await owner.copy_records_to_table(
        "agents",
        schema_name="ibex_core",
        columns=["org_id", "id", "name", "slug"],
        records=[(tenant.org_id, tenant.agent_id, "a", "a") for tenant in tenants],
    )
    for tenant in tenants:
        await owner.copy_records_to_table(
            "memories",
            schema_name="ibex_core",
            columns=["org_id", "agent_id", "id", "content", "content_hash", "category", "embedding"],
            records=[
                (tenant.org_id, tenant.agent_id, ident, f"Number {at}.", f"{at:064x}", "factual", pgvector.Vector(row))
                for at, (ident, row) in enumerate(zip(tenant.ids, tenant.vectors, strict=True))
            ],
        )
        await owner.copy_records_to_table(
            "memory_tags",
            schema_name="ibex_core",
            columns=["org_id", "memory_id", "tag"],
            records=[(tenant.org_id, ident, "rare") for ident in tenant.ids[:RARE]],
        )
    await owner.execute(
        "SET maintenance_work_mem = '256MB'; SET max_parallel_maintenance_workers = 0;"
        "CREATE INDEX memories_embedding_hnsw ON ibex_core.memories USING hnsw (embedding vector_cosine_ops)"
        " WITH (m = 16, ef_construction = 200)"
    )
    await owner.execute("ANALYZE ibex_core.memories")
    await owner.execute("ANALYZE ibex_core.memory_tags")
    await owner.close()


@pytest.mark.parametrize(("size", "exact"), [(100, True), (2_000, True), (10_000, False)])
def test_recall_at_ten_is_at_least_099(table: Table, size: int, *, exact: bool) -> None:
    tenant = table.of_size(size)

    async def found(session: ScopedSession) -> list[bool]:
        correct: list[bool] = []
        for query in table.queries():
            hits = await MemoryRepository(session).search(embedding=query)
            assert len(hits) == 10
            assert (hits.plan.exact, hits.plan.rescanned) == (exact, False)
            # As good as the tenth is right: float32 cannot tell near ties apart.
            tenth = np.sort(tenant.vectors @ query)[-10]
            correct += [hit.score >= tenth - 1e-6 for hit in hits]
        return correct

    assert np.mean(table.run(tenant, found)) >= 0.99


def test_an_exact_search_finds_everything_in_a_large_scope_too(table: Table) -> None:
    tenant = table.of_size(10_000)

    async def check(session: ScopedSession) -> None:
        for query in table.queries(5):
            hits = await MemoryRepository(session).search(embedding=query, limit=50, exact=True)
            wanted = tenant.nearest(query, range(10_000))[:50]
            assert {hit.memory.id for hit in hits} == {tenant.ids[row] for row in wanted}

    table.run(tenant, check)


async def explained(session: ScopedSession, work: Callable[[], Awaitable[object]]) -> list[dict[str, Any]]:
    """Run a search, then EXPLAIN its last statement; return the plan's nodes."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_rest: object) -> None:
        sent.append((statement, parameters))

    connection = await session.connection()
    event.listen(connection.sync_connection, "before_cursor_execute", note)
    await work()
    event.remove(connection.sync_connection, "before_cursor_execute", note)
    statement, parameters = sent[-1]
    found = (await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)).scalar_one()
    nodes = [(json.loads(found) if isinstance(found, str) else found)[0]["Plan"]]
    for node in nodes:
        nodes.extend(node.get("Plans", []))
    return nodes


@pytest.mark.parametrize(
    ("size", "exact", "index"),
    [(10_000, False, True), (10_000, True, False), (2_000, False, False), (100, False, False)],
)
def test_one_partition_is_read_and_the_vector_index_in_a_large_scope_only(
    table: Table, size: int, *, exact: bool, index: bool
) -> None:
    query = table.queries(1)[0]

    async def check(session: ScopedSession) -> list[dict[str, Any]]:
        memories = MemoryRepository(session)
        return await explained(session, lambda: memories.search(embedding=query, exact=exact))

    nodes = table.run(table.of_size(size), check)
    read = {node["Relation Name"] for node in nodes if "Relation Name" in node}
    # And the one row that tells whether the organization has moved to another model, looked for once.
    assert len(read - {"embedding_spaces"}) == 1
    assert any("_embedding" in node.get("Index Name", "") for node in nodes) is index


def test_a_rare_tag_in_a_large_scope_loses_no_rows(table: Table) -> None:
    tenant, query = table.of_size(10_000), table.queries(1)[0]

    async def check(session: ScopedSession) -> None:
        hits = await MemoryRepository(session).search(embedding=query, tags_all=["rare"])
        assert [hit.memory.id for hit in hits] == [tenant.ids[row] for row in tenant.nearest(query, range(RARE))[:10]]

    table.run(tenant, check)


def test_where_the_index_gives_up_the_scope_is_scanned(table: Table) -> None:
    tenant, query = table.of_size(10_000), table.queries(1)[0]

    async def check(session: ScopedSession) -> None:
        # As in a tenant so large that the twelve rows lie beyond what the index visits.
        await session.execute(text("SET LOCAL hnsw.max_scan_tuples = 300"))
        await session.execute(text("SET LOCAL enable_sort = off"))
        memories = MemoryRepository(session)
        for limit, rows in ((10, 10), (RARE, RARE), (RARE + 1, RARE)):
            hits = await memories.search(embedding=query, tags_any=["rare"], limit=limit)
            wanted = tenant.nearest(query, range(RARE))[:rows]
            assert [hit.memory.id for hit in hits] == [tenant.ids[row] for row in wanted]
            assert (hits.plan.exact, hits.plan.rescanned, hits.plan.scope_rows) == (True, True, 5001)
            assert "too few" in hits.plan.reason

    table.run(tenant, check)


def test_an_agents_scope_is_as_large_as_the_agents(table: Table) -> None:
    tenant, query = table.of_size(10_000), table.queries(1)[0]

    async def check(session: ScopedSession) -> None:
        memories = MemoryRepository(session)
        assert (await memories.search(embedding=query, agent_id=uuid4())).plan.scope_rows == 0
        assert not (await memories.search(embedding=query, agent_id=tenant.agent_id)).plan.exact
        assert not (await memories.search(embedding=query, agent_id=[uuid4(), tenant.agent_id])).plan.exact

    table.run(tenant, check)


@pytest.mark.parametrize("text", [None, "number"])
def test_the_past_of_a_large_scope_is_read_by_its_keys(table: Table, text: str | None) -> None:
    """Ten thousand memories: one partition, two probes of the versions' key for each, nothing of another tenant's."""
    tenant, query = table.of_size(10_000), table.queries(1)[0]

    async def check(session: ScopedSession) -> list[dict[str, Any]]:
        memories = MemoryRepository(session)
        now = datetime.now(UTC)
        hits = await memories.search(embedding=query, as_of=now)
        assert [hit.memory.id for hit in hits] == [tenant.ids[row] for row in tenant.nearest(query, range(10_000))[:10]]
        return await explained(session, lambda: memories.search(embedding=query, text=text, as_of=now))

    nodes = table.run(tenant, check)
    read = [(node["Node Type"], node.get("Index Name")) for node in nodes if "Relation Name" in node]
    assert len({node["Relation Name"] for node in nodes if node.get("Relation Name", "").startswith("memories_p")}) == 1
    versions = [(kind, index) for kind, index in read if "memory_versions" in str(index)]
    assert versions == [("Index Scan", "memory_versions_number_key")] * 3
    assert not [
        node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "memory_versions"
    ]
