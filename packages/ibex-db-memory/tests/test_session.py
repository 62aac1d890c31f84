"""Sessions: defaults, legal steps, unique external ids."""

import itertools
from uuid import uuid4

import pytest
from homes import Home
from sqlalchemy import text

from ibex_db_core.errors import ConflictError, ForeignKeyError, InvalidInputError, RuleViolationError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import SESSION_STEPS, Session, SessionStatus


@pytest.mark.parametrize(
    ("field", "value"),
    [("external_id", ""), ("external_id", "x" * 256), ("status", "asleep"), ("turn_count", -1), ("metadata_", [])],
)
def test_bad_input_is_refused_on_assignment(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Session(**{field: value})

    assert caught.value.field == field


async def test_defaults_are_filled_in_at_flush(session: ScopedSession, home: Home) -> None:
    run = Session(agent_id=home.agent_id)

    session.add(run)
    await session.flush()

    assert run.status is SessionStatus.INITIALIZING
    assert (run.checkpoint_sequence, run.turn_count, run.metadata_) == (0, 0, {})
    assert run.started_at == run.last_heartbeat_at == run.created_at


async def test_an_agent_has_one_session_of_an_external_id(session: ScopedSession, home: Home) -> None:
    session.add_all([Session(agent_id=home.agent_id, external_id="chat-1") for _ in range(2)])

    with pytest.raises(ConflictError) as caught:
        await session.flush()

    assert caught.value.constraint == "sessions_external_id_key"


async def test_sessions_without_an_external_id_are_many(session: ScopedSession, home: Home) -> None:
    session.add_all([Session(agent_id=home.agent_id) for _ in range(2)])

    await session.flush()


@pytest.mark.parametrize("field", ["user_id", "directive_version_id"])
async def test_an_unknown_parent_is_refused(session: ScopedSession, home: Home, field: str) -> None:
    session.add(Session(agent_id=home.agent_id, **{field: uuid4()}))

    with pytest.raises(ForeignKeyError) as caught:
        await session.flush()

    assert caught.value.constraint == f"sessions_org_id_{field}_fkey"


async def test_the_database_takes_exactly_the_legal_steps(session: ScopedSession, home: Home) -> None:
    for old, new in itertools.product(SessionStatus, repeat=2):
        run = Session(agent_id=home.agent_id, status=old)
        session.add(run)
        await session.flush()

        async def step(run: Session = run, new: SessionStatus = new) -> None:
            async with session.begin_nested():
                await session.execute(
                    text("UPDATE ibex_core.sessions SET status = :new WHERE id = :id"), {"new": new.value, "id": run.id}
                )

        if new is old or old.may_become(new):
            await step()
        else:
            with pytest.raises(RuleViolationError) as caught:
                await step()
            assert caught.value.constraint == "sessions_legal_step"


def test_every_status_has_its_steps_and_none_leads_to_itself() -> None:
    assert set(SESSION_STEPS) == set(SessionStatus)
    assert not any(status in steps for status, steps in SESSION_STEPS.items())


def test_nothing_follows_completion() -> None:
    assert not SESSION_STEPS[SessionStatus.COMPLETED]
