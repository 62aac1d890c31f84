"""Another number of partitions for filled memories, while services read and write; killed anywhere, nothing is lost."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from catalog_snapshot import snapshot
from live_load import Load, organizations
from quick import parametrize
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ibex_db import Database, EngineSettings, InvalidInputError, MigrationError
from ibex_db_core.doctor import examine
from ibex_db_core.migrations import online
from ibex_db_core.provisioning import Cluster
from ibex_db_memory import partitioning
from ibex_db_memory.partitioning import abandon_repartition, repartition, repartition_status

Made = Callable[[int], Awaitable[tuple[str, Database]]]

_PARTITIONS = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ibex_core.memories'::regclass"
_LEFT = "SELECT relname FROM pg_class WHERE relname LIKE '%memories\\_next%' OR relname LIKE 'next\\_%'"


@pytest.fixture
async def made(ibex_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Made]:
    """``made(4)``: the owner's address and an open Database, with that many partitions."""
    await ibex_cluster.create_logins()
    opened: list[tuple[str, Database]] = []

    async def make(partitions: int) -> tuple[str, Database]:
        monkeypatch.setenv("IBEX_MEMORY_PARTITIONS", str(partitions))
        name = f"ibex_test_{uuid4().hex[:12]}"
        await ibex_cluster.create_database(name)
        db = await ibex_cluster.database(name, settings=EngineSettings(pool_size=6)).open()
        opened.append((name, db))
        await db.upgrade()
        return ibex_cluster.url(name).render_as_string(hide_password=False), db

    yield make
    for name, db in opened:
        await db.close()
        await ibex_cluster.drop_database(name)


async def _asked(url: str, query: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    found = [row[0] for row in await connection.fetch(query)]
    await connection.close()
    return found


def _engine(url: str) -> AsyncEngine:
    return create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))


