"""A savepoint that is rolled back is rolled back in the session's objects as well, whoever wrote and however."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from toys import AddBot, Bot, BotRepository, Bots

from ibex_db_core import Database
from ibex_db_core.tenant import ScopedSession

# Bots' own query, sent the way of hot verbs; past the object, as that is what the tests compare with.
RANK = "SELECT rank FROM ibex_core.bots WHERE id = :id"


class UndoError(Exception):
    """Whatever makes a savepoint go wrong."""


@pytest.fixture(params=["straight to the driver", "through SQLAlchemy"])
def warm(single: Database, request: pytest.FixtureRequest) -> Iterator[Database]:
    """One connection, on either way that statements go."""

    def listener(*_args: object) -> None: ...

    if request.param == "through SQLAlchemy":
        event.listen(single.engine.sync_engine, "before_execute", listener)
    yield single
    if request.param == "through SQLAlchemy":
        event.remove(single.engine.sync_engine, "before_execute", listener)


async def rank(session: AsyncSession, ident: UUID) -> object:
    return await session.scalar(text(RANK), {"id": ident})


async def written(session: ScopedSession, ident: UUID) -> None:
    with pytest.raises(UndoError):
        async with session.begin_nested():
            assert (await Bots(session).update(ident, rank=7)).rank == 7
            raise UndoError


async def test_an_object_shows_what_the_database_has(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)

    async with warm.tenant(acme) as session:
        bot = await Bots(session).get(ident)
        await written(session, ident)

        assert await Bots(session).get(bot.id) is bot
        assert bot.rank == await rank(session, ident) == 0


async def test_an_object_that_was_loaded_after_it_was_written_does_too(
    warm: Database, acme: UUID, add_bot: AddBot
) -> None:
    ident = await add_bot(acme)

    async with warm.tenant(acme) as session:
        bots = Bots(session)
        savepoint = await session.begin_nested()
        await bots.update(ident, rank=7)
        session.expunge_all()
        bot = await bots.get(ident)
        assert bot.rank == 7
        await savepoint.rollback()

        assert await bots.get(ident) is bot
        assert bot.rank == 0


async def test_what_other_objects_have_loaded_stays(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident, other = await add_bot(acme), await add_bot(acme, "wren")

    async with warm.tenant(acme) as session:
        bot = await Bots(session).get(other)
        await written(session, ident)

        assert bot.slug == "wren"


async def test_a_savepoint_inside_another_goes_the_way_of_that(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)

    async with warm.tenant(acme) as session:
        bots = Bots(session)
        bot = await bots.get(ident)
        with pytest.raises(UndoError):
            async with session.begin_nested():
                async with session.begin_nested():
                    await bots.update(ident, rank=7)
                assert bot.rank == 7  # released: it stays as it is
                raise UndoError

        await bots.get(ident)
        assert bot.rank == 0


async def test_a_savepoint_that_is_released_keeps_what_it_wrote(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)

    async with warm.tenant(acme) as session:
        bots = Bots(session)
        bot = await bots.get(ident)
        async with session.begin_nested():
            await bots.update(ident, rank=7)
        with pytest.raises(UndoError):
            async with session.begin_nested():
                raise UndoError

        assert bot.rank == 7


async def test_deleting_restoring_and_upserting_are_undone(warm: Database, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)

    async with warm.tenant(acme) as session:
        bots = Bots(session)
        bot = await bots.get(ident)
        with pytest.raises(UndoError):
            async with session.begin_nested():
                await bots.delete(ident)
                raise UndoError
        assert (await bots.get(ident)).deleted_at is None

        savepoint = await session.begin_nested()
        made = await bots.upsert(Bot(slug="wren"), on="bots_slug_live")
        await bots.upsert(Bot(slug="robin", rank=9), on="bots_slug_live")
        assert bot.rank == 9
        await savepoint.rollback()
        assert (await bots.get(ident)).rank == 0
        assert await bots.get_or_none(made.id) is None


async def test_on_a_session_that_is_not_ours_as_well(service_address: str, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)
    engine = create_async_engine(service_address.replace("postgresql://", "postgresql+asyncpg://"))

    async with AsyncSession(engine) as session:
        bots = BotRepository(session, acme)
        bot = await bots.get(ident)
        with pytest.raises(UndoError):
            async with session.begin_nested():
                await bots.update(ident, rank=7)
                raise UndoError
        await bots.get(ident)
        assert bot.rank == 0
    await engine.dispose()
