"""Migrations of a database in use: short waits, nothing half applied, indexes beside writers, losses by consent."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import asyncpg
import pytest
import toy_revisions
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core import (
    DestructiveMigrationError,
    EngineSettings,
    InvalidInputError,
    MigrationBlockedError,
    MigrationError,
    Migrator,
)
from ibex_db_core.engine import create_engine
from ibex_db_core.migrations import losses, online, waiting
from ibex_db_core.testing import TestDatabase
from ibex_db_core.url import parse

Install = Callable[..., Path]

ITEMS = "op.execute('CREATE TABLE ibex_core.items (id int PRIMARY KEY, kind int, note varchar(10))')"
OWNED = f"op.execute('SET LOCAL ROLE ibex_owner')\n{ITEMS}"
GONE = "op.execute('DROP TABLE ibex_core.items')"

# Of four partitions, as memories has them.
PARTED = """
op.execute('SET LOCAL ROLE ibex_owner')
op.execute('CREATE TABLE ibex_core.items (id int NOT NULL, kind int, PRIMARY KEY (id)) PARTITION BY HASH (id)')
for number in range(4):
    op.execute(
        f'CREATE TABLE ibex_core.items_p{number:02} PARTITION OF ibex_core.items '
        f'FOR VALUES WITH (MODULUS 4, REMAINDER {number})')
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``toys((up, down), ...)``: a wheel of these revisions."""
    return lambda *bodies: toy_revisions.install(tmp_path, monkeypatch, bodies)


@pytest.fixture
async def engine(empty_database: TestDatabase) -> AsyncIterator[AsyncEngine]:
    address = parse(empty_database.cluster.url(empty_database.name))
    made = create_engine(address, EngineSettings(application_name="migrator").for_migrations())
    yield made
    await made.dispose()


@pytest.fixture
def migrator(engine: AsyncEngine) -> Migrator:
    return Migrator(engine)


@asynccontextmanager
async def session(database: TestDatabase, name: str = "report") -> AsyncGenerator[asyncpg.Connection]:
    url = database.cluster.url(database.name).render_as_string(hide_password=False)
    connection = await asyncpg.connect(url, server_settings={"application_name": name})
    try:
        yield connection
    finally:
        await connection.close()


async def asked(database: TestDatabase, sql: str) -> list[Any]:
    async with session(database) as connection:
        found: list[Any] = await connection.fetch(sql)
    return found


async def applied(migrator: Migrator) -> list[str]:
    return [one.id for one in await migrator.current() if one.applied and one.wheel == "toy"]


# -- locks


async def test_a_revision_that_gets_no_lock_says_who_holds_it_and_leaves_nothing(
    toys: Install, empty_database: TestDatabase, migrator: Migrator
) -> None:
    toys(
        (ITEMS, GONE),
        ("op.execute('CREATE TABLE ibex_core.half (id int)')\nop.execute('ALTER TABLE ibex_core.items ADD x int')", ""),
    )
    await migrator.upgrade("toy_0001")

    async with session(empty_database, "nightly report") as reader, reader.transaction():
        await reader.fetch("SELECT * FROM ibex_core.items")
        with pytest.raises(MigrationBlockedError) as raised:
            await migrator.upgrade("toy@head", lock_timeout=0.4, attempts=2)

    said = str(raised.value)
    assert raised.value.revision == "toy_0002"
    assert raised.value.relation == "ibex_core.items"
    assert "toy_0002 got no lock on ibex_core.items (AccessExclusiveLock) within 0.4 s, 2 times" in said
    assert "nightly report" in said
    assert "idle in transaction, in its transaction for" in said
    assert "pg_terminate_backend" in said
    assert await applied(migrator) == ["toy_0001"]
    assert await asked(empty_database, "SELECT to_regclass('ibex_core.half')::text AS made") == [(None,)]
    again = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - our own
    assert (again.holders, again.revision) == (raised.value.holders, "toy_0002")


async def test_a_revision_waits_out_a_reader_and_nobody_waits_behind_it_for_long(
    toys: Install, empty_database: TestDatabase, migrator: Migrator
) -> None:
    toys((ITEMS, GONE), ("op.execute('ALTER TABLE ibex_core.items ADD x int')", ""))
    await migrator.upgrade("toy_0001")
    done = asyncio.Event()
    behind = 0

    async def others() -> None:
        nonlocal behind
        async with session(empty_database) as other:
            # Ten times what the migration may queue for: with none, this would be refused while the report is open.
            await other.execute("SET lock_timeout = '3s'")
            while not done.is_set():
                await other.fetch("SELECT * FROM ibex_core.items")
                behind += 1

    async with session(empty_database) as reader, asyncio.TaskGroup() as tasks:
        transaction = reader.transaction()
        await transaction.start()
        await reader.fetch("SELECT * FROM ibex_core.items")
        tasks.create_task(others())
        upgrading = asyncio.create_task(migrator.upgrade("toy@head", lock_timeout=0.2, attempts=50))
        while behind < 100 or upgrading.done():  # noqa: ASYNC110 - what other sessions do wakes nobody
            await asyncio.sleep(0.01)
        assert not upgrading.done()
        await transaction.rollback()
        assert [one.id for one in await upgrading] == ["toy_0002"]
        done.set()


async def test_who_cancels_while_the_lookout_ends_is_heard(engine: AsyncEngine) -> None:
    went_on = False

    async def work() -> None:
        nonlocal went_on
        own = asyncio.current_task()
        assert own is not None
        async with waiting.watched(engine, 0, 60.0, waiting.Waiting()):
            await asyncio.sleep(0)  # the lookout has begun
            asyncio.get_running_loop().call_soon(own.cancel)  # comes while the end of the block waits for its end
        went_on = True

    task = asyncio.create_task(work())
    await asyncio.wait([task])

    assert (task.cancelled(), went_on) == (True, False)


async def test_the_setting_goes_with_the_revision(toys: Install, migrator: Migrator, engine: AsyncEngine) -> None:
    toys(("assert op.get_bind().exec_driver_sql('SHOW lock_timeout').scalar() == '1500ms'", ""))

    await migrator.upgrade("toy@head", lock_timeout=1.5)

    async with engine.connect() as connection:
        assert (await connection.exec_driver_sql("SHOW lock_timeout")).scalar() == "0"


@pytest.mark.parametrize(("field", "value"), [("lock_timeout", -1), ("lock_timeout", float("nan")), ("attempts", 0)])
async def test_impatience_that_makes_no_sense_is_refused(migrator: Migrator, field: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=field):
        await migrator.upgrade(**{field: value})  # type: ignore[arg-type]


# -- what would be lost


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("DROP TABLE IF EXISTS ibex_core.a, b CASCADE", ["table ibex_core.a", "table b"]),
        ('drop table "Odd Name"', ['table "Odd Name"']),
        ("ALTER TABLE a DROP COLUMN x, DROP y, DROP CONSTRAINT z", ["column a.x", "column a.y"]),
        ("ALTER TABLE ONLY s.a ADD c numeric(4, 3) DEFAULT 1, DROP COLUMN IF EXISTS x CASCADE", ["column s.a.x"]),
        ("ALTER TABLE a ALTER COLUMN x TYPE varchar(3)", ["type a.x"]),
        ("ALTER TABLE a ALTER x SET DATA TYPE int USING x::int", ["type a.x"]),
        ("TRUNCATE a, s.b", ["rows a", "rows s.b"]),
        ("DELETE FROM a WHERE true", ["rows a"]),
        ("WITH old AS (DELETE FROM ONLY a RETURNING *) INSERT INTO b SELECT * FROM old", ["rows a"]),
        ("MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN DELETE", ["rows a"]),
        ("ALTER TABLE a DETACH PARTITION a_p01", ["partition a_p01"]),
        ("DROP SCHEMA s CASCADE", ["schema s CASCADE"]),
        ("DROP TYPE mood CASCADE", ["cascade type mood CASCADE"]),
        ("DO $$ BEGIN EXECUTE format('DROP TABLE %I', 'a'); END $$", ["block None"]),
        ("-- all\n/* of */ DROP /* it */ TABLE a", ["table a"]),
    ],
)
def test_what_destroys_is_seen(sql: str, what: list[str]) -> None:
    assert [f"{loss.what} {loss.table}{f'.{loss.column}' if loss.column else ''}" for loss in losses.read(sql)] == what


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ DELETE FROM a; DROP TABLE a $$",
        "CREATE TABLE a (id int REFERENCES b ON DELETE CASCADE)",
        "ALTER TABLE a ALTER COLUMN x DROP DEFAULT, ALTER y DROP NOT NULL, ALTER z DROP EXPRESSION",
        "ALTER TABLE a DROP CONSTRAINT c",
        "COMMENT ON TABLE a IS 'DROP TABLE a; DELETE FROM a'",
        "INSERT INTO a VALUES (E'it\\'s', 'DELETE FROM a')",
        "CREATE TRIGGER t BEFORE DELETE ON a FOR EACH ROW EXECUTE FUNCTION f()",
        "GRANT DELETE ON a TO b",
        "DROP INDEX a_idx",
        "DROP FUNCTION f()",
        "UPDATE a SET x = 1",
        "DELETE FROM ibex_core.alembic_version WHERE version_num = 'x'",
        "DO $$ BEGIN PERFORM 1; -- DROP TABLE a\nEND $$",
    ],
)
def test_what_destroys_nothing_is_let_be(sql: str) -> None:
    assert list(losses.read(sql)) == []


LOSSY = ("op.execute('ALTER TABLE ibex_core.items DROP COLUMN note')", "pass")


async def test_a_destructive_revision_is_refused_before_the_first_step_and_says_what_goes(
    toys: Install, empty_database: TestDatabase, migrator: Migrator
) -> None:
    toys((ITEMS, GONE), ("op.execute('ALTER TABLE ibex_core.items ADD y int')", "pass"), LOSSY)
    await migrator.upgrade("toy_0001")
    await asked(empty_database, "INSERT INTO ibex_core.items SELECT n, n, 'x' FROM generate_series(1, 1200) n")
    await asked(empty_database, "ANALYZE ibex_core.items")

    with pytest.raises(DestructiveMigrationError) as raised:
        await migrator.upgrade("toy@head")
    (line,) = raised.value.losses
    assert line.startswith("toy_0003: column ibex_core.items.note with its values (about 1,200 rows, ")
    assert "--allow-destructive" in str(raised.value)
    assert pickle.loads(pickle.dumps(raised.value)).losses == raised.value.losses  # noqa: S301 - our own
    assert await applied(migrator) == ["toy_0001"]

    await migrator.upgrade("toy@head", allow_destructive=True)
    assert await applied(migrator) == ["toy_0001", "toy_0002", "toy_0003"]


@pytest.mark.parametrize("collation", ['"C"', 'pg_catalog."C"', "ucs_basic"])
async def test_a_wider_type_of_another_collation_loses_what_its_expression_does(
    toys: Install, migrator: Migrator, collation: str
) -> None:
    retyped = f"op.execute('ALTER TABLE ibex_core.items ALTER note TYPE text COLLATE {collation}{{}}')"
    toys((ITEMS, GONE), (retyped.format(""), "pass"), (retyped.format(" USING left(note, 3)"), "pass"))
    await migrator.upgrade("toy_0002")

    with pytest.raises(DestructiveMigrationError, match=r"what does not fit of ibex_core\.items\.note"):
        await migrator.upgrade("toy@head")


async def test_a_downgrade_that_destroys_is_refused_too(toys: Install, migrator: Migrator) -> None:
    toys((ITEMS, GONE))
    await migrator.upgrade("toy@head")

    assert (await migrator.losses("toy@base", down=True))[0].startswith("toy_0001: table ibex_core.items with all its")
    with pytest.raises(DestructiveMigrationError, match=r"table ibex_core\.items"):
        await migrator.downgrade("toy@base")
    assert await applied(migrator) == ["toy_0001"]

    await migrator.downgrade("toy@base", allow_destructive=True)
    assert await applied(migrator) == []


async def test_what_a_revision_makes_itself_it_may_take_away_and_a_wider_type_is_no_loss(
    toys: Install, migrator: Migrator
) -> None:
    toys(
        (ITEMS, GONE),
        ("op.execute('CREATE TABLE ibex_core.aid (id int)')\nop.execute('DROP TABLE ibex_core.aid')", ""),
        ("op.execute('ALTER TABLE ibex_core.items ALTER kind TYPE bigint, ALTER note TYPE text')", "pass"),
        ("op.execute('ALTER TABLE ibex_core.items ALTER kind TYPE smallint')", "pass"),
    )
    await migrator.upgrade("toy_0001")

    assert [one.id for one in await migrator.upgrade("toy_0003")] == ["toy_0002", "toy_0003"]
    with pytest.raises(DestructiveMigrationError, match=r"what does not fit of ibex_core\.items\.kind as smallint"):
        await migrator.upgrade("toy@head")


async def test_sql_that_only_the_data_decide_is_read_as_it_is_sent(
    toys: Install, empty_database: TestDatabase, migrator: Migrator
) -> None:
    toys(
        (ITEMS, GONE),
        (
            """
            for (name,) in op.get_bind().exec_driver_sql("SELECT 'ibex_core.items'"):
                op.execute(f'DELETE FROM {name}')
            """,
            "",
        ),
    )
    await migrator.upgrade("toy_0001")
    await asked(empty_database, "INSERT INTO ibex_core.items VALUES (1)")

    with pytest.raises(DestructiveMigrationError, match=r"toy_0002: rows of ibex_core\.items"):
        await migrator.upgrade("toy_0002")
    assert await asked(empty_database, "SELECT id FROM ibex_core.items") == [(1,)]


async def test_a_revision_may_declare_what_no_reader_of_sql_sees(toys: Install, migrator: Migrator) -> None:
    versions = toys((ITEMS, GONE), ("op.execute('SELECT 1')", ""))
    second = versions / "toy_0002.py"
    second.write_text(second.read_text() + "destroys = ('the search history, by a function of the service',)\n")
    await migrator.upgrade("toy_0001")

    with pytest.raises(DestructiveMigrationError, match="toy_0002: the search history, by a function of the service"):
        await migrator.upgrade("toy@head")


# -- the dry run


async def test_a_plan_tells_locks_rewrites_scans_and_losses_and_does_nothing(
    toys: Install, empty_database: TestDatabase, migrator: Migrator
) -> None:
    toys(
        (ITEMS, GONE),
        ("op.execute('CREATE INDEX items_kind_idx ON ibex_core.items (kind)')", ""),
        ("op.execute('ALTER TABLE ibex_core.items ALTER kind TYPE bigint')", ""),
        ("op.execute('ALTER TABLE ibex_core.items ADD CHECK (kind > 0) NOT VALID')", ""),
        ("op.execute('ALTER TABLE ibex_core.items VALIDATE CONSTRAINT items_kind_check')", ""),
        ("online.create_index('items_note_idx', 'items', '(note)')", ""),
        LOSSY,
        ("op.execute('CREATE TABLE ibex_core.other (id int)')", ""),
    )
    await migrator.upgrade("toy_0001")
    await asked(empty_database, "INSERT INTO ibex_core.items SELECT n, n FROM generate_series(1, 500) n")
    await asked(empty_database, "ANALYZE ibex_core.items")
    catalog = "SELECT c.oid, c.relname, c.relfilenode, c.xmin::text FROM pg_class c ORDER BY 1"
    before = await asked(empty_database, catalog)

    plan = await migrator.plan(scratch=empty_database.cluster.admin.render_as_string(hide_password=False))

    assert await asked(empty_database, catalog) == before
    assert await applied(migrator) == ["toy_0001"]
    left = "SELECT datname FROM pg_database WHERE datname LIKE 'ibex_dry_run_%'"
    assert await asked(empty_database, left) == []
    found = {
        one.id: (
            [(lock.table, lock.mode, lock.blocks, lock.rows) for lock in one.locks],
            sorted({name for said in one.statements for name in said.rewrites}),
            sorted({name for said in one.statements for name in said.scans}),
            len(one.destroys),
        )
        for one in plan.revisions
        if one.wheel == "toy"
    }
    items = "ibex_core.items"
    assert found == {
        "toy_0002": ([(items, "SHARE", "writes", 500)], [], [items], 0),
        "toy_0003": ([(items, "ACCESS EXCLUSIVE", "reads and writes", 500)], [items], [items], 0),
        "toy_0004": ([(items, "ACCESS EXCLUSIVE", "reads and writes", 500)], [], [], 0),
        "toy_0005": ([(items, "SHARE UPDATE EXCLUSIVE", "nobody", 500)], [], [items], 0),
        "toy_0006": ([(items, "SHARE UPDATE EXCLUSIVE", "nobody", 500)], [], [items], 0),
        "toy_0007": ([(items, "ACCESS EXCLUSIVE", "reads and writes", 500)], [], [], 1),
        "toy_0008": ([], [], [], 0),
    }
    (said,) = (one for one in plan.revisions if one.id == "toy_0002")
    assert said.statements[0].sql == "CREATE INDEX items_kind_idx ON ibex_core.items (kind)"


async def test_a_plan_names_who_is_in_the_way_now(
    toys: Install, empty_database: TestDatabase, migrator: Migrator
) -> None:
    toys((ITEMS, GONE))
    await migrator.upgrade("toy@head")
    scratch = empty_database.cluster.admin.render_as_string(hide_password=False)

    async with session(empty_database, "nightly report") as reader, reader.transaction():
        await reader.fetch("SELECT * FROM ibex_core.items")
        await asyncio.sleep(2.1)
        plan = await migrator.plan("toy@base", down=True, scratch=scratch)

    assert any("nightly report" in line for line in plan.in_the_way)
    assert [one.id for one in plan.revisions] == ["toy_0001"]


# -- indexes beside writers


INDEX = ("online.create_index('items_kind_idx', 'items', '(kind)')", "online.drop_index('items_kind_idx')")
STATE = """
    SELECT c.relname::text AS name, i.indisvalid AS valid, i.indrelid::regclass::text AS on_
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relname LIKE 'items_kind_idx%' ORDER BY 1
"""


@asynccontextmanager
async def writers(database: TestDatabase, *, slowest: float = 5.0) -> AsyncGenerator[Callable[[], int]]:
    """Write all the while, each statement within a bound that a blocking build would break; count them."""
    stop, count = asyncio.Event(), 0

    async def write(first: int) -> None:
        nonlocal count
        async with session(database, "writer") as connection:
            await connection.execute(f"SET lock_timeout = '{slowest}s'")
            while not stop.is_set():
                await connection.execute("INSERT INTO ibex_core.items VALUES ($1, $1)", first + 2 * count + 1)
                count += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write(10_000_000))
        try:
            yield lambda: count
        finally:
            stop.set()


async def _filled(database: TestDatabase, rows: int) -> None:
    await asked(database, f"INSERT INTO ibex_core.items SELECT n, n % 100 FROM generate_series(1, {rows}) n")


@pytest.mark.parametrize("table", [OWNED, PARTED], ids=["plain", "partitioned"])
async def test_an_index_is_built_and_dropped_while_writers_write(
    toys: Install, empty_database: TestDatabase, migrator: Migrator, table: str
) -> None:
    toys((table, GONE), INDEX)
    await migrator.upgrade("toy_0001")
    await _filled(empty_database, 50_000)

    async with writers(empty_database) as written:
        await migrator.upgrade("toy@head")
        state = await asked(empty_database, STATE)
        assert all(row["valid"] for row in state)
        assert [row["name"] for row in state] == (
            ["items_kind_idx"]
            if table is OWNED
            else ["items_kind_idx", *(f"items_kind_idx_p{number:02}" for number in range(4))]
        )
        await migrator.downgrade("toy_0001")
        assert await asked(empty_database, STATE) == []
        assert written() > 0


async def test_an_index_build_that_died_half_way_is_mended_by_the_next_run(
    toys: Install, empty_database: TestDatabase, migrator: Migrator, tmp_path: Path
) -> None:
    toys((PARTED, GONE), INDEX)
    await migrator.upgrade("toy_0001")
    await _filled(empty_database, 20_000)
    program = dedent("""
        import asyncio, sys
        from ibex_db_core import Database

        async def main():
            async with Database(sys.argv[1]) as db:
                await db.upgrade("toy@head")

        asyncio.run(main())
    """)
    url = empty_database.cluster.url(empty_database.name).render_as_string(hide_password=False)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    async with session(empty_database, "slow writer") as reader:
        transaction = reader.transaction()
        await transaction.start()
        # The build waits for whoever writes to its table, so it stands in the middle, at a point that we choose.
        await reader.execute(
            "UPDATE ibex_core.items_p02 SET kind = 1 WHERE id = (SELECT min(id) FROM ibex_core.items_p02)"
        )
        process = subprocess.Popen([sys.executable, "-c", program, url], env=environment)  # noqa: ASYNC220, S603
        async with asyncio.timeout(30):
            while not any(row["name"].endswith("_p02") for row in await asked(empty_database, STATE)):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        # client_connection_check_interval: the backend of a client that is gone ends, though its wait does not.
        async with asyncio.timeout(15):
            while await asked(empty_database, "SELECT FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%'"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        left = {row["name"]: row["valid"] for row in await asked(empty_database, STATE)}
        assert left == {"items_kind_idx_p00": True, "items_kind_idx_p01": True, "items_kind_idx_p02": False}
        await transaction.commit()
    assert await applied(migrator) == ["toy_0001"]

    await migrator.upgrade("toy@head")

    state = await asked(empty_database, STATE)
    assert [row["valid"] for row in state] == [True] * 5
    assert await applied(migrator) == ["toy_0001", "toy_0002"]


async def test_several_who_upgrade_at_once_do_not_keep_a_concurrent_build_waiting(
    toys: Install, empty_database: TestDatabase, migrator: Migrator, engine: AsyncEngine
) -> None:
    """Whoever waited for the advisory lock in a statement would hold the snapshot that the build waits for."""
    toys((PARTED, GONE), INDEX)
    await migrator.upgrade("toy_0001")
    await _filled(empty_database, 20_000)
    address = parse(empty_database.cluster.url(empty_database.name))
    others = [create_engine(address, EngineSettings().for_migrations()) for _ in range(3)]

    async with asyncio.timeout(60):
        found = await asyncio.gather(*(Migrator(one).upgrade("toy@head") for one in (engine, *others)))

    assert sorted(len(one) for one in found) == [0, 0, 0, 1]
    for one in others:
        await one.dispose()


async def test_a_duplicate_fails_a_unique_index_and_the_next_run_goes_on(
    toys: Install, empty_database: TestDatabase, migrator: Migrator
) -> None:
    toys((OWNED, GONE), ("online.create_index('items_kind_idx', 'items', '(kind)', unique=True)", ""))
    await migrator.upgrade("toy_0001")
    await asked(empty_database, "INSERT INTO ibex_core.items VALUES (1, 7), (2, 7)")

    with pytest.raises(MigrationError, match="items_kind_idx"):
        await migrator.upgrade("toy@head")
    assert [row["valid"] for row in await asked(empty_database, STATE)] == [False]
    await asked(empty_database, "UPDATE ibex_core.items SET kind = id")
    await migrator.upgrade("toy@head")

    assert [row["valid"] for row in await asked(empty_database, STATE)] == [True]


async def test_a_rule_is_added_and_validated_in_two_steps_and_a_column_loses_its_nulls(
    toys: Install, empty_database: TestDatabase, migrator: Migrator
) -> None:
    toys(
        (OWNED, GONE),
        ("online.add_constraint('items_kind_positive', 'items', 'CHECK (kind > 0)')", ""),
        ("online.set_not_null('items', 'kind')", ""),
    )
    await migrator.upgrade("toy_0001")
    await asked(empty_database, "INSERT INTO ibex_core.items VALUES (1, -1), (2, NULL)")
    rules = (
        "SELECT conname::text, convalidated FROM pg_constraint "
        "WHERE conrelid = 'ibex_core.items'::regclass AND contype = 'c'"
    )

    with pytest.raises(MigrationError, match="items_kind_positive"):
        await migrator.upgrade("toy_0002")
    assert await asked(empty_database, rules) == [("items_kind_positive", False)]
    with suppress(asyncpg.CheckViolationError):
        await asked(empty_database, "INSERT INTO ibex_core.items VALUES (3, -1)")
        pytest.fail("NOT VALID holds for new rows")
    await asked(empty_database, "UPDATE ibex_core.items SET kind = 1")
    await migrator.upgrade("toy@head")

    assert await asked(empty_database, rules) == [("items_kind_positive", True)]
    column = "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'ibex_core.items'::regclass AND attname = 'kind'"
    assert await asked(empty_database, column) == [(True,)]


def test_a_name_that_needs_quotes_is_refused() -> None:
    calls: Sequence[Callable[[], None]] = (
        lambda: online.create_index("a; DROP TABLE b", "items", "(id)"),
        lambda: online.drop_index("Odd"),
        lambda: online.add_constraint("x" * 64, "items", "CHECK (true)"),
        lambda: online.set_not_null("items", "a b"),
    )
    for call in calls:
        with pytest.raises(InvalidInputError, match="must be a plain name"):
            call()


def test_a_printed_script_has_the_plain_index(toys: Install) -> None:
    toys((OWNED, GONE), INDEX)

    sql = Migrator.sql("toy@head")

    assert "CREATE INDEX items_kind_idx ON ibex_core.items (kind)" in sql
    assert "CONCURRENTLY" not in sql
