"""Entities of direct statements are what SQLAlchemy's own loading makes."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, inspect, select, text, update
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.attributes import get_history
from toys import AddBot, Bot, Bots, Mood

from ibex_db_core import Database, NotLoadedError, ScopedSession
from ibex_db_core.tenant import SCOPED, SyncScopedSession


@pytest.fixture
async def session(db: Database, acme: UUID) -> AsyncIterator[ScopedSession]:
    """A transaction of Acme's, on a connection that is lent."""
    async with db.tenant(acme):
        pass
    async with db.tenant(acme) as opened:
        sync = opened.sync_session
        assert isinstance(sync, SyncScopedSession)
        assert sync.lease is not None
        yield opened


@pytest.fixture
def bots(session: ScopedSession) -> Bots:
    return Bots(session)


def inside(bot: Bot) -> dict[str, Any]:
    """All that SQLAlchemy keeps of an object."""
    state = inspect(bot)
    return {
        "values": {key: value for key, value in bot.__dict__.items() if not key.startswith("_")},
        "kinds": {key: type(value) for key, value in bot.__dict__.items() if not key.startswith("_")},
        "key": state.key,
        "identity": state.identity,
        "unloaded": state.unloaded,
        "unmodified": state.unmodified,
        "persistent": state.persistent,
        "modified": state.modified,
        "expired": (state.expired, state.expired_attributes),
        "committed": state.committed_state,
        "callables": dict(state.callables),
        "options": state.load_options,
        "session": state.session_id is not None,
    }


async def test_an_object_is_the_one_that_sqlalchemy_loads(
    session: ScopedSession, bots: Bots, acme: UUID, add_bot: AddBot
) -> None:
    ident = await add_bot(acme)
    await session.execute(update(Bot).values(embedding=[1, 2, 3], mood="cross", metadata_={"a": [1, "b"]}))
    directly = inside(await bots.get(ident))
    session.expunge_all()

    theirs = (await session.scalars(select(Bot).where(Bot.id == ident), execution_options={SCOPED: True})).one()

    assert directly == inside(theirs)
    assert directly["values"]["mood"] is Mood.CROSS
    assert directly["values"]["embedding"] == [1.0, 2.0, 3.0]
    assert directly["values"]["metadata_"] == {"a": [1, "b"]}


async def test_the_session_knows_it_by_its_identity(
    session: ScopedSession, bots: Bots, acme: UUID, add_bot: AddBot
) -> None:
    bot = await bots.get(await add_bot(acme))

    assert await session.get(Bot, bot.id) is bot
    assert (await session.scalars(select(Bot))).one() is bot
    assert await bots.get(bot.id) is bot
    assert bot in session


async def test_what_is_changed_on_it_is_written(
    db: Database, bots: Bots, session: ScopedSession, acme: UUID, add_bot: AddBot
) -> None:
    bot = await bots.get(await add_bot(acme))

    bot.rank = 9
    assert get_history(bot, "rank").deleted == [0]
    await session.commit()

    async with db.tenant(acme) as other:
        assert (await Bots(other).get(bot.id)).rank == 9


async def test_a_pending_change_is_flushed_before_a_verb_reads(bots: Bots, acme: UUID, add_bot: AddBot) -> None:
    bot = await bots.get(await add_bot(acme))
    bot.rank = 9

    assert await bots.get(bot.id) is bot
    assert await bots.rows("SELECT rank FROM ibex_core.bots") == [(9,)]


async def test_an_object_that_is_there_keeps_what_it_says(
    session: ScopedSession, bots: Bots, acme: UUID, add_bot: AddBot
) -> None:
    bot = await bots.get(await add_bot(acme))
    await session.execute(text("UPDATE ibex_core.bots SET rank = 3"))

    assert (await bots.get(bot.id)).rank == 0  # as ever: a read does not overwrite
    await session.refresh(bot)
    assert bot.rank == 3


async def test_with_autoflush_off_a_change_stays_on_the_object(
    session: ScopedSession, bots: Bots, acme: UUID, add_bot: AddBot
) -> None:
    bot = await bots.get(await add_bot(acme))
    bot.rank = 9

    with session.no_autoflush:
        again = await bots.get(bot.id)

    assert again is bot
    assert bot.rank == 9
    assert bot in session.dirty


async def test_what_was_expired_is_read_anew(session: ScopedSession, bots: Bots, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)
    bot = await bots.get(ident)
    await session.execute(text("UPDATE ibex_core.bots SET rank = 3, nickname = 'Rob', mood = 'cross'"))
    session.expire(bot, ["rank", "mood"])

    assert await bots.get(ident) is bot
    assert (bot.rank, bot.mood, bot.nickname) == (3, Mood.CROSS, None)
    assert not inspect(bot).modified

    session.expire(bot)
    assert await bots.get(ident) is bot
    assert bot.nickname == "Rob"
    assert not inspect(bot).expired


async def test_a_rollback_expires_it_as_any_other(
    session: ScopedSession, bots: Bots, acme: UUID, add_bot: AddBot
) -> None:
    ident = await add_bot(acme)
    bot = await bots.get(ident)

    await session.rollback()

    assert inspect(bot).expired
    assert (await bots.get(ident)).slug == "robin"


async def test_relationships_refuse_and_load_as_ever(bots: Bots, acme: UUID, add_bot: AddBot) -> None:
    bot = await bots.get(await add_bot(acme))
    with pytest.raises(NotLoadedError):
        _ = bot.notes

    loaded = await bots.get(bot.id, options=[selectinload(Bot.notes)])

    assert loaded.notes == []


async def test_whoever_waits_for_an_object_to_be_loaded_is_told(bots: Bots, acme: UUID, add_bot: AddBot) -> None:
    ident = await add_bot(acme)
    told: list[object] = []

    def note(target: object, _context: object) -> None:
        told.append(target)

    event.listen(Bot, "load", note)
    try:
        bot = await bots.get(ident)
    finally:
        event.remove(Bot, "load", note)

    assert told == [bot]
