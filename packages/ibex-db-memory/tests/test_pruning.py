"""Pruning checkpoints: old ones go, what a run would resume from stays."""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_core.errors import AccessDeniedError, InvalidInputError, NotFoundError
from ibex_db_memory import SessionRepository

DAMAGE = (
    "ALTER TABLE ibex_core.checkpoints DISABLE TRIGGER USER;"
    """UPDATE ibex_core.checkpoints SET state = '{{"step": 99}}' WHERE sequence_number > {};"""
    "ALTER TABLE ibex_core.checkpoints ENABLE TRIGGER USER"
)


async def run_of(db: Database, org_id: UUID, agent_id: UUID, steps: int) -> UUID:
    async with db.tenant(org_id) as session:
        sessions = SessionRepository(session)
        run = await sessions.start(agent_id=agent_id)
        for step in range(1, steps + 1):
            await sessions.checkpoint(run.id, {"step": step})
    return run.id


async def left(sessions: SessionRepository, run: UUID) -> list[int]:
    return [one.sequence_number for one in await sessions.checkpoints(run)]


@pytest.mark.parametrize(("keep", "kept"), [(1, [5]), (2, [5, 4]), (5, [5, 4, 3, 2, 1]), (6, [5, 4, 3, 2, 1])])
async def test_the_newest_stay(
    ibex_db: Database, sessions: SessionRepository, org_id: UUID, agent_id: UUID, *, keep: int, kept: list[int]
) -> None:
    run, other = [await run_of(ibex_db, org_id, agent_id, 5) for _ in range(2)]

    assert await sessions.prune_checkpoints(run, keep=keep) == 5 - len(kept)
    assert await left(sessions, run) == kept
    assert await sessions.prune_checkpoints(run, keep=keep) == 0
    assert await left(sessions, other) == [5, 4, 3, 2, 1]
    assert (await sessions.checkpoint(run, {"step": 6})).sequence_number == 6


async def test_the_newest_intact_one_and_all_after_it_stay(
    ibex_db: Database, org_id: UUID, agent_id: UUID, owner: "asyncpg.Connection"
) -> None:
    """A crash while the newest were being damaged must not cost the run its last good state."""
    run = await run_of(ibex_db, org_id, agent_id, 6)
    await owner.execute(DAMAGE.format(3))

    async with ibex_db.tenant(org_id) as session:
        sessions = SessionRepository(session)
        assert await sessions.prune_checkpoints(run, keep=1) == 2
        assert await left(sessions, run) == [6, 5, 4, 3]
        await sessions.suspend(run)
        resumed = await sessions.resume(run)
    assert resumed.checkpoint is not None
    assert resumed.checkpoint.state == {"step": 3}


async def test_where_none_is_intact_none_goes(
    ibex_db: Database, sessions: SessionRepository, org_id: UUID, agent_id: UUID, owner: "asyncpg.Connection"
) -> None:
    run = await run_of(ibex_db, org_id, agent_id, 3)
    await owner.execute(DAMAGE.format(0))

    assert await sessions.prune_checkpoints(run, keep=1) == 0
    assert await left(sessions, run) == [3, 2, 1]


async def test_a_run_without_checkpoints_has_nothing_to_prune(
    ibex_db: Database, sessions: SessionRepository, org_id: UUID, agent_id: UUID
) -> None:
    assert await sessions.prune_checkpoints(await run_of(ibex_db, org_id, agent_id, 0)) == 0


async def test_a_run_that_has_ended_may_be_pruned(
    ibex_db: Database, sessions: SessionRepository, org_id: UUID, agent_id: UUID
) -> None:
    run = await run_of(ibex_db, org_id, agent_id, 3)
    await sessions.complete(run)

    assert await sessions.prune_checkpoints(run, keep=1) == 2


async def test_bad_input_is_refused(sessions: SessionRepository) -> None:
    for keep in (0, 10_001, True, 1.5):
        with pytest.raises(InvalidInputError, match="keep"):
            await sessions.prune_checkpoints(uuid4(), keep=keep)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="session_id"):
        await sessions.prune_checkpoints("x")  # type: ignore[arg-type]


