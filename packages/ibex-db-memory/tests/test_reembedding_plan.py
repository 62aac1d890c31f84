"""Large scopes after a move: the index of the dimension, or an exact scan that says why; recall either way."""

import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pgvector
import pytest
from homes import Home
from sqlalchemy import event, text

from ibex_db_core.database import Database
from ibex_db_memory import MemoryRepository
from ibex_db_memory.models import EmbeddingSpace, SpaceStatus
from ibex_db_memory.search.plan import EXACT_UP_TO
from ibex_db_tenancy import Organization

ROWS = EXACT_UP_TO + 500
ASK = text("SELECT ibex_core.embedding_spaces_is_active(:org, :space)")
Floats = np.ndarray[tuple[int, int], np.dtype[np.float32]]


async def load(owner: asyncpg.Connection, home: Home, dimensions: int) -> tuple[UUID, list[UUID], Floats]:
    """Put an organization into a space of its own, vectors scattered around topics; return space, ids, vectors."""
    await owner.set_type_codec(
        "vector", encoder=pgvector.Vector.to_binary, decoder=pgvector.Vector.from_binary, format="binary"
    )
    rng = np.random.default_rng(dimensions)
    topics = rng.standard_normal((60, dimensions))
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)
    vectors = topics[rng.integers(60, size=ROWS)] + rng.standard_normal((ROWS, dimensions)) * 0.7 / dimensions**0.5
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    space, ids = uuid4(), [uuid4() for _ in range(ROWS)]
    # The vector index is made at the end, in a tenth of the time.
    await owner.execute("DROP INDEX ibex_core.memory_vectors_768_hnsw")
    await owner.execute(
        "INSERT INTO ibex_core.embedding_spaces (org_id, id, embedding_model, dimensions, status, in_memories) "
        "VALUES ($1, $2, 'bge', $3, 'active', false)",
        home.org_id,
        space,
        dimensions,
    )
    await owner.copy_records_to_table(
        "memories",
        schema_name="ibex_core",
        columns=["org_id", "agent_id", "id", "content", "content_hash", "category"],
        records=[
            (home.org_id, home.agent_id, ident, f"Number {at}.", f"{at:064x}", "factual")
            for at, ident in enumerate(ids)
        ],
    )
    await owner.copy_records_to_table(
        "memory_vectors",
        schema_name="ibex_core",
        columns=["org_id", "space_id", "id", "content_hash", "dimensions", "embedding"],
        records=[
            (home.org_id, space, ident, f"{at:064x}", dimensions, pgvector.Vector(vectors[at]))
            for at, ident in enumerate(ids)
        ],
    )
    await owner.execute(
        "SET maintenance_work_mem = '64MB'; SET max_parallel_maintenance_workers = 0;"
        "CREATE INDEX memory_vectors_768_hnsw ON ibex_core.memory_vectors USING hnsw "
        "((embedding::vector(768)) vector_cosine_ops) WITH (m = 16, ef_construction = 200) WHERE dimensions = 768;"
        "ANALYZE ibex_core.memories; ANALYZE ibex_core.memory_vectors"
    )
    return space, ids, vectors


@pytest.mark.parametrize(
    ("dimensions", "exact", "reason"),
    [(768, False, "more than 5000 rows in scope"), (100, True, "vectors of 100 dimensions have no index")],
)
async def test_recall_in_a_large_scope_and_how_it_was_answered(
    ibex_db: Database, home: Home, owner: asyncpg.Connection, *, dimensions: int, exact: bool, reason: str
) -> None:
    _, ids, vectors = await load(owner, home, dimensions)
    place = {ident: at for at, ident in enumerate(ids)}
    rng = np.random.default_rng(5)
    right: list[bool] = []
    async with ibex_db.tenant(home.org_id) as session:
        memories = MemoryRepository(session)
        for at in rng.integers(ROWS, size=20):
            asked = (vectors[at] + rng.standard_normal(dimensions) * 0.2 / dimensions**0.5).astype(np.float32)
            hits = await memories.search(embedding=asked)
            tenth = np.sort(vectors @ asked)[-10]
            right += [bool(vectors[place[hit.memory.id]] @ asked >= tenth - 1e-5) for hit in hits]
            assert len(hits) == 10
            assert (hits.plan.exact, hits.plan.rescanned) == (exact, False)
            assert reason in hits.plan.reason

    assert np.mean(right) >= 0.99


