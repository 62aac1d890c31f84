"""The versions that the database writes."""

import asyncio
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from homes import Home, MakeMemory
from sqlalchemy import select, text
from sqlalchemy.orm import selectinload

from ibex_db_core.database import Database
from ibex_db_core.errors import AccessDeniedError, NotLoadedError, RuleViolationError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import Memory, MemoryVersion, VersionOperation


async def _operations(session: ScopedSession) -> list[tuple[int, VersionOperation]]:
    found = await session.scalars(select(MemoryVersion).order_by(MemoryVersion.memory_id, MemoryVersion.version_num))
    return [(version.version_num, version.operation) for version in found]


async def _add(session: ScopedSession, *memories: Memory) -> None:
    session.add_all(memories)
    await session.flush()


async def test_each_inserted_row_gets_its_first_version(session: ScopedSession, make_memory: MakeMemory) -> None:
    await _add(session, make_memory("a"), make_memory("b"), make_memory("c"))

    assert await _operations(session) == [(1, VersionOperation.CREATED)] * 3


@pytest.mark.parametrize(
    ("change", "operation"),
    [
        ("content = 'x'", "updated"),
        ("category = 'factual'", "updated"),
        ("confidence = 0.1", "updated"),
        ("""metadata = '{"a": 1}'""", "updated"),
        ("status = 'archived'", "status_changed"),
        ("status = 'superseded', content = 'x'", "superseded"),
        ("status = 'merged'", "merged"),
    ],
)
async def test_a_change_of_what_a_memory_says_is_a_version(
    session: ScopedSession, make_memory: MakeMemory, change: str, operation: str
) -> None:
    await _add(session, make_memory())

    await session.execute(text(f"UPDATE ibex_core.memories SET {change}"))

    assert (await _operations(session))[1:] == [(2, VersionOperation(operation))]


@pytest.mark.parametrize(
    "change",
    [
        "retrieval_count = retrieval_count + 1, last_retrieved_at = now()",
        "last_injected_at = now()",
        "usefulness_score = 0.9",
        "deleted_at = now()",
        "expires_at = now()",
        "content = content, status = status, metadata = metadata",
    ],
)
async def test_bookkeeping_is_no_version(session: ScopedSession, make_memory: MakeMemory, change: str) -> None:
    await _add(session, make_memory())

    await session.execute(text(f"UPDATE ibex_core.memories SET {change}"))

    assert len(await _operations(session)) == 1


async def test_a_version_holds_the_state_after_the_change(session: ScopedSession, make_memory: MakeMemory) -> None:
    memory = make_memory("Tea", metadata_={"a": 1})
    await _add(session, memory)
    memory.content, memory.embedding = "Coffee", None
    memory.confidence = Decimal("0.25")
    await session.flush()
    session.expunge_all()

    loaded = (await session.scalars(select(Memory).options(selectinload(Memory.versions)))).one()

    assert [(v.version_num, v.content, v.confidence) for v in loaded.versions] == [
        (1, "Tea", Decimal("0.800")),
        (2, "Coffee", Decimal("0.250")),
    ]
    assert [v.metadata_ for v in loaded.versions] == [{"a": 1}, {"a": 1}]


async def test_versions_are_never_loaded_by_surprise(session: ScopedSession, make_memory: MakeMemory) -> None:
    await _add(session, make_memory())
    session.expunge_all()
    memory = (await session.scalars(select(Memory))).one()

    with pytest.raises(NotLoadedError, match=r"Memory\.versions"):
        _ = memory.versions


async def test_reason_actor_and_operation_come_from_the_transaction(
    session: ScopedSession, make_memory: MakeMemory
) -> None:
    actor = uuid4()
    await _add(session, make_memory())
    for name, value in (("change_reason", "asked to"), ("changed_by", str(actor)), ("change_operation", "reverted")):
        await session.execute(text("SELECT set_config(:name, :value, true)"), {"name": f"app.{name}", "value": value})

    await session.execute(text("UPDATE ibex_core.memories SET confidence = 0.1"))

    last = (await session.scalars(select(MemoryVersion).where(MemoryVersion.version_num == 2))).one()
    assert (last.operation, last.change_reason, last.changed_by) == (VersionOperation.REVERTED, "asked to", actor)


