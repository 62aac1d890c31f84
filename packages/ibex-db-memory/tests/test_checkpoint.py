"""Checkpoints: append-only, described by their state."""

import pytest
from homes import Home
from sqlalchemy import select, text
from sqlalchemy.orm import selectinload

from ibex_db_core.database import Database
from ibex_db_core.errors import AccessDeniedError, ConflictError, InvalidInputError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import Checkpoint, Session, state_hash

STATE = {"b": 1e16, "a": [-0.0, 0.1, "é", None], "nested": {"z": 1, "aa": True}}


def test_setting_state_sets_its_hash_and_size() -> None:
    checkpoint = Checkpoint(state={"a": 1})

    assert (checkpoint.state_hash, checkpoint.state_size_bytes) == (state_hash({"a": 1}), len('{"a":1}'))
    assert checkpoint.is_intact()


@pytest.mark.parametrize("state", [[1], "text", None, {"n": float("nan")}, {"o": object()}, {"s": "\x00"}])
def test_a_state_that_is_no_json_object_is_refused(state: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Checkpoint(state=state)

    assert caught.value.field == "state"


async def test_a_state_that_went_through_jsonb_is_intact(session: ScopedSession, home: Home) -> None:
    session.add(Session(agent_id=home.agent_id, checkpoints=[Checkpoint(sequence_number=1, state=STATE)]))
    await session.flush()
    session.expunge_all()

    found = (await session.scalars(select(Checkpoint))).one()

    assert found.is_intact()


async def test_a_damaged_state_is_noticed(session: ScopedSession, home: Home) -> None:
    checkpoint = Checkpoint(sequence_number=1, state=STATE)
    checkpoint.state_hash = "0" * 64
    session.add(Session(agent_id=home.agent_id, checkpoints=[checkpoint]))
    await session.flush()
    session.expunge_all()

    found = (await session.scalars(select(Checkpoint))).one()

    assert not found.is_intact()


async def test_checkpoints_come_in_order(session: ScopedSession, home: Home) -> None:
    checkpoints = [Checkpoint(sequence_number=n, state={"n": n}) for n in (2, 1, 3)]
    session.add(Session(agent_id=home.agent_id, checkpoints=checkpoints))
    await session.flush()
    session.expunge_all()

    run = (await session.scalars(select(Session).options(selectinload(Session.checkpoints)))).one()

    assert [checkpoint.sequence_number for checkpoint in run.checkpoints] == [1, 2, 3]


async def test_a_number_is_given_once(session: ScopedSession, home: Home) -> None:
    checkpoints = [Checkpoint(sequence_number=1, state={}) for _ in range(2)]
    session.add(Session(agent_id=home.agent_id, checkpoints=checkpoints))

    with pytest.raises(ConflictError) as caught:
        await session.flush()

    assert caught.value.constraint == "checkpoints_sequence_key"


@pytest.mark.parametrize(
    "statement", ["UPDATE ibex_core.checkpoints SET state = '{}'", "DELETE FROM ibex_core.checkpoints"]
)
async def test_checkpoints_are_never_changed_and_the_newest_is_never_deleted(
    ibex_db: Database, home: Home, statement: str
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        session.add(Session(agent_id=home.agent_id, checkpoints=[Checkpoint(sequence_number=1, state={})]))

    with pytest.raises(AccessDeniedError):
        async with ibex_db.tenant(home.org_id) as session:
            await session.execute(text(statement))


async def test_checkpoints_go_with_their_session(session: ScopedSession, home: Home) -> None:
    run = Session(agent_id=home.agent_id, checkpoints=[Checkpoint(sequence_number=1, state={})])
    session.add(run)
    await session.flush()

    await session.delete(run)
    await session.flush()

    assert await session.scalar(text("SELECT count(*) FROM ibex_core.checkpoints")) == 0