def _hash(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()


async def _fill(db: Database, orgs: list[tuple[UUID, UUID]], rows: int) -> None:
    for org, agent in orgs:
        async with db.tenant(org) as session:
            values = [
                {"org": org, "agent": agent, "mark": f"{org}-{n}", "hash": _hash(f"{org}{n}")} for n in range(rows)
            ]
            await session.execute(
                text(
                    "INSERT INTO ibex_core.memories (org_id, agent_id, content, content_hash, category, embedding) "
                    "VALUES (:org, :agent, :mark, :hash, 'factual', "
                    "(SELECT array_agg(random()) FROM generate_series(1, 384))::vector)"
                ),
                values,
            )
            insert = "INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag) "
            await session.execute(text(f"{insert} SELECT org_id, id, 'kept' FROM ibex_core.memories"))
            await session.execute(
                text(
                    "UPDATE ibex_core.memories m SET superseded_by = (SELECT n.id FROM ibex_core.memories n "
                    "WHERE n.id <> m.id AND n.org_id = :org LIMIT 1), status = 'superseded' WHERE m.content LIKE '%-1'"
                ),
                {"org": org},
            )


# All that services read of it, whatever lies where.
_EVERYTHING = """
    SELECT md5(string_agg(t, '' ORDER BY t COLLATE "C")) FROM (
        SELECT 'm' || m::text AS t FROM ibex_core.memories m
        UNION ALL SELECT 'v' || v::text FROM ibex_core.memory_versions v
        UNION ALL SELECT 't' || g::text FROM ibex_core.memory_tags g) all_rows
"""


@pytest.mark.parametrize(("before", "after"), [(3, 8), (8, 2)])
async def test_it_ends_as_if_the_table_had_been_made_so_with_every_row_in_it(
    made: Made, before: int, after: int
) -> None:
    url, db = await made(before)
    meant, _ = await made(after)
    await _fill(db, await organizations(db), 40)
    rows = await _asked(url, _EVERYTHING)
    said: list[str] = []

    async with db.migrator() as migrator:
        status = await repartition(migrator, after, batch=50, tell=said.append)
        assert await migrator.check() == []

    assert (status.partitions, status.copying_to, status.unvalidated) == (after, None, 0)
    assert await _asked(url, _EVERYTHING) == rows
    assert await _asked(url, _LEFT) == []
    assert any(line.startswith("copied 120 of") for line in said)
    one, other = _engine(url), _engine(meant)
    there, wanted = await snapshot(one), await snapshot(other)
    await one.dispose()
    await other.dispose()
    # memory_vectors has as many as memories had when it was made, and keeps them.
    assert {fact for fact in there ^ wanted if "memory_vectors" not in str(fact)} == set()
    assert [found for found in (await db.doctor()).findings if found.code not in _OF_THE_SERVER] == []


# What a test server is, and no table of it.
_OF_THE_SERVER = {"server-settings", "login-superuser"}


async def test_readers_and_writers_go_on_and_no_acknowledged_write_is_lost(made: Made) -> None:
    url, db = await made(3)
    load = Load(db, await organizations(db), memories=True)

    async with load.running(), db.migrator() as migrator:
        await repartition(migrator, 6, batch=20)
    await load.settle()

    assert await _asked(url, _PARTITIONS) == [6]
    async with db.migrator() as migrator:
        assert await migrator.check() == []


async def test_what_is_changed_and_deleted_meanwhile_is_so_in_the_copy(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, db = await made(3)
    orgs = await organizations(db, 1)
    ((org, _agent),) = orgs
    await _fill(db, orgs, 30)
    verify: Callable[[Any], Awaitable[None]] = getattr(partitioning, "_verify")  # noqa: B009 - as monkeypatch names it

    async def meddle_and_verify(connection: Any) -> None:
        async with db.tenant(org) as session:
            for change in (
                "DELETE FROM ibex_core.memories WHERE content LIKE '%-2'",
                "UPDATE ibex_core.memories SET content = 'new words' WHERE content LIKE '%-3'",
                "UPDATE ibex_core.memories SET retrieval_count = 9",
            ):
                await session.execute(text(change))
        await verify(connection)

    monkeypatch.setattr(partitioning, "_verify", meddle_and_verify)
    async with db.migrator() as migrator:
        await repartition(migrator, 2)

    assert await _asked(url, "SELECT count(*) FROM ibex_core.memories") == [29]
    assert await _asked(url, "SELECT min(retrieval_count) FROM ibex_core.memories") == [9]
    assert await _asked(url, "SELECT count(*) FROM ibex_core.memories WHERE content = 'new words'") == [1]


async def test_a_copy_that_differs_is_never_taken(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    url, db = await made(3)
    await _fill(db, await organizations(db, 1), 10)
    verify: Callable[[Any], Awaitable[None]] = getattr(partitioning, "_verify")  # noqa: B009 - as monkeypatch names it

    async def damage_and_verify(connection: Any) -> None:
        await _asked(url, "UPDATE ibex_core.memories_next SET retrieval_count = 1 WHERE content LIKE '%-4'")
        await verify(connection)

    monkeypatch.setattr(partitioning, "_verify", damage_and_verify)
    async with db.migrator() as migrator:
        with pytest.raises(MigrationError, match="differ: nothing was exchanged"):
            await repartition(migrator, 2)
        assert await _asked(url, _PARTITIONS) == [3]
        assert await abandon_repartition(migrator)
        assert await migrator.check() == []
        assert not await abandon_repartition(migrator)
    assert await _asked(url, _LEFT) == []


_STAGES = ("making", "copied", "building memories_embedding", "comparing", "taking", "validating")
_QUICK = {"copied", "taking"}  # rows half copied, names half exchanged


@parametrize("stage", _STAGES, quick=_QUICK)
async def test_killed_in_any_stage_the_next_run_goes_on(made: Made, stage: str) -> None:
    url, db = await made(2)
    orgs = await organizations(db)
    await _fill(db, orgs, 30)
    rows = await _asked(url, _EVERYTHING)
    command = [
        sys.executable,
        "-m",
        "ibex_db_core.cli",
        "repartition",
        "--partitions",
        "3",
        "--batch",
        "10",
        "--url",
        url,
    ]

    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    async with asyncio.timeout(120):
        while not (await process.stderr.readline()).decode().startswith(stage):
            assert not process.stderr.at_eof(), f"{stage}: never came"
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    assert await _asked(url, _EVERYTHING) == rows
    async with db.tenant(orgs[0][0]) as session:  # services go on, whatever was left
        await session.execute(text("UPDATE ibex_core.memories SET retrieval_count = retrieval_count"))

    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert await _asked(url, _PARTITIONS) == [3]
    assert await _asked(url, _LEFT) == []
    async with db.migrator() as migrator:
        assert await migrator.check() == []
        assert (await repartition_status(migrator)).unvalidated == 0
    assert await _asked(url, "SELECT count(*) FROM ibex_core.memories") == [90]


async def test_an_index_that_is_dropped_while_a_copy_waits_does_not_come_back(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, db = await made(2)
    await _fill(db, await organizations(db, 1), 5)
    for index in ("whole_idx", "half_idx"):
        await _asked(url, f"CREATE INDEX {index} ON ibex_core.memories (org_id, source)")
    await _interrupted(db, monkeypatch, "_verify")
    # As a build that was killed leaves it: one partition's, and no parent.
    await _asked(url, "DROP INDEX ibex_core.next_half_idx")
    await _asked(url, "CREATE INDEX next_half_idx_p01 ON ibex_core.memories_next_p01 (org_id, source)")
    for index in ("whole_idx", "half_idx"):
        await _asked(url, f"DROP INDEX ibex_core.{index}")

    async with db.migrator() as migrator:
        await repartition(migrator, 4)

        assert await migrator.check() == []
    assert await _asked(url, "SELECT relname FROM pg_class WHERE relname ~ '(whole|half)_idx'") == []


async def test_the_dry_run_says_what_the_command_would_do(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    url, db = await made(2)
    await _fill(db, await organizations(db, 1), 5)
    await _interrupted(db, monkeypatch, "_verify")

    assert "refused: a copy in 4 partitions is under way" in (told := await _dry(url, 8))
    assert "--partitions 4 goes on with it" in told
    assert "It would go on to copy" in await _dry(url, 4)
    with monkeypatch.context() as patch:
        patch.setattr(partitioning, "_validate", _ended)
        async with db.migrator() as migrator:
            with pytest.raises(MigrationError, match="ended"):
                await repartition(migrator, 4)
            keys = (await repartition_status(migrator)).unvalidated
    assert keys > 0
    assert f"It would validate {keys} foreign keys" in await _dry(url, 4)
    assert f"Validated {keys} foreign keys" in await _dry(url, 4, dry=False)
    assert "Nothing to do" in await _dry(url, 4)


async def _ended(*_: object) -> None:
    raise MigrationError("here the process ended")


async def _dry(url: str, partitions: int, *, dry: bool = True) -> str:
    command = [sys.executable, "-m", "ibex_db_core.cli", "repartition", "--partitions", str(partitions), "--url", url]
    command += ["--dry-run"] if dry else []
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, timeout=300)
    return " ".join(done.stdout.split())


async def test_patience_begins_where_a_lock_is_first_met(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building takes longer than patience; then a writer holds a partition of the copy until it is asked for again."""
    url, db = await made(2)
    await _fill(db, await organizations(db, 1), 10)
    patience = 0.4
    state: Callable[..., bool | None] = getattr(online, "_state")  # noqa: B009 - as monkeypatch names it
    held, free = threading.Event(), threading.Event()

    async def write() -> None:
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            await connection.execute("UPDATE ibex_core.memories SET retrieval_count = 1")
            held.set()
            await asyncio.to_thread(free.wait, 60)
        await connection.close()

    writer = threading.Thread(target=lambda: asyncio.run(write()))

    def built(connection: Connection, schema: str, name: str, table: str) -> bool | None:
        if table == "memories_next":  # all of its partitions have the index, and it takes it in a moment
            if not held.is_set():
                time.sleep(2 * patience)
                writer.start()
                assert held.wait(60)
            else:
                free.set()
                writer.join()
        return state(connection, schema, name, table)

    monkeypatch.setattr(online, "_state", built)
    try:
        async with db.migrator() as migrator:
            status = await repartition(migrator, 3, patience=patience)
    finally:
        free.set()

    assert (status.partitions, status.copying_to) == (3, None)


async def test_another_number_must_wait_and_bad_ones_are_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    _url, db = await made(2)

    async def stop(*_: object) -> None:
        raise MigrationError("here the process ended")

    monkeypatch.setattr(partitioning, "_fill", stop)
    async with db.migrator() as migrator:
        for partitions, batch in ((0, 1), (1025, 1), (4, 0)):
            with pytest.raises(InvalidInputError):
                await repartition(migrator, partitions, batch=batch)
        with pytest.raises(MigrationError, match="ended"):
            await repartition(migrator, 4)
        with pytest.raises(MigrationError, match="a copy in 4 partitions is under way"):
            await repartition(migrator, 8)
        assert await abandon_repartition(migrator)


@pytest.mark.parametrize("stage", ["_fill", "_index", "halfway", "_verify"])
async def test_the_doctor_tells_a_copy_that_was_left_as_one_thing(
    made: Made, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    url, db = await made(2)
    orgs = await organizations(db, 1)
    await _fill(db, orgs, 5)
    await _interrupted(db, monkeypatch, stage)
    if stage == "halfway":
        # What a kill in the first index leaves: the parent's, one partition's, and one that is invalid for good.
        await _asked(url, "CREATE INDEX next_memories_tag_idx ON ONLY ibex_core.memories_next (org_id, status)")
        await _asked(url, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ibex_core.left_p00'::regclass")

    found = await _found(db)
    async with db.migrator() as migrator:
        differences = await migrator.check()

    assert found == [("repartition-under-way", "ibex_core.memories_next")]
    assert len(differences) == 1
    assert "a repartition to 4 is under way" in differences[0]
    report = (await db.doctor()).findings
    (remedy,) = [one.remedy_sql for one in report if one.code == "repartition-under-way"]
    assert remedy.splitlines() == [
        "-- where none runs, go on: ibex-db repartition --partitions 4",
        "-- or take it back: ibex-db repartition --abandon",
    ]
    async with db.migrator() as migrator:
        assert await abandon_repartition(migrator)
    assert await _found(db) == []


async def _interrupted(db: Database, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Begin a repartition to 4 that ends before a stage; halfway: in the building of the indexes."""
    building = online.build

    async def stop(*_: object) -> None:
        raise MigrationError("here the process ended")

    def build(connection: Connection, *, name: str, table: str, definition: str, unique: bool) -> None:
        building(connection, name, table, definition, unique=unique)
        connection.exec_driver_sql("CREATE INDEX left_p00 ON ibex_core.memories_next_p00 (org_id, status)")
        raise MigrationError("here the process ended")

    with monkeypatch.context() as patch:
        if stage == "halfway":
            patch.setattr(online, "build", build)
        else:
            patch.setattr(partitioning, stage, stop)
        async with db.migrator() as migrator:
            with pytest.raises(MigrationError, match="ended"):
                await repartition(migrator, 4)


async def _found(db: Database) -> list[tuple[str, str]]:
    return [(one.code, one.object) for one in (await db.doctor()).findings if one.code not in _OF_THE_SERVER]


_DEFINER = (
    "RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp "
    "AS 'BEGIN RETURN NULL; END'"
)
_TRIGGER = "AFTER INSERT OR UPDATE OR DELETE ON ibex_core.memories FOR EACH ROW EXECUTE FUNCTION"


# What somebody puts beside a copy, or makes of it: each is told, whatever is told as one.
_MEDDLED = {
    "another name": (
        f"CREATE FUNCTION ibex_core.memories_mirror2() {_DEFINER}",
        ("function-definer", "ibex_core.memories_mirror2()"),
    ),
    "another body": (
        f"CREATE OR REPLACE FUNCTION ibex_core.memories_mirror() {_DEFINER}",
        ("function-definer", "ibex_core.memories_mirror()"),
    ),
    "for everybody": (
        "GRANT EXECUTE ON FUNCTION ibex_core.memories_mirror() TO PUBLIC",
        ("function-definer", "ibex_core.memories_mirror()"),
    ),
    "another search path": (
        "ALTER FUNCTION ibex_core.memories_mirror() SET search_path = public",
        ("function-definer", "ibex_core.memories_mirror()"),
    ),
    "another trigger": (
        f"CREATE TRIGGER memories_mirror {_TRIGGER} ibex_core.memories_mirror()",
        ("trigger-unknown", "memories_mirror on ibex_core.memories"),
    ),
    "a trigger that is off": (
        "ALTER TABLE ibex_core.memories DISABLE TRIGGER memories_aa_mirror",
        ("trigger-unknown", "memories_aa_mirror on ibex_core.memories"),
    ),
    "a policy for tenants": (
        "ALTER POLICY memories_repartition ON ibex_core.memories TO ibex_app",
        ("policy-extra", "memories_repartition on ibex_core.memories"),
    ),
    "a policy on the copy": (
        "CREATE POLICY open ON ibex_core.memories_next USING (true)",
        ("policy-extra", "open on ibex_core.memories_next"),
    ),
    "a grant on the copy": (
        "GRANT TRUNCATE ON ibex_core.memories_next TO ibex_app",
        ("grant-excess", "ibex_core.memories_next to ibex_app"),
    ),
    "a grant on a partition": (
        "GRANT SELECT ON ibex_core.memories_next_p01 TO ibex_app",
        ("grant-partition", "ibex_core.memories_next_p01 to ibex_app"),
    ),
    "no row security": (
        "ALTER TABLE ibex_core.memories_next_p01 NO FORCE ROW LEVEL SECURITY",
        ("rls-not-forced", "ibex_core.memories_next_p01"),
    ),
    "another owner": (
        "ALTER TABLE ibex_core.memories_next OWNER TO CURRENT_USER",
        ("table-owner", "ibex_core.memories_next"),
    ),
    "another shape": (
        "ALTER TABLE ibex_core.memories_next ADD COLUMN more text",
        ("table-unknown", "ibex_core.memories_next"),
    ),
}


_ITS_OWN = {
    "ibex_core.memories_mirror()",
    "memories_aa_mirror on ibex_core.memories",
    "memories_repartition on ibex_core.memories",
}


async def test_what_is_not_the_procedures_own_is_told_beside_it(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    url, db = await made(2)
    await _interrupted(db, monkeypatch, "_fill")
    engine = _engine(url)

    for name, (meddling, wanted) in _MEDDLED.items():
        async with engine.connect() as connection:
            await connection.exec_driver_sql(meddling)
            report = await connection.run_sync(examine)
            await connection.rollback()
        told = {(one.code, one.object): one.severity for one in report.findings}
        assert wanted in told, f"{name}: {sorted(told)}"
        # Of another table than the procedure makes, nothing is taken for its own; its parts that differ are grave.
        severity = None if name in {"another owner", "another shape"} else "high" if wanted[1] in _ITS_OWN else "low"
        assert told.get(("repartition-under-way", "ibex_core.memories_next")) == severity, name

    await engine.dispose()


async def test_no_tenant_sees_the_copy(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    url, db = await made(2)
    orgs = await organizations(db, 2)
    await _fill(db, orgs, 5)

    async def stop(*_: object) -> None:
        raise MigrationError("here the process ended")

    monkeypatch.setattr(partitioning, "_verify", stop)
    async with db.migrator() as migrator:
        with pytest.raises(MigrationError, match="ended"):
            await repartition(migrator, 4)
    assert await _asked(url, "SELECT count(*) FROM ibex_core.memories_next") == [10]

    for granted in (False, True):  # and with a grant made by mistake, still no row
        if granted:
            await _asked(url, "GRANT SELECT ON ibex_core.memories_next TO ibex_app")
        connection = await asyncpg.connect(url)
        await connection.execute("SET ROLE ibex_app")
        await connection.execute(f"SELECT set_config('app.current_org_id', '{orgs[0][0]}', false)")
        if granted:
            assert await connection.fetch("SELECT * FROM ibex_core.memories_next") == []
        else:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch("SELECT * FROM ibex_core.memories_next")
        assert await connection.fetchval("SELECT count(*) FROM ibex_core.memories") == 5
        await connection.close()
