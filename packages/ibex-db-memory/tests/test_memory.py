"""The memories table: defaults, rules, relationships."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest
from homes import Home, MakeMemory
from sqlalchemy import event, insert, inspect, select, text
from sqlalchemy.orm import selectinload, undefer

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, ForeignKeyError, InvalidInputError, NotLoadedError, RuleViolationError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import Memory, MemoryCategory, MemorySource, MemoryStatus, MemoryTag, Session, content_hash
from ibex_db_tenancy import Agent

VECTOR = [0.5] * 384


def test_setting_content_sets_its_hash() -> None:
    memory = Memory(content="Likes  TEA")

    assert memory.content_hash == content_hash("likes tea")

    memory.content = "Likes coffee"

    assert memory.content_hash == content_hash("likes coffee")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content", ""),
        ("content", " \t\n\u2003"),
        ("content", "x" * 8193),
        ("content", "a\x00b"),
        ("content", "\ud800"),
        ("content", None),
        ("content", 3),
        ("embedding", [0.1] * 383),
        ("embedding", [float("nan")] * 384),
        ("embedding", [float("inf")] * 384),
        ("embedding", "[1,2,3]"),
        ("embedding_model", ""),
        ("category", "gossip"),
        ("source", "hearsay"),
        ("status", "forgotten"),
        ("confidence", 1.001),
        ("confidence", -0.001),
        ("confidence", float("nan")),
        ("usefulness_score", 2),
        ("retrieval_count", -1),
        ("expires_at", datetime(2030, 1, 1)),  # noqa: DTZ001 - naive on purpose
        ("valid_from", "yesterday"),
        ("metadata_", {"f": object()}),
        ("metadata_", {"n": float("nan")}),
        ("metadata_", ["a"]),
        ("metadata_", {"s": "\ud800"}),
        ("metadata_", {"s": "\x00"}),
        ("metadata_", {"a\x00": {}}),
        ("metadata_", {"s": "\\\x00"}),
        ("agent_id", "no uuid"),
    ],
)
def test_bad_input_is_refused_on_assignment(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Memory(**{field: value})

    assert caught.value.field == field


@pytest.mark.parametrize("harmless", ["\\u0000", "\\\\u0000", "\\", "é😀"])
async def test_metadata_with_backslashes_makes_the_round_trip(
    session: ScopedSession, make_memory: MakeMemory, harmless: str
) -> None:
    session.add(make_memory(metadata_={harmless: [harmless]}))
    await session.flush()
    session.expunge_all()

    assert (await session.scalars(select(Memory.metadata_))).one() == {harmless: [harmless]}


def test_content_of_the_greatest_length_is_taken() -> None:
    assert len(Memory(content="x" * 8192).content) == 8192


def test_numbers_are_kept_as_decimals_of_three_places() -> None:
    assert Memory(confidence=0.12345).confidence == Decimal("0.123")


async def test_defaults_are_filled_in_at_flush(session: ScopedSession, make_memory: MakeMemory) -> None:
    memory = make_memory()

    session.add(memory)
    await session.flush()

    assert memory.status is MemoryStatus.ACTIVE
    assert memory.source is MemorySource.EXTRACTED
    assert (memory.confidence, memory.usefulness_score) == (Decimal("0.800"), Decimal("0.500"))
    assert (memory.retrieval_count, memory.metadata_) == (0, {})
    assert memory.created_at == memory.updated_at == memory.valid_from


async def test_defaults_of_the_server_are_the_same(session: ScopedSession, home: Home) -> None:
    await session.execute(
        text(
            "INSERT INTO ibex_core.memories (org_id, agent_id, content, content_hash, category)"
            " VALUES (:org, :agent, 'tea', :hash, 'factual')"
        ),
        {"org": home.org_id, "agent": home.agent_id, "hash": content_hash("tea")},
    )

    memory = (await session.scalars(select(Memory))).one()

    assert (memory.status, memory.source) == (MemoryStatus.ACTIVE, MemorySource.EXTRACTED)
    assert (memory.confidence, memory.usefulness_score) == (Decimal("0.800"), Decimal("0.500"))
    assert (memory.retrieval_count, memory.metadata_) == (0, {})
    assert memory.valid_until is None
    assert memory.valid_from == memory.created_at == memory.updated_at


async def test_a_core_insert_gets_its_hash(session: ScopedSession, home: Home) -> None:
    row = {"org_id": home.org_id, "agent_id": home.agent_id, "content": "Tea", "category": MemoryCategory.FACTUAL}

    await session.execute(insert(Memory), [row, {**row, "content": "Coffee"}])

    hashes = set(await session.scalars(select(Memory.content_hash)))
    assert hashes == {content_hash("tea"), content_hash("coffee")}


async def test_a_hash_set_by_hand_is_refused_before_sql(session: ScopedSession, make_memory: MakeMemory) -> None:
    session.add(make_memory(content_hash="0" * 64))

    with pytest.raises(InvalidInputError, match="content_hash is made from content"):
        await session.flush()


async def test_update_brings_updated_at_back(ibex_db: Database, home: Home, make_memory: MakeMemory) -> None:
    memory = make_memory()
    async with ibex_db.tenant(home.org_id) as first:
        first.add(memory)

    async with ibex_db.tenant(home.org_id) as second:
        found = await second.get_one(Memory, memory.id)
        found.confidence = Decimal("0.5")
        await second.flush()

        assert found.updated_at > found.created_at


async def test_reads_leave_embedding_and_search_vector_alone(session: ScopedSession, make_memory: MakeMemory) -> None:
    session.add(make_memory(embedding=VECTOR))
    await session.flush()
    session.expunge_all()

    memory = (await session.scalars(select(Memory))).one()

    assert {"embedding", "search_vector"} <= inspect(memory).unloaded
    with pytest.raises(NotLoadedError, match=r"Memory\.embedding"):
        _ = memory.embedding
    with pytest.raises(NotLoadedError, match=r"Memory\.search_vector"):
        _ = memory.search_vector


async def test_an_embedding_comes_when_asked_for(session: ScopedSession, make_memory: MakeMemory) -> None:
    session.add(make_memory(embedding=VECTOR))
    await session.flush()
    session.expunge_all()

    memory = (await session.scalars(select(Memory).options(undefer(Memory.embedding)))).one()

    assert memory.embedding == VECTOR


async def test_writes_do_not_return_the_search_vector(
    ibex_db: Database, session: ScopedSession, make_memory: MakeMemory
) -> None:
    sent: list[str] = []

    @event.listens_for(ibex_db.engine.sync_engine, "before_cursor_execute")
    def _record(_c: object, _cursor: object, statement: str, *_rest: object) -> None:  # pyright: ignore[reportUnusedFunction]
        sent.append(statement)

    memory = make_memory()
    session.add(memory)
    await session.flush()
    memory.confidence = Decimal("0.5")
    await session.flush()

    assert [statement.split()[0] for statement in sent] == ["INSERT", "UPDATE"]
    assert not any("search_vector" in statement for statement in sent)


async def test_search_vector_serves_in_queries(session: ScopedSession, make_memory: MakeMemory) -> None:
    session.add_all([make_memory("Prefers tea"), make_memory("Owns a dog")])
    await session.flush()

    found = await session.scalars(
        select(Memory.content).where(Memory.search_vector.bool_op("@@")(text("to_tsquery('dogs')")))
    )

    assert list(found) == ["Owns a dog"]


async def test_tags_come_in_order_and_only_when_asked_for(session: ScopedSession, make_memory: MakeMemory) -> None:
    session.add(make_memory(tags=[MemoryTag(tag="tea"), MemoryTag(tag="Drinks")]))
    await session.flush()
    session.expunge_all()

    bare = (await session.scalars(select(Memory))).one()
    with pytest.raises(NotLoadedError, match=r"Memory\.tags"):
        _ = bare.tags

    memory = (await session.scalars(select(Memory).options(selectinload(Memory.tags)))).one()
    assert [tag.tag for tag in memory.tags] == ["drinks", "tea"]


async def test_a_memory_gets_its_organization_from_its_agent(ibex_db: Database, home: Home) -> None:
    async with ibex_db.platform(reason="no tenant to fill org_id in from") as session:
        agent = await session.get_one(Agent, (home.org_id, home.agent_id))
        run = Session(agent=agent)
        memory = Memory(agent=agent, session=run, content="tea", category="factual", tags=[MemoryTag(tag="drinks")])
        session.add(memory)
        await session.flush()

        assert memory.org_id == run.org_id == memory.tags[0].org_id == home.org_id
        assert memory.session_id == run.id


async def test_erasing_a_session_leaves_its_memories(
    session: ScopedSession, home: Home, make_memory: MakeMemory
) -> None:
    run = Session(agent_id=home.agent_id)
    memory = make_memory(session=run)
    session.add(memory)
    await session.flush()

    await session.execute(text("DELETE FROM ibex_core.sessions"))
    await session.refresh(memory)

    assert memory.session_id is None
    assert memory.org_id == home.org_id


@pytest.mark.parametrize(("pointer", "status"), [("superseded_by", "superseded"), ("merged_into", "merged")])
async def test_erasing_a_successor_clears_the_pointer(
    session: ScopedSession, make_memory: MakeMemory, pointer: str, status: str
) -> None:
    new = make_memory("new")
    session.add(new)
    await session.flush()
    old = make_memory("old", **{pointer: new.id, "status": status})
    session.add(old)
    await session.flush()

    await session.execute(text("DELETE FROM ibex_core.memories WHERE content = 'new'"))
    await session.refresh(old)

    assert getattr(old, pointer) is None


async def test_one_agent_keeps_one_active_memory_of_a_content(session: ScopedSession, make_memory: MakeMemory) -> None:
    session.add(make_memory("Tea"))
    await session.flush()
    session.add(make_memory(" TEA "))

    with pytest.raises(ConflictError) as caught:
        await session.flush()

    assert caught.value.constraint == "memories_content_hash_org"


@pytest.mark.parametrize("gone", [{"status": "archived"}, {"deleted_at": datetime.now(UTC)}])
async def test_what_is_archived_or_deleted_is_no_duplicate(
    session: ScopedSession, make_memory: MakeMemory, gone: dict[str, object]
) -> None:
    session.add_all([make_memory("Tea", **gone), make_memory("Tea")])

    await session.flush()


async def test_rule_24_on_conflict_finds_the_partial_index(
    session: ScopedSession, home: Home, make_memory: MakeMemory
) -> None:
    session.add(make_memory("Tea"))
    await session.flush()

    result = await session.execute(
        text(
            "INSERT INTO ibex_core.memories (org_id, agent_id, content, content_hash, category)"
            " VALUES (:org, :agent, 'tea', :hash, 'factual')"
            " ON CONFLICT (org_id, agent_id, content_hash) WHERE status = 'active' AND deleted_at IS NULL"
            " DO NOTHING RETURNING id"
        ),
        {"org": home.org_id, "agent": home.agent_id, "hash": content_hash("tea")},
    )

    assert result.all() == []


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("content", "' '", "memories_content_not_empty"),
        ("content", "repeat('x', 8193)", "memories_content_max_length"),
        ("content_hash", "'beef'", "memories_content_hash_format"),
        ("category", "'gossip'", "memories_memory_category_known"),
        ("status", "'forgotten'", "memories_memory_status_known"),
        ("source", "'hearsay'", "memories_memory_source_known"),
        ("confidence", "1.001", "memories_confidence_range"),
        ("usefulness_score", "-0.001", "memories_usefulness_score_range"),
        ("retrieval_count", "-1", "memories_retrieval_count_range"),
        ("valid_until", "valid_from", "memories_valid_from_before_until"),
        ("superseded_by", "id", "memories_not_superseded_by_itself"),
        ("merged_into", "id", "memories_not_merged_into_itself"),
        ("metadata", "'[]'", "memories_metadata_is_object"),
        ("embedding_model", "''", "memories_embedding_model_length"),
    ],
)
async def test_the_database_refuses_bad_values_of_raw_sql(
    session: ScopedSession, make_memory: MakeMemory, column: str, value: str, rule: str
) -> None:
    session.add(make_memory())
    await session.flush()

    with pytest.raises(RuleViolationError) as caught:
        await session.execute(text(f"UPDATE ibex_core.memories SET {column} = {value}"))

    assert caught.value.constraint == rule


@pytest.mark.parametrize("field", ["agent_id", "superseded_by", "merged_into"])
async def test_a_row_of_another_organization_cannot_be_pointed_at(
    ibex_db: Database, home: Home, other_home: Home, make_memory: MakeMemory, field: str
) -> None:
    status = {"superseded_by": "superseded", "merged_into": "merged"}.get(field, "active")
    theirs = Memory(agent_id=other_home.agent_id, content="secret", category="factual")
    async with ibex_db.tenant(other_home.org_id) as session:
        session.add(theirs)
    target = other_home.agent_id if field == "agent_id" else theirs.id

    with pytest.raises(ForeignKeyError):
        async with ibex_db.tenant(home.org_id) as session:
            session.add(make_memory(**{field: target, "status": status}))


async def test_an_unknown_parent_is_refused(session: ScopedSession, make_memory: MakeMemory) -> None:
    session.add(make_memory(session_id=uuid4()))

    with pytest.raises(ForeignKeyError) as caught:
        await session.flush()

    assert caught.value.constraint == "memories_org_id_session_id_fkey"
