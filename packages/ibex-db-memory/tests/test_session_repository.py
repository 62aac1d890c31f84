"""Sessions of agents, and the checkpoints that they resume from."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import pytest
from homes import Home
from hypothesis import HealthCheck, given, settings, strategies as st
from sqlalchemy import event, text

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, ForeignKeyError, IllegalTransitionError, InvalidInputError, NotFoundError
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
        for asked in (sessions.latest_checkpoint(ident), sessions.checkpoints(ident)):
            with pytest.raises(NotFoundError, match=str(ident)):
                await asked


async def test_a_session_before_its_first_checkpoint_has_none(sessions: SessionRepository, agent_id: UUID) -> None:
    run = await sessions.start(agent_id=agent_id)

    assert await sessions.latest_checkpoint(run.id) is None
    assert await sessions.checkpoints(run.id) == []


@pytest.mark.parametrize("status", list(SessionStatus))
async def test_a_run_that_has_ended_takes_no_checkpoint(
    sessions: SessionRepository, agent_id: UUID, status: SessionStatus
) -> None:
    ident = await in_status(sessions, agent_id, status)

    if status not in {SessionStatus.COMPLETED, SessionStatus.FAILED, SessionStatus.ABANDONED}:
        assert (await sessions.checkpoint(ident, {})).sequence_number == 1
        return
    with pytest.raises(IllegalTransitionError, match=f"session {ident} is {status} and cannot") as caught:
        await sessions.checkpoint(ident, {})
    assert caught.value.from_state == status
    assert await sessions.checkpoints(ident) == []


async def test_a_checkpoint_of_a_run_that_was_just_ended_is_told(
    ibex_db: Database, org_id: UUID, agent_id: UUID
) -> None:
    async with ibex_db.tenant(org_id) as session:
        run = await SessionRepository(session).start(agent_id=agent_id)

    async def save() -> None:
        async with ibex_db.tenant(org_id) as session:
            await SessionRepository(session).checkpoint(run.id, {})

    async with ibex_db.tenant(org_id) as session:
        await SessionRepository(session).fail(run.id, error="out of memory")
        waiting = asyncio.create_task(save())
        await asyncio.sleep(0.3)
        assert not waiting.done()
    with pytest.raises(IllegalTransitionError, match="is failed"):
        await waiting


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


# -- steps

VERBS: dict[str, SessionStatus] = {
    "activate": SessionStatus.ACTIVE,
    "suspend": SessionStatus.SUSPENDED,
    "resume": SessionStatus.RESUMING,
    "complete": SessionStatus.COMPLETED,
    "fail": SessionStatus.FAILED,
}


async def in_status(sessions: SessionRepository, agent_id: UUID, status: SessionStatus) -> UUID:
    return (await sessions.add(Session(agent_id=agent_id, status=status))).id


async def step(sessions: SessionRepository, verb: str, ident: UUID) -> Session:
    if verb == "fail":
        return await sessions.fail(ident, error="the model is away")
    if verb == "resume":
        return (await sessions.resume(ident)).session
    return cast("Session", await getattr(sessions, verb)(ident))


@pytest.mark.parametrize("status", list(SessionStatus))
async def test_every_step_is_legal_or_refused_naming_both_states(
    sessions: SessionRepository, agent_id: UUID, status: SessionStatus
) -> None:
    for verb, to in VERBS.items():
        ident = await in_status(sessions, agent_id, status)
        if status.may_become(to):
            assert (await step(sessions, verb, ident)).status is to
        else:
            with pytest.raises(IllegalTransitionError) as caught:
                await step(sessions, verb, ident)
            assert (caught.value.from_state, caught.value.to_state) == (status, to)
            assert (await sessions.get(ident)).status is status


@pytest.mark.parametrize("status", list(SessionStatus))
async def test_only_a_live_run_has_a_heartbeat(
    sessions: SessionRepository, agent_id: UUID, status: SessionStatus
) -> None:
    ident = await in_status(sessions, agent_id, status)

    if status in {SessionStatus.INITIALIZING, SessionStatus.ACTIVE, SessionStatus.RESUMING}:
        assert (await sessions.heartbeat(ident)).status is status
    else:
        with pytest.raises(IllegalTransitionError) as caught:
            await sessions.heartbeat(ident)
        assert caught.value.from_state == status


async def test_each_step_keeps_its_time(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    async def during(verb: str, ident: UUID) -> Session:
        async with ibex_db.tenant(org_id) as session:
            return await step(SessionRepository(session), verb, ident)

    async with ibex_db.tenant(org_id) as session:
        run = await SessionRepository(session).start(agent_id=agent_id)
    suspended = await during("suspend", run.id)
    resumed = await during("resume", run.id)
    active = await during("activate", run.id)
    failed = await during("fail", run.id)
    again = await during("resume", run.id)
    completed = await during("complete", run.id)

    assert suspended.suspended_at is not None
    assert (resumed.suspended_at, resumed.ended_at) == (None, None)
    assert run.last_heartbeat_at < resumed.last_heartbeat_at < active.last_heartbeat_at
    assert (failed.ended_at is not None, failed.last_error) == (True, "the model is away")
    assert again.ended_at is None
    assert completed.ended_at is not None


async def test_turns_are_counted_also_at_once(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        run = await SessionRepository(session).start(agent_id=agent_id)

    async def beat(turns: int) -> None:
        async with ibex_db.tenant(org_id) as session:
            await SessionRepository(session).heartbeat(run.id, turns=turns)

    await asyncio.gather(*(beat(turns) for turns in range(10)))

    async with ibex_db.tenant(org_id) as session:
        found = await SessionRepository(session).get(run.id)
    assert found.turn_count == 45
    assert found.last_heartbeat_at > run.last_heartbeat_at


async def test_bad_input_is_refused(sessions: SessionRepository, agent_id: UUID) -> None:
    run = await sessions.start(agent_id=agent_id)

    for attempt, field in (
        (sessions.heartbeat(run.id, turns=-1), "turns"),
        (sessions.fail(run.id, error=""), "error"),
        (sessions.get_or_start("", agent_id=agent_id), "external_id"),
        (sessions.find_stale(older_than=timedelta(0)), "older_than"),
        (sessions.find_stale(older_than=timedelta(1), limit=0), "limit"),
        (sessions.abandon_stale(older_than=timedelta(1), batch_size=0), "batch_size"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            await attempt
        assert caught.value.field == field


async def test_another_organizations_run_is_not_found(
    ibex_db: Database, sessions: SessionRepository, rival_id: UUID, rival_agent_id: UUID
) -> None:
    async with ibex_db.tenant(rival_id) as rival:
        foreign = await SessionRepository(rival).start(agent_id=rival_agent_id)

    for ident in (foreign.id, uuid4()):
        for verb in VERBS:
            with pytest.raises(NotFoundError):
                await step(sessions, verb, ident)
        with pytest.raises(NotFoundError):
            await sessions.heartbeat(ident)


async def test_a_heartbeat_of_a_run_that_was_just_ended_is_told(
    ibex_db: Database, org_id: UUID, agent_id: UUID
) -> None:
    async with ibex_db.tenant(org_id) as session:
        run = await SessionRepository(session).start(agent_id=agent_id)

    async def beat() -> None:
        async with ibex_db.tenant(org_id) as session:
            await SessionRepository(session).heartbeat(run.id)

    async with ibex_db.tenant(org_id) as session:
        await SessionRepository(session).complete(run.id)
        waiting = asyncio.create_task(beat())
        await asyncio.sleep(0.3)
        assert not waiting.done()
    with pytest.raises(IllegalTransitionError, match="is completed"):
        await waiting


# -- get_or_start


async def test_callers_at_once_share_one_session(small_pool: Database, org_id: UUID, agent_id: UUID) -> None:
    async def call() -> UUID:
        async with small_pool.tenant(org_id) as session:
            return (await SessionRepository(session).get_or_start("call-17", agent_id=agent_id)).id

    found = await asyncio.gather(*(call() for _ in range(20)))

    assert len(set(found)) == 1
    async with small_pool.tenant(org_id) as session:
        assert await SessionRepository(session).count() == 1


async def test_a_name_is_the_agents_own(sessions: SessionRepository, agent_id: UUID, other_agent_id: UUID) -> None:
    first = await sessions.get_or_start("call-17", agent_id=agent_id, metadata={"line": 1})
    await sessions.complete(first.id)
    again = await sessions.get_or_start("call-17", agent_id=agent_id, metadata={"line": 2})
    other = await sessions.get_or_start("call-17", agent_id=other_agent_id)

    assert (again.id, again.status, again.metadata_) == (first.id, "completed", {"line": 1})
    assert (other.id != first.id, other.status) == (True, "active")


async def test_no_session_starts_for_another_organizations_agent(
    sessions: SessionRepository, rival_agent_id: UUID
) -> None:
    with pytest.raises(ForeignKeyError):
        await sessions.get_or_start("call-17", agent_id=rival_agent_id)


# -- resume


async def test_of_many_that_resume_at_once_one_wins(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    async with ibex_db.tenant(org_id) as session:
        ident = await in_status(SessionRepository(session), agent_id, SessionStatus.FAILED)

    async def resume() -> object:
        async with ibex_db.tenant(org_id) as session:
            return await SessionRepository(session).resume(ident)

    done = await asyncio.gather(*(resume() for _ in range(6)), return_exceptions=True)

    assert sorted(type(one).__name__ for one in done) == [*["IllegalTransitionError"] * 5, "Resumed"]


async def test_a_run_without_checkpoints_resumes_from_none(sessions: SessionRepository, agent_id: UUID) -> None:
    ident = await in_status(sessions, agent_id, SessionStatus.SUSPENDED)

    assert (await sessions.resume(ident)).checkpoint is None


async def test_damaged_checkpoints_are_passed_over_and_logged(
    ibex_db: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with ibex_db.tenant(org_id) as session:
        sessions = SessionRepository(session)
        run = await sessions.start(agent_id=agent_id)
        for turn in (1, 2, 3, 4):
            await sessions.checkpoint(run.id, {"turn": turn})
        await sessions.suspend(run.id)
    await owner.execute(
        "ALTER TABLE ibex_core.checkpoints DISABLE TRIGGER USER;"
        """UPDATE ibex_core.checkpoints SET state = '{"turn": 9}' WHERE sequence_number > 2;"""
        "ALTER TABLE ibex_core.checkpoints ENABLE TRIGGER USER"
    )

    async with ibex_db.tenant(org_id) as session:
        resumed = await SessionRepository(session).resume(run.id)

    assert resumed.checkpoint is not None
    assert (resumed.checkpoint.sequence_number, resumed.checkpoint.state) == (2, {"turn": 2})
    said = [record.getMessage() for record in caplog.records if record.name == "ibex_db.sessions"]
    assert said == [f"checkpoint {n} of session {run.id} is damaged" for n in (4, 3)]


async def test_resuming_reads_one_checkpoint(sessions: SessionRepository, agent_id: UUID, sent: Sent) -> None:
    run = await sessions.start(agent_id=agent_id)
    for turn in range(5):
        await sessions.checkpoint(run.id, {"turn": turn})
    await sessions.suspend(run.id)

    with sent() as statements:
        resumed = await sessions.resume(run.id)

    assert len(statements) == 2
    assert resumed.checkpoint is not None
    assert resumed.checkpoint.sequence_number == 5
    assert [one.sequence_number for one in await sessions.checkpoints(run.id, limit=2)] == [5, 4]


# -- stale runs


async def runs_since(owner: asyncpg.Connection, org_id: UUID, agent_id: UUID, count: int, status: str) -> None:
    """Insert runs whose heartbeats are 1, 2, ... minutes old."""
    await owner.execute(
        "INSERT INTO ibex_core.sessions (org_id, agent_id, status, last_heartbeat_at)"
        " SELECT $1, $2, $3, now() - n * interval '1 minute' FROM generate_series(1, $4) AS n",
        org_id,
        agent_id,
        status,
        count,
    )


@pytest.mark.parametrize("status", list(SessionStatus))
async def test_only_live_runs_are_stale(
    sessions: SessionRepository, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection, status: SessionStatus
) -> None:
    await runs_since(owner, org_id, agent_id, 5, status)

    found = await sessions.find_stale(older_than=timedelta(minutes=3, seconds=30))
    live = status in {SessionStatus.INITIALIZING, SessionStatus.ACTIVE, SessionStatus.RESUMING}
    assert len(found) == (2 if live else 0)
    assert [run.last_heartbeat_at for run in found] == sorted(run.last_heartbeat_at for run in found)
    abandoned = await sessions.abandon_stale(older_than=timedelta(minutes=3, seconds=30))
    assert {run.id for run in abandoned} == {run.id for run in found}
    assert {(run.status, run.ended_at is not None) for run in abandoned} <= {(SessionStatus.ABANDONED, True)}


async def test_stale_runs_are_found_by_their_index(
    ibex_db: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    await runs_since(owner, org_id, agent_id, 20_000, "completed")
    await runs_since(owner, org_id, agent_id, 3_000, "active")
    await owner.execute("ANALYZE ibex_core.sessions")
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_rest: object) -> None:
        sent.append((statement, parameters))

    async with ibex_db.tenant(org_id) as session:
        event.listen(ibex_db.engine.sync_engine, "before_cursor_execute", note)
        found = await SessionRepository(session).find_stale(older_than=timedelta(minutes=2_995))
        event.remove(ibex_db.engine.sync_engine, "before_cursor_execute", note)
        ((statement, parameters),) = sent
        connection = await session.connection()
        plan = (await connection.exec_driver_sql(f"EXPLAIN (ANALYZE) {statement}", parameters)).scalars().all()

    told = "\n".join(plan)
    assert len(found) == 6
    assert "sessions_live_heartbeat_idx" in told
    assert "Seq Scan" not in told
    assert "Rows Removed by Filter" not in told


async def test_workers_at_once_abandon_each_stale_run_once(
    ibex_db: Database, org_id: UUID, agent_id: UUID, owner: asyncpg.Connection
) -> None:
    await runs_since(owner, org_id, agent_id, 100, "active")
    gate = asyncio.Barrier(4)

    async def work() -> list[UUID]:
        """Take a batch, and hold it until the other three have theirs: none of them may wait for it."""
        async with ibex_db.tenant(org_id) as session:
            await session.execute(text("SET LOCAL lock_timeout = '2s'"))
            sessions = SessionRepository(session)
            taken = [run.id for run in await sessions.abandon_stale(older_than=timedelta(seconds=30), batch_size=20)]
            await asyncio.wait_for(gate.wait(), 30)
        while True:
            async with ibex_db.tenant(org_id) as session:
                more = await SessionRepository(session).abandon_stale(older_than=timedelta(seconds=30), batch_size=5)
            if not more:
                return taken
            taken += [run.id for run in more]

    taken = await asyncio.gather(*(work() for _ in range(4)))

    assert min(len(some) for some in taken) >= 20
    assert len({ident for some in taken for ident in some}) == sum(len(some) for some in taken) == 100


async def test_a_platform_session_finds_everybodys_stale_runs(
    ibex_db: Database, owner: asyncpg.Connection, home: Home, other_home: Home
) -> None:
    await runs_since(owner, home.org_id, home.agent_id, 2, "active")
    await runs_since(owner, other_home.org_id, other_home.agent_id, 3, "active")

    async with ibex_db.tenant(home.org_id) as session:
        assert len(await SessionRepository(session).find_stale(older_than=timedelta(seconds=30))) == 2
    async with ibex_db.platform(reason="the sweep") as session:
        assert len(await SessionRepository(session).abandon_stale(older_than=timedelta(seconds=30))) == 5