async def test_a_large_scope_is_answered_by_the_index_of_its_dimension(
    ibex_db: Database, home: Home, owner: asyncpg.Connection
) -> None:
    _, _, vectors = await load(owner, home, 768)

    by_index = await explained(ibex_db, home, vectors[0].tolist(), exact=False)
    exactly = await explained(ibex_db, home, vectors[0].tolist(), exact=True)

    # load() made it anew, so that a partition's has Postgres's name.
    assert any("_embedding_idx" in node.get("Index Name", "") for node in by_index)
    assert not any("_embedding_idx" in node.get("Index Name", "") for node in exactly)
    for nodes in (by_index, exactly):
        read = {node["Relation Name"] for node in nodes if "Relation Name" in node}
        assert len([name for name in read if name.startswith("memories_p")]) == 1
        assert len([name for name in read if name.startswith("memory_vectors_p")]) == 1


async def test_an_organization_that_never_moved_reads_no_vectors_beside_and_is_asked_about_once(
    ibex_db: Database, home: Home
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        await MemoryRepository(session).remember(
            agent_id=home.agent_id, content="Tea.", category="factual", embedding=[1.0] * 384
        )

    nodes = await explained(ibex_db, home, [1.0] * 384, exact=False)

    read = [node["Relation Name"] for node in nodes if "Relation Name" in node]
    assert sorted({name.partition("_p")[0] for name in read}) == ["memories"]
    # What is assumed of the space is a condition of the whole, not of each row; a function asks, whose plan is kept.
    conditions = [(kind, str(said)) for node in nodes for kind, said in node.items() if "embedding_spaces" in str(said)]
    assert [kind for kind, _ in conditions if kind != "Plans"] == ["One-Time Filter"]
    assert "embedding_spaces_is_active(" in dict(conditions)["One-Time Filter"]


async def test_the_plan_of_the_question_is_kept_and_asks_for_whoever_the_transaction_is_of(
    ibex_db: Database, home: Home, owner: asyncpg.Connection
) -> None:
    """A kept plan is made for one role and any organization; each asks for its own, whatever was asked before."""
    moved, never = home.org_id, uuid4()
    async with ibex_db.platform(reason="test data") as session:
        session.add(Organization(id=never, name="Never", slug="never"))
    async with ibex_db.tenant(moved) as session:
        space = EmbeddingSpace(embedding_model="other", dimensions=768, status=SpaceStatus.ACTIVE, in_memories=False)
        session.add(space)
        await session.flush()
        there = space.id

    async def asked(tenant: UUID, org: UUID, space: UUID | None) -> bool:
        async with ibex_db.tenant(tenant) as session:
            given = {"org": org, "space": space}
            return bool((await session.execute(ASK, given)).scalar_one())

    assert await owner.fetchval("SELECT ibex_core.embedding_spaces_is_active($1, $2)", moved, there) is True
    for _ in range(8):  # more than the five after which Postgres would choose by itself
        assert await asked(moved, moved, None) is False
        assert await asked(moved, moved, there) is True
        assert await asked(never, never, None) is True
        assert await asked(never, moved, there) is False  # the policies hold inside it: a neighbour's space is not seen


async def explained(database: Database, home: Home, asked: list[float], *, exact: bool) -> list[dict[str, Any]]:
    """Run a search, then EXPLAIN its last statement; return the plan's nodes."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_rest: object) -> None:
        sent.append((statement, parameters))

    async with database.tenant(home.org_id) as session:
        connection = await session.connection()
        event.listen(connection.sync_connection, "before_cursor_execute", note)
        assert await MemoryRepository(session).search(embedding=asked, exact=exact)
        event.remove(connection.sync_connection, "before_cursor_execute", note)
        statement, parameters = sent[-1]
        found = (await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)).scalar_one()
    nodes = [(json.loads(found) if isinstance(found, str) else found)[0]["Plan"]]
    for node in nodes:
        nodes.extend(node.get("Plans", []))
    return nodes