async def test_settings_that_were_emptied_say_nothing(session: ScopedSession, make_memory: MakeMemory) -> None:
    for name in ("change_reason", "changed_by", "change_operation"):
        await session.execute(text("SELECT set_config(:name, '', true)"), {"name": f"app.{name}"})

    await _add(session, make_memory())

    first = (await session.scalars(select(MemoryVersion))).one()
    assert (first.operation, first.change_reason, first.changed_by) == (VersionOperation.CREATED, None, None)


async def test_an_unknown_operation_is_refused(session: ScopedSession, make_memory: MakeMemory) -> None:
    await session.execute(text("SELECT set_config('app.change_operation', 'sabotaged', true)"))
    session.add(make_memory())

    with pytest.raises(RuleViolationError) as caught:
        await session.flush()

    assert caught.value.constraint == "memory_versions_version_operation_known"


async def test_an_upsert_versions_what_it_inserts_and_what_it_updates(
    session: ScopedSession, home: Home, make_memory: MakeMemory
) -> None:
    memory = make_memory("Tea")
    await _add(session, memory)

    await session.execute(
        text(
            "INSERT INTO ibex_core.memories (org_id, agent_id, content, content_hash, category)"
            " VALUES (:org, :agent, 'tea', :hash, 'factual'), (:org, :agent, 'new', repeat('0', 64), 'factual')"
            " ON CONFLICT (org_id, agent_id, content_hash) WHERE status = 'active' AND deleted_at IS NULL"
            " DO UPDATE SET confidence = 0.1"
        ),
        {"org": home.org_id, "agent": home.agent_id, "hash": memory.content_hash},
    )

    versions = await session.scalars(select(MemoryVersion))
    told = sorted((v.content, v.version_num, v.operation.value) for v in versions)
    assert told == [("Tea", 1, "created"), ("Tea", 2, "updated"), ("new", 1, "created")]


async def test_concurrent_changes_get_numbers_of_their_own(
    ibex_db: Database, home: Home, make_memory: MakeMemory
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        await _add(session, make_memory())

    async def bump() -> None:
        async with ibex_db.tenant(home.org_id) as session:
            await session.execute(text("UPDATE ibex_core.memories SET confidence = confidence - 0.001"))

    await asyncio.gather(*(bump() for _ in range(10)))

    async with ibex_db.tenant(home.org_id) as session:
        assert [number for number, _ in await _operations(session)] == list(range(1, 12))


@pytest.mark.parametrize(
    "statement", ["UPDATE ibex_core.memory_versions SET content = 'x'", "DELETE FROM ibex_core.memory_versions"]
)
@pytest.mark.parametrize("role", ["tenant", "platform"])
async def test_the_log_is_append_only(
    ibex_db: Database, home: Home, make_memory: MakeMemory, statement: str, role: str
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        await _add(session, make_memory())

    with pytest.raises(AccessDeniedError):
        async with ibex_db.tenant(home.org_id) if role == "tenant" else ibex_db.platform(reason="test") as session:
            await session.execute(text(statement))


async def test_the_log_goes_with_its_memory(session: ScopedSession, make_memory: MakeMemory) -> None:
    memory = make_memory()
    await _add(session, memory)

    await session.delete(memory)
    await session.flush()

    assert await _operations(session) == []


async def test_a_tenant_sees_its_own_versions_only(
    ibex_db: Database, home: Home, other_home: Home, make_memory: MakeMemory
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        await _add(session, make_memory())

    async with ibex_db.tenant(other_home.org_id) as session:
        count = await session.scalar(text("SELECT count(*) FROM ibex_core.memory_versions"))

    assert count == 0


def test_the_actor_may_be_named_as_text() -> None:
    assert isinstance(MemoryVersion(changed_by="0f293fa0-0000-4000-8000-000000000000").changed_by, UUID)
