"""Importing what mem0 and LangGraph keep; their tables are made from their own words in peers/."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from sources import MEM0_PAYLOADS, Elsewhere, elsewhere, text_of
from sqlalchemy.orm import undefer

from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_core.provisioning import Cluster
from ibex_db_memory import (
    Imported,
    ImportedItem,
    ImportOptions,
    ImportOutcome,
    Memory,
    MemoryCategory,
    MemoryRepository,
    MemorySource,
    Session,
    SessionStatus,
)

Vector = Callable[[int], list[float]]


@pytest_asyncio.fixture
async def mem0(ibex_cluster: Cluster) -> AsyncIterator[Elsewhere]:
    async with elsewhere(ibex_cluster, tables="mem0") as found:
        yield found


@pytest_asyncio.fixture
async def langgraph(ibex_cluster: Cluster) -> AsyncIterator[Elsewhere]:
    async with elsewhere(ibex_cluster, tables="langgraph") as found:
        yield found


async def put(source: Elsewhere, payload: object, vector: list[float] | None = None) -> UUID:
    ident = uuid4()
    await source.connection.execute(
        "INSERT INTO mem0 VALUES ($1, $2::text::vector, $3::jsonb)",
        *(ident, None if vector is None else text_of(vector), None if payload is None else json.dumps(payload)),
    )
    return ident


async def store(
    source: Elsewhere, prefix: str, key: str, value: object, vectors: dict[str, list[float]] | None = None
) -> None:
    await source.connection.execute(
        "INSERT INTO store (prefix, key, value) VALUES ($1, $2, $3::jsonb)", prefix, key, json.dumps(value)
    )
    for field, vector in (vectors or {}).items():
        await source.connection.execute(
            "INSERT INTO store_vectors (prefix, key, field_name, embedding) VALUES ($1, $2, $3, $4::text::vector)",
            *(prefix, key, field, text_of(vector)),
        )


# -- mem0


async def test_a_row_of_mem0s_becomes_a_memory(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, mem0: Elsewhere, vector: Vector
) -> None:
    first, second = [await put(mem0, payload, vector(at)) for at, payload in enumerate(MEM0_PAYLOADS)]
    items: list[ImportedItem] = []

    done = await memories.import_mem0(
        mem0.dsn,
        agents={"support-bot": other_agent_id},
        agent_id=agent_id,
        options=ImportOptions(embedding_model="mini", category=MemoryCategory.PREFERENCE, on_item=items.append),
    )

    assert done == Imported(created=2)
    assert {item.source_id: item.outcome for item in items} == dict.fromkeys(
        map(str, (first, second)), ImportOutcome.CREATED
    )
    one = await memories.get(first, options=[undefer(Memory.embedding)])
    assert (one.content, one.agent_id, one.category, one.source) == (
        *("Prefers tea over coffee.", other_agent_id, MemoryCategory.PREFERENCE, MemorySource.IMPORTED),
    )
    assert (list(one.embedding or []), one.embedding_model) == (vector(0), "mini")
    assert one.metadata_ == {
        "user_id": "ada", "agent_id": "support-bot", "run_id": "run-1", "role": "user", "attributed_to": "user",
        "mood": "calm", "score": 0.75,
    }  # fmt: skip
    assert one.created_at == datetime(2026, 1, 2, 11, 4, 5, 678901, tzinfo=UTC)
    assert one.updated_at == one.created_at + timedelta(days=1)
    assert one.expires_at == datetime(3000, 1, 1, tzinfo=UTC)
    run = await memories.session.get(Session, one.session_id)
    assert run is not None
    assert (run.external_id, run.agent_id, run.status) == ("run-1", other_agent_id, SessionStatus.COMPLETED)
    two = await memories.get(second)
    assert (two.agent_id, two.category, two.session_id) == (agent_id, MemoryCategory.PROCEDURAL, None)
    assert two.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    (version,) = await memories.history(second)
    assert (version.operation, version.created_at) == ("imported", two.created_at)


async def test_importing_mem0_again_adds_nothing_and_duplicates_are_told(
    memories: MemoryRepository, agent_id: UUID, mem0: Elsewhere
) -> None:
    for said in ("Likes tea.", "likes  TEA.", "Likes milk."):
        await put(mem0, {"data": said, "user_id": "ada", "run_id": "r"})

    first = await memories.import_mem0(mem0.connection, agent_id=agent_id, options=ImportOptions(batch_size=1))
    second = await memories.import_mem0(mem0.connection, agent_id=agent_id)

    assert (first.created, first.duplicates) == (2, 1)
    assert (second.created, second.known, second.duplicates) == (0, 2, 1)
    assert await memories.count() == 2


async def test_what_was_erased_does_not_come_back_from_mem0(
    memories: MemoryRepository, agent_id: UUID, mem0: Elsewhere
) -> None:
    ident = await put(mem0, {"data": "Wears a wig."})
    await memories.import_mem0(mem0.connection, agent_id=agent_id)
    await memories.erase(ident)

    assert await memories.import_mem0(mem0.connection, agent_id=agent_id) == Imported(erased=1)
    again = await memories.import_mem0(mem0.connection, agent_id=agent_id, options=ImportOptions(include_erased=True))
    assert again.created == 1


@pytest.mark.parametrize("payload", [None, {}, {"data": ""}, {"user_id": "ada"}])
async def test_a_row_without_data_is_skipped_as_mem0_does(
    memories: MemoryRepository, agent_id: UUID, mem0: Elsewhere, payload: object
) -> None:
    await put(mem0, payload)

    assert await memories.import_mem0(mem0.connection, agent_id=agent_id) == Imported(skipped=1)


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"data": " "}, "content"),
        ({"data": "x" * 8193}, "content"),
        ({"data": "Tea.", "created_at": "yesterday"}, "created_at"),
        ({"data": "Tea.", "created_at": 5}, "created_at"),
        ({"data": "Tea.", "expiration_date": "soon"}, "expiration_date"),
        ({"data": "Tea.", "run_id": "r" * 256}, "external_id"),
    ],
)
async def test_a_bad_row_of_mem0s_is_told_or_skipped(
    memories: MemoryRepository, agent_id: UUID, mem0: Elsewhere, payload: object, field: str
) -> None:
    await put(mem0, payload)
    await put(mem0, {"data": "Coffee."})
    items: list[ImportedItem] = []

    with pytest.raises(InvalidInputError) as caught:
        await memories.import_mem0(mem0.connection, agent_id=agent_id)
    assert caught.value.field == field
    assert await memories.count() == 0
    options = ImportOptions(skip_invalid=True, on_item=items.append)
    assert await memories.import_mem0(mem0.connection, agent_id=agent_id, options=options) == Imported(
        created=1, skipped=1
    )
    (skipped,) = [item for item in items if item.outcome is ImportOutcome.SKIPPED]
    assert skipped.id is None
    assert field in (skipped.reason or "")


async def test_a_row_that_nobody_here_is_named_for_is_refused(
    memories: MemoryRepository, agent_id: UUID, mem0: Elsewhere
) -> None:
    await put(mem0, {"data": "Tea.", "agent_id": "sales-bot"})

    with pytest.raises(InvalidInputError, match="agent_id for all others"):
        await memories.import_mem0(mem0.connection, agents={"support-bot": agent_id})
    with pytest.raises(NotFoundError):
        await memories.import_mem0(mem0.connection, agent_id=uuid4())


async def test_vectors_of_another_dimension_are_refused_and_may_be_left_behind(
    memories: MemoryRepository, agent_id: UUID, mem0: Elsewhere
) -> None:
    await mem0.connection.execute("CREATE TABLE wide (id uuid PRIMARY KEY, vector vector(3), payload jsonb)")
    await mem0.connection.execute("""INSERT INTO wide VALUES (gen_random_uuid(), '[1,2,3]', '{"data": "Tea."}')""")

    with pytest.raises(InvalidInputError, match=r"384 dimensions.*embeddings=False.*3 dimensions"):
        await memories.import_mem0(mem0.connection, table="wide", agent_id=agent_id)
    options = ImportOptions(embeddings=False, embedding_model="mini")
    assert (await memories.import_mem0(mem0.connection, table="wide", agent_id=agent_id, options=options)).created == 1
    assert (await memories.find())[0].embedding_model is None


@pytest.mark.parametrize("table", ["nothing", 'no"; DROP TABLE mem0; --'])
async def test_a_table_that_is_not_mem0s_is_refused(
    memories: MemoryRepository, agent_id: UUID, mem0: Elsewhere, table: str
) -> None:
    with pytest.raises(InvalidInputError, match="no table of mem0"):
        await memories.import_mem0(mem0.connection, table=table, agent_id=agent_id)
    assert await mem0.connection.fetchval("SELECT count(*) FROM mem0") == 0


# -- LangGraph


async def test_an_item_of_langgraphs_becomes_a_memory(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, langgraph: Elsewhere, vector: Vector
) -> None:
    await store(
        langgraph, "memories.ada", "k1", {"text": "Likes tea.", "n": 1.5, "deep": {"a": [1]}}, {"text": vector(1)}
    )
    await store(langgraph, "memories.ada.work", "k1", {"kind": "Memory", "content": {"content": "Is a nurse."}})
    await store(langgraph, "memories.bob", "k1", {"colour": "blue", "n": 2}, {"$": vector(2)})
    await langgraph.connection.execute("UPDATE store SET expires_at = '3000-01-01Z', created_at = '2026-01-01Z'")

    done = await memories.import_langgraph(
        langgraph.dsn, agents={"memories": agent_id, "memories.ada.work": other_agent_id}
    )

    assert done == Imported(created=3)
    found = {memory.content: memory for memory in await memories.find(options=[undefer(Memory.embedding)])}
    tea, nurse, blue = found["Likes tea."], found["Is a nurse."], found['{"n": 2, "colour": "blue"}']
    assert (list(tea.embedding or []), nurse.embedding, list(blue.embedding or [])) == (vector(1), None, vector(2))
    assert [memory.agent_id for memory in (tea, nurse, blue)] == [agent_id, other_agent_id, agent_id]
    assert tea.metadata_ == {"namespace": ["memories", "ada"], "key": "k1", "value": {"n": 1.5, "deep": {"a": [1]}}}
    assert nurse.metadata_["value"] == {"kind": "Memory"}
    assert blue.metadata_["value"] == {}
    assert (tea.expires_at, tea.created_at) == (datetime(3000, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC))
    assert len({memory.id for memory in found.values()}) == 3
    assert await memories.import_langgraph(langgraph.connection, agent_id=agent_id) == Imported(known=3)


async def test_the_content_and_the_vector_can_be_named(
    memories: MemoryRepository, agent_id: UUID, langgraph: Elsewhere, vector: Vector
) -> None:
    value = {"title": "Tea", "body": {"said": "Likes tea."}}
    await store(langgraph, "m", "k", value, {"title": vector(1), "body.said": vector(2), "other": vector(3)})

    with pytest.raises(InvalidInputError, match=r"vector_field.*body\.said, other, title"):
        await memories.import_langgraph(langgraph.connection, agent_id=agent_id)
    with pytest.raises(InvalidInputError, match="content"):
        await memories.import_langgraph(langgraph.connection, agent_id=agent_id, content="body.text")
    done = await memories.import_langgraph(
        langgraph.connection, agent_id=agent_id, content="body.said", vector_field="title"
    )

    assert done.created == 1
    (memory,) = await memories.find(options=[undefer(Memory.embedding)])
    assert (memory.content, memory.metadata_["value"]) == ("Likes tea.", {"title": "Tea"})
    assert list(memory.embedding or []) == vector(1)


async def test_an_item_in_a_namespace_of_nobodys_is_refused(
    memories: MemoryRepository, agent_id: UUID, langgraph: Elsewhere
) -> None:
    await store(langgraph, "memories2.ada", "k", {"text": "Tea."})

    with pytest.raises(InvalidInputError, match="namespace"):
        await memories.import_langgraph(langgraph.connection, agents={"memories": agent_id})


async def test_a_store_without_vectors_and_one_of_another_dimension(
    memories: MemoryRepository, agent_id: UUID, langgraph: Elsewhere
) -> None:
    await store(langgraph, "m", "k", {"text": "Tea."})
    await langgraph.connection.execute("DROP INDEX store_vectors_embedding_idx")
    await langgraph.connection.execute("ALTER TABLE store_vectors ALTER COLUMN embedding TYPE halfvec(3)")

    with pytest.raises(InvalidInputError, match="384 dimensions"):
        await memories.import_langgraph(langgraph.connection, agent_id=agent_id)
    await langgraph.connection.execute("DROP TABLE store_vectors")
    assert (await memories.import_langgraph(langgraph.connection, agent_id=agent_id)).created == 1
    with pytest.raises(InvalidInputError, match="no table store"):
        await memories.import_langgraph(langgraph.connection, schema="elsewhere", agent_id=agent_id)


async def test_half_precision_vectors_come_along(
    memories: MemoryRepository, agent_id: UUID, langgraph: Elsewhere
) -> None:
    await langgraph.connection.execute("DROP INDEX store_vectors_embedding_idx")
    await langgraph.connection.execute("ALTER TABLE store_vectors ALTER COLUMN embedding TYPE halfvec(384)")
    await langgraph.connection.execute(
        """
        INSERT INTO store (prefix, key, value) VALUES ('m', 'k', '{"text": "Tea."}');
        INSERT INTO store_vectors (prefix, key, field_name, embedding)
            SELECT 'm', 'k', 'text', array_agg(0.5)::real[]::vector::halfvec FROM generate_series(1, 384)
        """
    )

    assert (await memories.import_langgraph(langgraph.connection, agent_id=agent_id)).created == 1
    (memory,) = await memories.find(options=[undefer(Memory.embedding)])
    assert list(memory.embedding or []) == [0.5] * 384


async def test_many_items_stream_in_batches(memories: MemoryRepository, agent_id: UUID, langgraph: Elsewhere) -> None:
    await langgraph.connection.execute(
        "INSERT INTO store (prefix, key, value) "
        "SELECT 'm', i::text, jsonb_build_object('text', 'Number ' || i) FROM generate_series(1, 1234) i"
    )
    told: list[int] = []

    done = await memories.import_langgraph(
        langgraph.connection, agent_id=agent_id, options=ImportOptions(batch_size=500, progress=told.append)
    )

    assert done.created == 1234
    assert told == [500, 1000, 1234]