async def test_another_organizations_run_is_not_found_and_keeps_its_checkpoints(
    ibex_db: Database, sessions: SessionRepository, rival_id: UUID, rival_agent_id: UUID, owner: "asyncpg.Connection"
) -> None:
    foreign = await run_of(ibex_db, rival_id, rival_agent_id, 4)

    for ident in (foreign, uuid4()):
        with pytest.raises(NotFoundError):
            await sessions.prune_checkpoints(ident, keep=1)
    # It would be seen: without the policies the same DELETE takes them, as far as the trigger lets it.
    await sessions.session.execute(text("DELETE FROM ibex_core.checkpoints"))
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.checkpoints") == 4
    await owner.execute("DELETE FROM ibex_core.checkpoints WHERE sequence_number < 4")
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.checkpoints") == 1


@pytest.mark.parametrize("order", ["ASC", "DESC"])
async def test_no_delete_takes_the_newest(ibex_db: Database, org_id: UUID, agent_id: UUID, order: str) -> None:
    """Whatever raw SQL names, and in whatever order the rows lie on their pages."""
    await run_of(ibex_db, org_id, agent_id, 1)
    async with ibex_db.tenant(org_id) as session:
        sessions = SessionRepository(session)
        run = await sessions.start(agent_id=agent_id)
        await session.execute(
            text(
                "INSERT INTO ibex_core.checkpoints (org_id, session_id, sequence_number, state, state_hash,"
                " state_size_bytes) SELECT :org, :run, n, '{}', repeat('0', 64), 2"
                f" FROM generate_series(1, 4) n ORDER BY n {order}"
            ),
            {"org": org_id, "run": run.id},
        )

    for which in ("", "WHERE sequence_number = 4", "WHERE sequence_number IN (3, 4)"):
        async with ibex_db.tenant(org_id) as session:
            with pytest.raises(AccessDeniedError, match="newest of its session"):
                await session.execute(text(f"DELETE FROM ibex_core.checkpoints {which}"))
            await session.rollback()


async def test_the_superuser_is_held_to_it_too_and_the_cascade_is_not(
    ibex_db: Database, org_id: UUID, agent_id: UUID, owner: "asyncpg.Connection"
) -> None:
    await run_of(ibex_db, org_id, agent_id, 2)

    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="newest of its session"):
        await owner.execute("DELETE FROM ibex_core.checkpoints")
    await owner.execute("DELETE FROM ibex_core.agents")
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.checkpoints") == 0


async def test_pruners_and_writers_at_once(
    small_pool: Database, ibex_db: Database, org_id: UUID, agent_id: UUID, owner: "asyncpg.Connection"
) -> None:
    """Four pruners beside a writer: each row goes once, none is refused, and the newest three are there."""
    run = await run_of(ibex_db, org_id, agent_id, 30)
    gone: list[int] = []

    async def prune() -> None:
        for _ in range(5):
            async with small_pool.tenant(org_id) as session:
                gone.append(await SessionRepository(session).prune_checkpoints(run, keep=3))

    async def write() -> None:
        for step in range(31, 41):
            async with small_pool.tenant(org_id) as session:
                await SessionRepository(session).checkpoint(run, {"step": step})

    await asyncio.gather(prune(), prune(), write(), prune(), prune())
    async with ibex_db.tenant(org_id) as session:
        sessions = SessionRepository(session)
        gone.append(await sessions.prune_checkpoints(run, keep=3))
        assert await left(sessions, run) == [40, 39, 38]
    assert sum(gone) == 37
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.checkpoints") == 3


async def test_who_is_being_erased_is_not_pruned_beside(ibex_db: Database, org_id: UUID, agent_id: UUID) -> None:
    """The receipt counts checkpoints before they go; a pruner waits for the session's row, and finds nothing."""
    run = await run_of(ibex_db, org_id, agent_id, 3)

    async def prune() -> int:
        async with ibex_db.tenant(org_id) as session:
            return await SessionRepository(session).prune_checkpoints(run, keep=1)

    async with ibex_db.tenant(org_id) as session:
        await session.execute(text("SELECT 1 FROM ibex_core.sessions FOR UPDATE"))
        waiting = asyncio.create_task(prune())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await session.execute(text("DELETE FROM ibex_core.sessions"))
    with pytest.raises(NotFoundError):
        await waiting
