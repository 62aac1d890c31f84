"""Sessions of agents, and the checkpoints that they resume from."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, ForeignKeyError, NotFoundError
from ibex_db_core.types import JsonObject
from ibex_db_memory import CheckpointDamagedError, Session, SessionRepository, SessionStatus, state_hash

Sent = Callable[[], AbstractContextManager[list[str]]]


async def test_a_session_starts_active(sessions: SessionRepository, org_id: UUID, agent_id: UUID) -> None:
    run = await sessions.start(agent_id=agent_id, external_id="run-1", metadata={"a": 1})

    assert (run.org_id, run.agent_id, run.external_id) == (org_id, agent_id, "run-1")
    assert (run.status, run.checkpoint_sequence, run.turn_count) == (SessionStatus.ACTIVE, 0, 0)
    assert run.metadata_ == {"a": 1}
    assert run.started_at == run.last_heartbeat_at == run.created_at


async def test_an_external_id_is_unique_for_its_agent(
    sessions: SessionRepository, agent_id: UUID, other_agent_id: UUID
) -> None:
    await sessions.start(agent_id=agent_id, external_id="run-1")
    await sessions.start(agent_id=other_agent_id, external_id="run-1")
    await sessions.start(agent_id=agent_id)
    await sessions.start(agent_id=agent_id)

    with pytest.raises(ConflictError) as caught:
        async with sessions.session.begin_nested():
            await sessions.start(agent_id=agent_id, external_id="run-1")
    assert caught.value.constraint == "sessions_external_id_key"
    assert await sessions.count() == 4


async def test_an_agent_of_another_organization_is_refused(sessions: SessionRepository, rival_agent_id: UUID) -> None:
    with pytest.raises(ForeignKeyError):
        await sessions.start(agent_id=rival_agent_id)


async def test_checkpoints_are_numbered_from_one(sessions: SessionRepository, agent_id: UUID, sent: Sent) -> None:
    run = await sessions.start(agent_id=agent_id)
    with sent() as statements:
        first = await sessions.checkpoint(run.id, {"turn": 1})
        second = await sessions.checkpoint(run.id, {"turn": 2})

    assert len(statements) == 2
    assert (first.sequence_number, second.sequence_number) == (1, 2)
    assert (first.session_id, first.state, first.state_hash) == (run.id, {"turn": 1}, state_hash({"turn": 1}))
    assert first.state_size_bytes == len('{"turn":1}')
    await sessions.session.refresh(run)
    assert run.checkpoint_sequence == 2


async def test_the_latest_checkpoint_is_the_last_one(sessions: SessionRepository, agent_id: UUID) -> None:
    run, other = await sessions.start(agent_id=agent_id), await sessions.start(agent_id=agent_id)
    before = await sessions.latest_checkpoint(run.id)
    for turn in range(12):
        await sessions.checkpoint(run.id, {"turn": turn})
    await sessions.checkpoint(other.id, {"turn": 99})

    latest = await sessions.latest_checkpoint(run.id)
    assert before is None
    assert latest is not None
    assert (latest.sequence_number, latest.state) == (12, {"turn": 11})


async def test_a_state_that_was_edited_in_place_is_read_as_it_was_saved(
    sessions: SessionRepository, agent_id: UUID
) -> None:
    run = await sessions.start(agent_id=agent_id)
    saved = await sessions.checkpoint(run.id, {"turns": ["hello"]})
    saved.state["turns"] = []

    latest = await sessions.latest_checkpoint(run.id)
    assert latest is not None
    assert latest.state == {"turns": ["hello"]}


async def test_writers_at_once_get_a_number_each(
    small_pool: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    async with small_pool.tenant(org_id) as session:
        run = await SessionRepository(session).start(agent_id=agent_id)

    async def save(turn: int) -> int:
        async with small_pool.tenant(org_id) as session:
            return (await SessionRepository(session).checkpoint(run.id, {"turn": turn})).sequence_number

    numbers = await asyncio.gather(*(save(turn) for turn in range(30)))

    assert sorted(numbers) == list(range(1, 31))
    assert await owner.fetchval("SELECT checkpoint_sequence FROM ibex_core.sessions") == 30


async def test_a_session_that_is_not_there_takes_no_checkpoint(
    ibex_db: Database, sessions: SessionRepository, rival_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        foreign = await SessionRepository(rival).start(agent_id=rival_agent_id)
        await SessionRepository(rival).checkpoint(foreign.id, {})

    for ident in (foreign.id, uuid4()):
        with pytest.raises(NotFoundError):
            await sessions.checkpoint(ident, {})
        assert await sessions.latest_checkpoint(ident) is None


async def test_a_damaged_state_is_refused(
    ibex_db: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    async with ibex_db.tenant(org_id) as session:
        run = await SessionRepository(session).start(agent_id=agent_id)
        for turn in (1, 2):
            await SessionRepository(session).checkpoint(run.id, {"turn": turn})
    await owner.execute(
        "ALTER TABLE ibex_core.checkpoints DISABLE TRIGGER USER;"
        """UPDATE ibex_core.checkpoints SET state = '{"turn": 3}' WHERE sequence_number = 2;"""
        "ALTER TABLE ibex_core.checkpoints ENABLE TRIGGER USER"
    )

    async with ibex_db.tenant(org_id) as session:
        with pytest.raises(CheckpointDamagedError) as caught:
            await SessionRepository(session).latest_checkpoint(run.id)
    assert (caught.value.session_id, caught.value.sequence_number) == (run.id, 2)
    assert (caught.value.expected, caught.value.got) == (state_hash({"turn": 2}), state_hash({"turn": 3}))


async def test_the_latest_checkpoint_is_one_index_probe(sessions: SessionRepository, agent_id: UUID) -> None:
    run = await sessions.start(agent_id=agent_id)
    for turn in range(30):
        await sessions.checkpoint(run.id, {"turn": turn})
    plans = await sessions.session.execute(
        text(
            "EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM ibex_core.checkpoints WHERE org_id = :org"
            " AND session_id = :run ORDER BY sequence_number DESC LIMIT 1"
        ),
        {"org": run.org_id, "run": run.id},
    )

    found = plans.scalar_one()
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    while "Plans" in plan:
        plan = plan["Plans"][0]
    assert (plan["Node Type"], plan["Scan Direction"]) == ("Index Scan", "Backward")
    assert plan["Index Name"] == "checkpoints_sequence_key"
    assert plan["Actual Rows"] == 1


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(-(2.0**53), 2.0**53)  # larger ones come back as whole numbers that differ beyond the 17th digit
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(state=st.dictionaries(st.sampled_from(["a", "b", "é", "\\u0000"]), json_values, max_size=4))
async def test_every_state_comes_back_intact(
    ibex_db: Database, org_id: UUID, agent_id: UUID, state: JsonObject
) -> None:
    async with ibex_db.tenant(org_id) as session:
        sessions = SessionRepository(session)
        run = await sessions.add(Session(agent_id=agent_id, status="active"))
        await sessions.checkpoint(run.id, state)
        latest = await sessions.latest_checkpoint(run.id)

    assert latest is not None
    assert latest.state == state
