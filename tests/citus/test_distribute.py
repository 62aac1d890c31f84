"""`ibex-db distribute`: a plan first, every step once, again where it was cut short; a shard without its walls."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from two import populate
from typer.testing import CliRunner

from ibex_db import Database, MemoryRepository, MigrationError
from ibex_db_core.cli.app import build
from ibex_db_core.distribution import Step, complaints
from ibex_db_core.distribution.cluster import on_placements, on_workers
from ibex_db_core.doctor import examine
from ibex_db_core.doctor.shards import check_shards
from ibex_db_core.migrations.wheels import metadata
from ibex_db_core.policies import ROLES
from ibex_db_core.provisioning import Cluster
from ibex_db_memory.partitioning import abandon_repartition, repartition, repartition_status

SHARDS = 2


@pytest.fixture
async def migrated(coordinator: Cluster, empty: str) -> AsyncIterator[Database]:
    """A migrated database with rows in it, not distributed yet."""
    async with coordinator.database(empty) as db:
        await db.upgrade()
        yield db


@pytest.fixture
async def owner(coordinator: Cluster, empty: str) -> AsyncIterator[AsyncConnection]:
    """The superuser in it."""
    url = coordinator.url(empty).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


async def _counts(owner: AsyncConnection) -> Sequence[int]:
    tables = ("organizations", "agents", "memories", "memory_versions", "memory_vectors", "memory_tags")
    return [int(await owner.scalar(text(f"SELECT count(*) FROM ibex_core.{table}")) or 0) for table in tables]


async def test_a_filled_database_is_distributed_with_its_rows_after_it_was_cut_short(
    migrated: Database, owner: AsyncConnection
) -> None:
    await populate(migrated)
    before = await _counts(owner)

    def cut(step: Step) -> None:
        if step.title == "agents by organization":
            raise KeyboardInterrupt

    async with migrated.migrator() as migrator:
        planned = await migrator.distribution(shards=SHARDS)
        assert await migrator.distribution(shards=SHARDS) == planned  # looking changes nothing
        with pytest.raises(KeyboardInterrupt):
            await migrator.distribute(shards=SHARDS, told=cut)
    async with migrated.migrator() as migrator:
        rest = await migrator.distribute(shards=SHARDS)
        again = await migrator.distribute(shards=SHARDS)

    assert {step.title for step in rest} < {step.title for step in planned}
    assert again == []
    assert await _counts(owner) == before
    assert min(before) > 0
    assert all(step.reason and step.statements for step in planned)


async def test_a_shard_that_lost_its_walls_is_told_and_mended(migrated: Database, owner: AsyncConnection) -> None:
    async with migrated.migrator() as migrator:
        await migrator.distribute(shards=SHARDS)
    # As Citus itself makes a shard's policies, when it moves one.
    policy = "CREATE POLICY agents_floor ON %1$s TO ibex_app USING (true)"
    as_citus = f"DO $$ BEGIN DROP POLICY agents_floor ON %1$s; {policy}; END $$"
    await owner.exec_driver_sql(on_placements("agents", as_citus))

    told = await owner.run_sync(lambda live: complaints(live, metadata()))
    async with migrated.migrator() as migrator:
        mended = await migrator.distribute(shards=SHARDS)

    assert len(told) == SHARDS
    assert all("agents_floor" in one for one in told)
    assert [step.title for step in mended] == ["Floors under the policies of every shard"]
    assert await owner.run_sync(lambda live: complaints(live, metadata())) == []


@pytest.mark.parametrize(
    ("table", "shards", "spoil"),
    [
        ("agents", SHARDS, "DROP POLICY agents_floor ON %s"),
        ("agents", SHARDS, "ALTER POLICY agents_floor ON %s USING (true)"),
        ("organizations", 3, "DROP POLICY organizations_floor ON %s"),  # of which each node has a copy
    ],
)
async def test_a_floor_that_is_missing_or_another_is_told_and_made_anew(
    migrated: Database, owner: AsyncConnection, table: str, shards: int, spoil: str
) -> None:
    async with migrated.migrator() as migrator:
        await migrator.distribute(shards=SHARDS)
    await owner.exec_driver_sql(on_placements(table, spoil))

    told = await owner.run_sync(lambda live: complaints(live, metadata()))
    async with migrated.migrator() as migrator:
        mended = await migrator.distribute(shards=SHARDS)
        again = await migrator.distribute(shards=SHARDS)

    assert len(told) == shards
    assert all(f'lacks ["{table}_floor' in one for one in told)
    assert [step.title for step in mended] == ["Floors under the policies of every shard"]
    assert again == []
    assert await owner.run_sync(lambda live: complaints(live, metadata())) == []


async def test_a_shard_without_row_level_security_is_told(migrated: Database, owner: AsyncConnection) -> None:
    async with migrated.migrator() as migrator:
        await migrator.distribute(shards=SHARDS)
    await owner.exec_driver_sql(on_placements("tokens", "ALTER TABLE %s DISABLE ROW LEVEL SECURITY"))

    async with migrated.migrator() as migrator:
        with pytest.raises(MigrationError, match=r"tokens_[0-9]+: row-level security: False, not True"):
            await migrator.distribute(shards=SHARDS)


async def test_a_cluster_whose_roles_may_not_log_in_yet_is_distributed(
    migrated: Database, owner: AsyncConnection
) -> None:
    """As on the first day: whoever ran this before has given them LOGIN."""
    for node in ("coordinator", "workers"):
        for role in ROLES:
            statement = f"ALTER ROLE {role} NOLOGIN"
            await owner.exec_driver_sql(statement if node == "coordinator" else on_workers(statement))

    async with migrated.migrator() as migrator:
        taken = await migrator.distribute(shards=SHARDS)
        again = await migrator.distribute(shards=SHARDS)
    two = await populate(migrated)

    assert (taken[0].title, again) == ("Roles on every node", [])
    async with migrated.tenant(two.a.org_id) as session:
        assert {memory.org_id for memory in await MemoryRepository(session).find()} == {two.a.org_id}


async def test_the_doctor_finds_a_distributed_database_sound_and_a_shard_that_is_not(
    migrated: Database, owner: AsyncConnection
) -> None:
    async with migrated.migrator() as migrator:
        await migrator.distribute(shards=SHARDS)
        assert (await migrated.doctor()).findings == ()
        assert await migrator.check() == []
    await owner.exec_driver_sql(on_placements("tokens", "ALTER TABLE %s DISABLE ROW LEVEL SECURITY"))
    await owner.exec_driver_sql(on_placements("users", "ALTER TABLE %s NO FORCE ROW LEVEL SECURITY"))
    await owner.exec_driver_sql(on_placements("agents", "GRANT TRUNCATE ON %s TO ibex_app"))
    await owner.exec_driver_sql(on_placements("organizations", "CREATE POLICY loose ON %s TO ibex_app USING (true)"))
    as_citus = (
        "DO $$ BEGIN DROP POLICY memories_floor ON %1$s; CREATE POLICY memories_floor ON %1$s USING (true); END $$"
    )
    await owner.exec_driver_sql(on_placements("memories", as_citus))
    await owner.exec_driver_sql(on_placements("sessions", "ALTER TABLE %s DISABLE TRIGGER USER"))

    found = (await migrated.doctor()).findings
    async with migrated.migrator() as migrator:
        differences = await migrator.check()

    told = Counter((one.code, one.severity.value, one.object.partition(".")[2].rpartition("_")[0]) for one in found)
    assert told == {
        ("shard-open", "critical", "tokens"): SHARDS,
        ("shard-open", "high", "users"): SHARDS,
        ("shard-open", "high", "agents"): SHARDS,
        ("shard-open", "high", "memories"): SHARDS,
        ("shard-open", "high", "organizations"): 3,  # a copy on each node
        ("shard-changed", "high", "sessions"): SHARDS,
    }
    assert len(differences) == len(found)
    for one in found:
        if "row-level security" in one.risk or "forced" in one.risk:
            await owner.exec_driver_sql(one.remedy_sql)
    left = {one.object.partition(".")[2].rpartition("_")[0] for one in (await migrated.doctor()).findings}
    assert left == {"agents", "memories", "organizations", "sessions"}


async def test_a_node_that_does_not_answer_is_told_for_each_shard(
    migrated: Database, owner: AsyncConnection, coordinator: Cluster, empty: str
) -> None:
    login = f"stranger_{empty}"
    async with migrated.migrator() as migrator:
        await migrator.distribute(shards=SHARDS)
    # Known to the coordinator alone.
    await owner.exec_driver_sql("SET citus.enable_create_role_propagation = off")
    await owner.exec_driver_sql(f"CREATE ROLE {login} LOGIN IN ROLE ibex_owner")
    engine = create_async_engine(coordinator.url(empty, user=login).set(drivername="postgresql+asyncpg"))
    try:
        async with engine.connect() as connection:
            found = (await connection.run_sync(lambda live: examine(live, checks=[check_shards]))).findings
    finally:
        await engine.dispose()
        await owner.exec_driver_sql(f"DROP ROLE {login}")

    assert {one.code for one in found} == {"shard-unseen"}
    assert len(found) > SHARDS


async def test_what_asks_for_partitions_or_for_one_machine_is_turned_away(migrated: Database) -> None:
    async with migrated.migrator() as migrator:
        await migrator.distribute(shards=SHARDS)

        assert (await migrator.plan()).revisions == ()
        assert await migrator.upgrade() == []
        with pytest.raises(MigrationError, match=r"distributed.*ibex-db upgrade --sql.*ibex-db distribute"):
            await migrator.plan("memory@-1", down=True)
        for refused in (repartition_status(migrator), repartition(migrator, 4), abandon_repartition(migrator)):
            with pytest.raises(MigrationError, match=r"distributed.*ibex-db distribute --shards"):
                await refused


async def test_the_command_prints_the_plan_and_takes_it(
    migrated: Database, coordinator: Cluster, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = coordinator.url(empty).render_as_string(hide_password=False)
    for name in ("IBEX_DATABASE_URL", "IBEX_OWNER_URL"):
        monkeypatch.delenv(name, raising=False)

    async with migrated.migrator() as migrator:
        planned = await migrator.distribution(shards=SHARDS)
    run = CliRunner().invoke
    dry = await asyncio.to_thread(run, build(), ["distribute", "--dry-run", "--json", "--shards", "2", "--url", url])
    done = await asyncio.to_thread(run, build(), ["distribute", "--json", "--shards", "2", "--url", url])

    assert [step["title"] for step in json.loads(dry.stdout)["steps"]] == [step.title for step in planned]
    assert json.loads(done.stdout)["steps"] == json.loads(dry.stdout)["steps"]
