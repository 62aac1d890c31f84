"""Telemetry: what OpenTelemetry is told of units of work, of verbs and of the pool; and what it is not told."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import UUID, uuid4

import asyncpg
import pytest
from conftest import ONE
from listening import Ear
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import text
from toys import AddBot, Bot, BotRepository
from wire import Wire

from ibex_db_core import (
    CommitUnknownError,
    ConflictError,
    Database,
    InvalidInputError,
    NotFoundError,
    PoolExhaustedError,
    ScopedSession,
    SerializationError,
    Telemetry,
)
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN
from ibex_db_core.telemetry.instruments import METRICS
from ibex_db_core.testing import TestDatabase


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
async def heard(toy_database: TestDatabase, ear: Ear) -> AsyncIterator[Database]:
    """A Database that tells the ear everything, past its first connection's questions."""
    async with toy_database.connect(ONE, telemetry=telling(ear)) as database:
        async with database.tenant(uuid4()):
            pass
        ear.exporter.clear()
        yield database


def telling(ear: Ear, **settings: object) -> Telemetry:
    return replace(Telemetry(tracer_provider=ear.tracers, meter_provider=ear.meters), **settings)  # type: ignore[arg-type]


# -- units of work


async def test_a_unit_of_work_is_a_span_with_its_verbs_inside(heard: Database, ear: Ear, acme: UUID) -> None:
    with ear.tracers.get_tracer("service").start_as_current_span("request"):
        async with heard.tenant(acme) as session:
            bots = BotRepository(session)
            await bots.add(Bot(slug="robin"))
            await bots.find(limit=7)

    assert ear.tree() == ["request", ["ibex tenant", ["add bots", "find bots"]]]
    unit = ear.attributes("ibex tenant")
    assert unit["db.system.name"] == "postgresql"
    assert str(unit["db.namespace"]).endswith("|ibex_core")
    assert unit["ibex.org.id"] == str(acme)
    assert unit["ibex.outcome"] == "commit"
    assert unit["ibex.read_only"] is False
    assert unit["ibex.statements"] == 2
    assert unit["ibex.rows.written"] == 1
    assert isinstance(unit["ibex.connection.wait"], float)


async def test_a_verb_tells_table_rows_and_statements(heard: Database, ear: Ear, acme: UUID, add_bot: AddBot) -> None:
    for slug in ("robin", "wren"):
        await add_bot(acme, slug)

    async with heard.tenant(acme) as session:
        await BotRepository(session).find(limit=7)

    span, told = ear.span("find bots"), ear.attributes("find bots")
    assert span.kind is SpanKind.CLIENT
    assert told["db.operation.name"] == "find"
    assert told["db.collection.name"] == "bots"
    assert told["db.response.returned_rows"] == 2
    assert told["ibex.rows.asked"] == 7
    assert told["ibex.statements"] == 1
    assert told["ibex.org.id"] == str(acme)


async def test_a_verb_that_calls_others_is_one(heard: Database, ear: Ear, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)

    async with heard.tenant(acme) as session:
        await BotRepository(session).get(ident)  # by get_or_none()

    assert ear.tree() == ["ibex tenant", ["get bots"]]


async def test_a_verb_that_yields_counts_what_it_yielded(
    heard: Database, ear: Ear, acme: UUID, add_bot: AddBot
) -> None:
    for slug in ("robin", "wren", "lark"):
        await add_bot(acme, slug)

    async with heard.tenant(acme) as session:
        async for _ in BotRepository(session).stream(batch=2):
            await session.execute(text("SELECT 1"))
            assert trace.get_current_span().get_span_context().span_id == _unit_of(ear)

    assert ear.attributes("stream bots")["db.response.returned_rows"] == 3
    assert ear.span("stream bots").status.status_code is StatusCode.UNSET


def _unit_of(_ear: Ear) -> int:
    """The span that the caller's own code runs in: while a verb yields, it is the unit of work's."""
    current = trace.get_current_span()
    assert getattr(current, "name", "") == "ibex tenant"
    return current.get_span_context().span_id


async def test_an_exception_is_told_by_its_kind_and_rolls_back(heard: Database, ear: Ear, acme: UUID) -> None:
    with pytest.raises(LookupError):
        async with heard.tenant(acme):
            raise LookupError("Ahab's secret")

    unit = ear.span("ibex tenant")
    assert unit.status.status_code is StatusCode.ERROR
    assert unit.status.description is None
    assert unit.events == ()
    assert (unit.attributes or {})["error.type"] == "LookupError"
    assert (unit.attributes or {})["ibex.outcome"] == "rollback"
    assert "Ahab" not in ear.everything()


async def test_an_error_of_ours_is_counted_once(heard: Database, ear: Ear, acme: UUID) -> None:
    with pytest.raises(ConflictError):
        async with heard.tenant(acme) as session:
            await BotRepository(session).add(Bot(slug="robin"))
            await BotRepository(session).add(Bot(slug="robin"))

    failed = [span for span in ear.spans if (span.attributes or {}).get("error.type") == "ConflictError"]
    assert [span.name for span in failed] == ["ibex tenant", "add bots"]
    assert all((span.attributes or {})["db.response.status_code"] == "23505" for span in failed)
    (counted,) = ear.points("ibex.errors")
    assert (counted.labels, counted.total) == ({"error.type": "ConflictError"}, 1)


