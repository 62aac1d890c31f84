"""`ibex-db expire`, as cron runs it."""

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from homes import Home
from sqlalchemy import event
from typer.testing import CliRunner

from ibex_db_core.cli.app import build
from ibex_db_core.database import Database
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import MemoryRepository
from ibex_db_memory.commands.expire import due_of, sweep


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, ibex_test_database: TestDatabase) -> None:
    for name in [name for name in os.environ if name.startswith("IBEX_") or name in {"FORCE_COLOR", "TTY_COMPATIBLE"}]:
        monkeypatch.delenv(name)
    cluster, name = ibex_test_database.cluster, ibex_test_database.name
    for variable, login in (("IBEX_DATABASE_URL", SERVICE_LOGIN), ("IBEX_PLATFORM_URL", PLATFORM_LOGIN)):
        monkeypatch.setenv(variable, cluster.url(name, user=login).render_as_string(hide_password=False))


async def expire(*words: str) -> tuple[int, int]:
    """Run the command; return of how many organizations it took how many memories."""
    done = await asyncio.to_thread(CliRunner().invoke, build(), ["expire", *words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    return told["organizations"], told["memories"]


async def keep(db: Database, home: Home, due: int) -> None:
    """Keep so many memories that have expired, one that will, and one for good."""
    now = datetime.now(UTC)
    moments = [*(now - timedelta(hours=1, seconds=number) for number in range(due)), now + timedelta(hours=1), None]
    async with db.tenant(home.org_id) as session:
        await MemoryRepository(session).remember_many(
            {"agent_id": home.agent_id, "content": str(uuid4()), "category": "factual", "expires_at": moment}
            for moment in moments
        )


async def left(db: Database, org_id: UUID) -> int:
    async with db.tenant(org_id) as session:
        return await MemoryRepository(session).count()


async def test_it_sweeps_every_organization_in_batches(ibex_db: Database, home: Home, other_home: Home) -> None:
    await keep(ibex_db, home, 7)
    await keep(ibex_db, other_home, 3)

    assert await expire("--dry-run") == (2, 10)
    assert (await left(ibex_db, home.org_id), await left(ibex_db, other_home.org_id)) == (9, 5)
    assert await expire("--batch-size", "2") == (2, 10)
    assert (await left(ibex_db, home.org_id), await left(ibex_db, other_home.org_id)) == (2, 2)
    assert await expire() == (0, 0)


async def test_one_organization_is_swept_and_the_others_are_left_alone(
    ibex_db: Database, home: Home, other_home: Home
) -> None:
    await keep(ibex_db, home, 3)
    await keep(ibex_db, other_home, 4)

    assert await expire("--org", str(home.org_id), "--dry-run") == (1, 3)
    assert await expire("--org", str(home.org_id)) == (1, 3)
    assert await left(ibex_db, other_home.org_id) == 6


async def test_many_at_once_take_each_memory_once(ibex_db: Database, home: Home, other_home: Home) -> None:
    await keep(ibex_db, home, 60)
    await keep(ibex_db, other_home, 60)

    due = await due_of(ibex_db, None)
    done = await asyncio.gather(*(sweep(ibex_db, due, 5) for _ in range(3)))

    assert due == {home.org_id: 60, other_home.org_id: 60}
    assert sum(sum(swept.values()) for swept in done) == 120
    assert (await left(ibex_db, home.org_id), await left(ibex_db, other_home.org_id)) == (2, 2)


async def test_a_batch_of_one_organization_touches_one_partition_by_its_index(
    ibex_db: Database, home: Home, owner: "asyncpg.Connection"
) -> None:
    await keep(ibex_db, home, 50)
    await owner.execute(
        "INSERT INTO ibex_core.memories (org_id, id, agent_id, content, content_hash, category) "
        "SELECT $1, gen_random_uuid(), $2, n::text, encode(sha256(n::text::bytea), 'hex'), 'factual' "
        "FROM generate_series(1, 3000) n",
        *(home.org_id, home.agent_id),
    )
    await owner.execute("ANALYZE ibex_core.memories")
    sent: list[tuple[str, object]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_rest: object) -> None:
        if statement.lstrip().startswith("WITH due"):
            sent.append((statement, parameters))

    engine = ibex_db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        async with ibex_db.tenant(home.org_id) as session:
            await MemoryRepository(session).expire_due(batch_size=10)
            ((statement, parameters),) = sent
            connection = await session.connection()
            plan = (await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)).scalars().all()  # type: ignore[arg-type]
    finally:
        event.remove(engine, "before_cursor_execute", note)

    scanned = {word for line in plan for word in line.split() if word.startswith("memories_p") and "_idx" not in word}
    tables = {name for name in scanned if name.removeprefix("memories_p").isdigit()}
    assert len(tables) == 1, plan
    assert any("Index Scan using" in line and "expires_at" in line for line in plan), "\n".join(plan)


@pytest.mark.usefixtures("ibex_db")
@pytest.mark.parametrize("words", [["expire"], ["expire", "--org", "acme"]])
async def test_without_the_platforms_address_the_error_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.delenv("IBEX_PLATFORM_URL")

    done = await asyncio.to_thread(CliRunner().invoke, build(), words)

    assert done.exit_code == 3, done.output
    assert "set IBEX_PLATFORM_URL (platform_url) to a login that is a member of ibex_platform" in done.stderr


@pytest.mark.usefixtures("ibex_db")
async def test_an_organization_that_is_not_there_lies_in_no_other() -> None:
    done = await asyncio.to_thread(CliRunner().invoke, build(), ["expire", "--org", "nosuch"])

    assert done.exit_code == 3
    assert "no Organization nosuch is visible here" in done.stderr
