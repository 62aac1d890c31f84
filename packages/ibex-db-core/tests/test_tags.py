"""Tags on statements: what the server sees of who asked; and that neither a guard nor a prepared statement is lost."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import unquote
from uuid import UUID

import pytest
from conftest import ONE
from hypothesis import given, strategies
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import event, text
from toys import AddBot, Bot, BotRepository

from ibex_db_core import Database, InvalidInputError, QueryTags, ScopedSession, TenantError, tagged
from ibex_db_core.telemetry.tags import tagging
from ibex_db_core.testing import TestDatabase


@asynccontextmanager
async def tagging_database(database: TestDatabase, tags: QueryTags) -> AsyncGenerator[Database]:
    async with database.connect(replace(ONE, query_tags=tags)) as opened:
        yield opened


@pytest.fixture
async def billing(toy_database: TestDatabase) -> AsyncIterator[Database]:
    async with tagging_database(toy_database, QueryTags(always={"application": "billing"})) as database:
        yield database


async def running(session: ScopedSession) -> str:
    """What pg_stat_activity shows of the statement that asks for it."""
    await session.execute(text("SELECT pg_stat_clear_snapshot()"))  # what a transaction has read of it, it keeps
    return str(await session.scalar(text("SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()")))


async def test_the_server_sees_the_tags_at_the_statements_end(billing: Database, acme: UUID) -> None:
    async with billing.tenant(acme) as session:
        assert (await running(session)).endswith(" /*application='billing'*/")

        with tagged(route="/bots/{id}", action="it's"):
            assert (await running(session)).endswith(
                " /*action='it%27s',application='billing',route='%2Fbots%2F%7Bid%7D'*/"
            )
        assert (await running(session)).endswith(" /*application='billing'*/")


async def test_an_inner_block_adds_to_an_outer_one_and_each_task_has_its_own(billing: Database, acme: UUID) -> None:
    async def ask(route: str) -> str:
        with tagged(route=route):
            await asyncio.sleep(0)
            async with billing.tenant(acme) as session:
                return await running(session)

    with tagged(controller="bots", route="/"):
        one, other = await asyncio.gather(ask("/one"), ask("/other"))

    assert one.endswith("/*application='billing',controller='bots',route='%2Fone'*/")
    assert other.endswith("/*application='billing',controller='bots',route='%2Fother'*/")


async def test_untagged_by_default(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        with tagged(route="/"):
            assert "/*" not in await running(session)


async def test_a_statement_with_a_comment_of_its_own_keeps_it(billing: Database, acme: UUID) -> None:
    asked = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid() /* mine */"

    async with billing.tenant(acme) as session:
        assert await session.scalar(text(asked)) == asked


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "/* mine */ COMMIT", "BEGIN"])
async def test_tags_do_not_hide_what_ends_a_transaction(billing: Database, acme: UUID, statement: str) -> None:
    verb = statement.rsplit(maxsplit=1)[-1]

    with pytest.raises(TenantError, match=f"^{verb} as a statement .* behind the session's back"):
        async with billing.tenant(acme) as session:
            await session.execute(text(statement))


async def test_repositories_work_as_ever(billing: Database, acme: UUID, globex: UUID, add_bot: AddBot) -> None:
    hidden = await add_bot(globex, "wren")

    async with billing.tenant(acme) as session:
        bots = BotRepository(session)
        await bots.add_many([Bot(slug=f"robin-{number}") for number in range(3)])
        assert await bots.get_or_none(hidden) is None
        assert [bot.slug async for bot in bots.stream()] != []
        async with session.begin_nested():
            assert await bots.count() == 3


async def test_one_set_of_tags_is_prepared_once_and_each_trace_anew(toy_database: TestDatabase, acme: UUID) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("service")

    async def prepared(tags: QueryTags) -> int:
        async with tagging_database(toy_database, tags) as database:
            for _ in range(5):
                with tracer.start_as_current_span("request"), tagged(route="/bots"):
                    async with database.tenant(acme) as session:
                        await BotRepository(session).count()
            async with database.tenant(acme) as session:
                found = text("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%ibex_core.bots%'")
                return int(await session.scalar(found) or 0) - 1  # but for the one that asks

    assert await prepared(QueryTags()) == 1
    assert await prepared(QueryTags(traceparent=True)) == 5


async def test_the_traceparent_is_the_current_spans(toy_database: TestDatabase, acme: UUID) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("service")

    tags = QueryTags(traceparent=True)
    async with tagging_database(toy_database, tags) as database, database.tenant(acme) as session:
        with tracer.start_as_current_span("request") as span:
            seen = await running(session)
        unseen = await running(session)

    context = span.get_span_context()
    assert seen.endswith(
        f"/*traceparent='00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}'*/"
    )
    assert "/*" not in unseen


# What ends a comment, a quote, or a statement; and what Postgres nests.
NASTY = strategies.text(
    strategies.one_of(strategies.sampled_from("'\"*/\\-;\n%${}:"), strategies.characters(exclude_categories=["Cs"])),
    min_size=1,
    max_size=30,
).filter(lambda said: "\0" not in said)


@given(key=NASTY, value=NASTY)
def test_no_tag_gets_out_of_its_comment(key: str, value: str) -> None:
    add = tagging(QueryTags(always={key: value}))

    tagged_statement, _ = add(None, None, "SELECT 1", (), None, False)

    comment = tagged_statement.removeprefix("SELECT 1 ")
    assert comment.startswith("/*")
    assert comment.endswith("'*/")
    inside = comment[2:-2]
    assert not set("*/;\\\n") & set(inside)
    name, quote, rest = inside.partition("='")
    assert (unquote(name), quote, unquote(rest[:-1])) == (key, "='", value)
    assert "'" not in name + rest[:-1]


@pytest.mark.parametrize("tags", [{"route": "x" * 201}, {"": "x"}, {"route": 7}])
def test_bad_tags_are_refused(tags: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError):
        QueryTags(always=tags)


def test_a_bad_tag_of_a_block_is_refused_before_it_is_entered() -> None:
    with pytest.raises(InvalidInputError, match="route"), tagged(route="x" * 201):
        raise AssertionError("it was entered")


async def test_statements_given_to_others_events_are_the_tagged_ones(billing: Database, acme: UUID) -> None:
    seen: list[str] = []
    event.listen(billing.engine.sync_engine, "before_cursor_execute", lambda *args: seen.append(args[2]))

    async with billing.tenant(acme) as session:
        await session.execute(text("SELECT 1"))

    assert seen[-1:] == ["SELECT 1 /*application='billing'*/"]