async def test_an_error_that_was_caught_leaves_the_unit_well(heard: Database, ear: Ear, acme: UUID) -> None:
    async with heard.tenant(acme) as session:
        with pytest.raises(NotFoundError):
            await BotRepository(session).get(uuid4())

    assert ear.attributes("get bots")["error.type"] == "NotFoundError"
    assert ear.attributes("ibex tenant")["ibex.outcome"] == "commit"
    assert ear.span("ibex tenant").status.status_code is StatusCode.UNSET


async def test_a_commit_whose_answer_is_lost_is_unknown(
    wire: Wire, toy_database: TestDatabase, ear: Ear, acme: UUID
) -> None:
    url = wire.address(toy_database.cluster.url(toy_database.name, user=SERVICE_LOGIN))
    async with Database(url, settings=ONE, telemetry=telling(ear)) as database:
        with pytest.raises(CommitUnknownError):
            async with database.tenant(acme) as session:
                await BotRepository(session).add(Bot(slug="robin"))
                wire.break_on = "COMMIT"

    assert ear.attributes("ibex tenant")["ibex.outcome"] == "unknown"
    (told,) = ear.points("ibex.transaction.duration")
    assert (told.labels["ibex.outcome"], told.count) == ("unknown", 1)


async def test_the_platform_is_told_without_an_organization(toy_database: TestDatabase, ear: Ear) -> None:
    cluster = toy_database.cluster
    database = Database(
        cluster.url(toy_database.name, user=SERVICE_LOGIN),
        platform_url=cluster.url(toy_database.name, user=PLATFORM_LOGIN),
        telemetry=telling(ear),
    )

    async with database, database.platform(reason="Ahab asked") as session:
        await BotRepository(session).count()

    assert ear.tree() == ["ibex platform", ["count bots"]]
    assert "ibex.org.id" not in ear.attributes("ibex platform")
    assert "Ahab" not in ear.everything()
    pools = {
        str(point.labels["db.client.connection.pool.name"]) for point in ear.points("db.client.connection.wait_time")
    }
    assert {pool.partition("@")[0] for pool in pools} == {"platform"}


async def test_a_read_only_unit_says_so(heard: Database, ear: Ear, acme: UUID) -> None:
    async with heard.tenant(acme, read_only=True):
        pass

    assert ear.attributes("ibex tenant")["ibex.read_only"] is True
    assert ear.attributes("ibex tenant")["ibex.replica"] is False


# -- attempts


async def test_each_attempt_of_a_run_is_a_span_of_its_own(
    heard: Database, ear: Ear, acme: UUID, admin: "object"
) -> None:
    tries = 0

    async def work(session: ScopedSession) -> int:
        nonlocal tries
        tries += 1
        await BotRepository(session).add(Bot(slug="robin"))
        if tries == 1:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            await admin.execute("SELECT pg_terminate_backend($1, 5000)", pid)  # type: ignore[attr-defined]
        return await BotRepository(session).count()

    assert await heard.run(acme, work) == 1

    assert ear.tree() == [
        "ibex run",
        ["ibex tenant", ["add bots", "count bots"], "ibex tenant", ["add bots", "count bots"]],
    ]
    run = ear.span("ibex run")
    assert (run.attributes or {})["ibex.attempts"] == 2
    assert [(event.name, dict(event.attributes or {})) for event in run.events] == [
        ("ibex.attempt.failed", {"ibex.attempt": 1, "error.type": "ConnectionLostError"})
    ]
    assert run.status.status_code is StatusCode.UNSET
    (retried,) = ear.points("ibex.retries")
    assert (retried.labels, retried.total) == ({"error.type": "ConnectionLostError"}, 1)
    outcomes = {str(point.labels["ibex.outcome"]) for point in ear.points("ibex.transaction.duration")}
    assert outcomes == {"commit", "rollback"}


async def test_a_run_that_gives_up_has_counted_its_retries(heard: Database, ear: Ear, acme: UUID) -> None:
    async def work(_session: ScopedSession) -> None:
        raise SerializationError("again")

    with pytest.raises(SerializationError):
        await heard.run(acme, work)

    assert ear.attributes("ibex run")["ibex.attempts"] == 5
    assert ear.span("ibex run").status.status_code is StatusCode.ERROR
    (retried,) = ear.points("ibex.retries")
    assert retried.total == 4


# -- the pool


async def test_the_pool_tells_how_many_are_used_idle_and_possible(heard: Database, ear: Ear, acme: UUID) -> None:
    def counts() -> dict[object, float]:
        return {
            point.labels["db.client.connection.state"]: point.total
            for point in ear.points("db.client.connection.count")
        }

    assert counts() == {"used": 0, "idle": 1}
    async with heard.tenant(acme):
        assert counts() == {"used": 1, "idle": 0}
    assert counts() == {"used": 0, "idle": 1}
    assert [point.total for point in ear.points("db.client.connection.max")] == [1]
    (made,) = ear.points("db.client.connection.create_time")
    assert made.count == 1
    (used,) = ear.points("db.client.connection.use_time")
    assert used.count >= 2


async def test_an_exhausted_pool_is_told(toy_database: TestDatabase, ear: Ear, acme: UUID) -> None:
    tight = replace(ONE, pool_timeout=0.05)
    async with toy_database.connect(tight, telemetry=telling(ear)) as database, AsyncExitStack() as held:
        await held.enter_async_context(database.tenant(acme))
        waiting = asyncio.create_task(_enter(database, acme))
        await asyncio.sleep(0)

        with pytest.raises(PoolExhaustedError):
            await waiting

    (timeouts,) = ear.points("db.client.connection.timeouts")
    assert timeouts.total == 1
    (pending,) = ear.points("db.client.connection.pending_requests")
    assert pending.total == 0
    (waits,) = ear.points("db.client.connection.wait_time")
    assert waits.count == 2


async def _enter(database: Database, org_id: UUID) -> None:
    async with database.tenant(org_id):
        pass


async def test_a_closed_database_is_no_longer_asked(toy_database: TestDatabase, ear: Ear, acme: UUID) -> None:
    async with toy_database.connect(telemetry=telling(ear)) as database:
        await _enter(database, acme)
        assert ear.points("db.client.connection.count") != []

    assert ear.points("db.client.connection.count") == []


async def test_two_databases_tell_one_provider_without_a_warning(
    toy_database: TestDatabase, ear: Ear, acme: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        toy_database.connect(telemetry=telling(ear)) as one,
        toy_database.connect(telemetry=telling(ear)) as other,
    ):
        await _enter(one, acme)
        await _enter(other, acme)

    assert len(ear.points("ibex.transaction.duration")) == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# -- what is told of organizations, and what is off


@pytest.mark.parametrize("org", ["hashed", "off"])
async def test_an_organization_can_go_unnamed(toy_database: TestDatabase, ear: Ear, acme: UUID, org: str) -> None:
    async with toy_database.connect(telemetry=telling(ear, org=org)) as database, database.tenant(acme) as session:
        await BotRepository(session).count()

    assert str(acme) not in ear.everything()
    assert ("ibex.org.id" in ear.attributes("count bots")) is (org == "hashed")


async def test_no_metric_names_an_organization(heard: Database, ear: Ear, acme: UUID) -> None:
    async with heard.tenant(acme) as session:
        await BotRepository(session).add(Bot(slug="robin"))

    data = ear.reader.get_metrics_data()
    assert data is not None
    assert str(acme) not in data.to_json()


async def test_without_verbs_their_metrics_remain(toy_database: TestDatabase, ear: Ear, acme: UUID) -> None:
    async with toy_database.connect(telemetry=telling(ear, verbs=False)) as database, database.tenant(acme) as session:
        await BotRepository(session).count()

    assert ear.tree() == ["ibex tenant"]
    (told,) = ear.points("db.client.operation.duration")
    assert (told.labels["db.operation.name"], told.labels["db.collection.name"]) == ("count", "bots")


async def test_a_watched_repository_is_still_what_it_was(heard: Database, acme: UUID) -> None:
    async with heard.tenant(acme) as session:
        bots = BotRepository(session)

    assert isinstance(bots, BotRepository)
    assert type(bots).__name__ == "BotRepository"
    assert type(bots).get.__doc__ == BotRepository.get.__doc__


async def test_an_unwatched_repository_is_not_touched(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        assert type(BotRepository(session)) is BotRepository


async def test_a_block_that_is_left_in_another_task_is_told_without_a_complaint(
    heard: Database, ear: Ear, acme: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    block = heard.tenant(acme)
    await asyncio.create_task(block.__aenter__())
    await asyncio.create_task(block.__aexit__(None, None, None))

    assert ear.attributes("ibex tenant")["ibex.outcome"] == "commit"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_block_that_is_left_in_a_child_of_its_task_is_told_without_a_complaint(
    heard: Database, ear: Ear, acme: UUID, admin: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """As asyncio.wait_for() has it on Python 3.11: the child's context is a copy, with the unit of work in it."""
    block = heard.tenant(acme)
    session = await block.__aenter__()
    await BotRepository(session).add(Bot(slug="robin"))
    await asyncio.create_task(block.__aexit__(None, None, None))

    assert await admin.fetchval("SELECT count(*) FROM ibex_core.bots WHERE org_id = $1", acme) == 1
    assert ear.attributes("ibex tenant")["ibex.outcome"] == "commit"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(("field", "value"), [("org", "named"), ("recall_guard", 1.5), ("recall_guard", "often")])
def test_bad_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=field):
        Telemetry(**{field: value})  # type: ignore[arg-type]


def test_every_metric_has_a_unit_and_a_meaning() -> None:
    assert all(metric.unit and metric.meaning.endswith(".") for metric in METRICS.values())
