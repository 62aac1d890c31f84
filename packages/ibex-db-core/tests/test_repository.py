"""BaseRepository: every verb, on rows of one organization only."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import select
from sqlalchemy.orm import selectinload
from toys import AddBot, Bot, BotRepository, Entry, EntryRepository, Mood, Note, NoteRepository, Org, OrgRepository
from wire import Wire

from ibex_db_core import (
    AccessDeniedError,
    ConflictError,
    Database,
    InvalidInputError,
    NotFoundError,
    NotLoadedError,
    ScopedSession,
    TenantMissingError,
)


@pytest.fixture
async def session(db: Database, acme: UUID) -> AsyncIterator[ScopedSession]:
    """A transaction of Acme's."""
    async with db.tenant(acme) as opened:
        yield opened


@pytest.fixture
def bots(session: ScopedSession) -> BotRepository:
    """Acme's bots."""
    return BotRepository(session)


# -- another organization's rows


async def test_no_verb_reaches_another_organizations_row(
    bots: BotRepository, globex: UUID, add_bot: AddBot, admin: asyncpg.Connection
) -> None:
    theirs = await add_bot(globex, "theirs")
    assert await admin.fetchval("SELECT slug FROM ibex_core.bots WHERE id = $1", theirs) == "theirs"  # it is there

    assert await bots.get_or_none(theirs) is None
    assert await bots.get_or_none(theirs, include_deleted=True) is None
    assert await bots.session.get(Bot, theirs) is None
    assert await bots.get_many([theirs]) == []
    assert await bots.find() == []
    assert (await bots.list()).items == []
    assert await bots.count() == 0
    assert not await bots.exists(Bot.id == theirs)
    assert [row async for row in bots.stream()] == []
    with pytest.raises(NotFoundError):
        await bots.get(theirs)
    with pytest.raises(NotFoundError):
        await bots.update(theirs, rank=1)
    with pytest.raises(NotFoundError):
        await bots.delete(theirs)
    with pytest.raises(NotFoundError):
        await bots.restore(theirs)
    with pytest.raises(NotFoundError):
        await bots.erase(theirs)

    row = await admin.fetchrow("SELECT rank, deleted_at FROM ibex_core.bots WHERE id = $1", theirs)
    assert row is not None
    assert tuple(row) == (0, None)


async def test_every_statement_names_the_organization(wired: Database, wire: Wire, acme: UUID) -> None:
    async with wired.tenant(acme) as session:
        bots = BotRepository(session)
        added = await bots.add(Bot(slug="robin"))
        await bots.get(added.id)
        await bots.get_many([added.id])
        await bots.find()
        await bots.list()
        await bots.count()
        await bots.exists()
        _ = [row async for row in bots.stream()]
        await bots.update(added.id, rank=1)
        await bots.upsert(Bot(slug="wren", nickname="w"), on="bots_nickname_live")
        await bots.delete(added.id)
        await bots.restore(added.id)
        await bots.erase(added.id)

    statements = [statement for statement in wire.statements if "ibex_core.bots" in statement]
    assert len(statements) >= 12
    for statement in statements:
        assert "bots.org_id = $" in statement or statement.startswith("INSERT INTO ibex_core.bots (org_id")


# -- get


async def test_a_row_is_found_by_its_id(bots: BotRepository) -> None:
    added = await bots.add(Bot(slug="robin"))

    assert await bots.get(added.id) is added
    assert await bots.get_or_none(added.id) is added


async def test_a_row_that_is_not_there_is_named_in_the_error(bots: BotRepository) -> None:
    missing = uuid4()

    with pytest.raises(NotFoundError, match=f"no Bot {missing}") as caught:
        await bots.get(missing)
    assert (caught.value.model, caught.value.key) == ("Bot", missing)
    assert await bots.get_or_none(missing) is None


async def test_many_rows_come_in_the_order_of_their_ids_and_missing_ones_are_left_out(bots: BotRepository) -> None:
    one, two, three = await bots.add_many([Bot(slug="one"), Bot(slug="two"), Bot(slug="three")])

    found = await bots.get_many([three.id, uuid4(), one.id, two.id, three.id])

    assert [bot.slug for bot in found] == ["three", "one", "two", "three"]
    assert await bots.get_many([]) == []


async def test_no_ids_cost_no_statement(wired: Database, wire: Wire, acme: UUID) -> None:
    async with wired.tenant(acme) as session:
        assert await BotRepository(session).get_many([]) == []
        assert await BotRepository(session).add_many([]) == []

    assert wire.messages == []


async def test_relations_are_loaded_where_asked_for(bots: BotRepository, session: ScopedSession) -> None:
    bot = await bots.add(Bot(slug="robin", notes=[Note(number=1), Note(number=2)]))
    session.expunge_all()

    found = await bots.get(bot.id, options=[selectinload(Bot.notes)])

    assert sorted(note.number for note in found.notes) == [1, 2]


async def test_a_relation_that_was_not_loaded_says_so(bots: BotRepository, session: ScopedSession) -> None:
    bot = await bots.add(Bot(slug="robin"))
    session.expunge_all()
    found = await bots.get(bot.id)

    with pytest.raises(NotLoadedError, match=r"Bot\.notes was not loaded: .*selectinload\(Bot\.notes\)"):
        _ = found.notes


# -- find, list, count, exists, stream


async def test_find_gives_what_matches_newest_first(db: Database, acme: UUID) -> None:
    for slug in ("one", "two", "three"):
        async with db.tenant(acme) as session:
            await BotRepository(session).add(Bot(slug=slug, rank=len(slug)))

    async with db.tenant(acme) as session:
        bots = BotRepository(session)
        assert [bot.slug for bot in await bots.find()] == ["three", "two", "one"]
        assert [bot.slug for bot in await bots.find(Bot.rank == 3)] == ["two", "one"]
        assert [bot.slug for bot in await bots.find(Bot.rank == 3, Bot.slug != "one", limit=5)] == ["two"]
        assert [bot.slug for bot in await bots.find(limit=1)] == ["three"]


async def test_pages_hold_every_row_once_in_order(bots: BotRepository) -> None:
    await bots.add_many([Bot(slug=f"bot-{n}", rank=n % 3) for n in range(10)])

    for order_by, descending in ((None, False), (Bot.rank, False), (Bot.rank, True), (Bot.slug, True), (Bot.id, False)):
        seen: list[Bot] = []
        cursor: str | None = None
        while True:
            page = await bots.list(limit=3, cursor=cursor, order_by=order_by, descending=descending)
            seen += page.items
            cursor = page.next_cursor
            if cursor is None:
                break

        assert len(seen) == len({bot.id for bot in seen}) == 10
        if order_by is not None:
            keys = [getattr(bot, order_by.key) for bot in seen]
            assert keys == sorted(keys, reverse=descending)


async def test_pages_neither_skip_nor_repeat_while_rows_are_inserted_and_deleted(bots: BotRepository) -> None:
    before = await bots.add_many([Bot(slug=f"bot-{n:02}", rank=n) for n in range(0, 20, 2) if n != 13])
    first = await bots.list(limit=4, order_by=Bot.rank)
    await bots.add(Bot(slug="sooner", rank=-1))
    await bots.add(Bot(slug="between", rank=9))
    await bots.erase(first.items[-1].id)  # the row that the cursor names

    rest = await bots.list(limit=100, cursor=first.next_cursor, order_by=Bot.rank)

    seen = [bot.rank for bot in (*first.items, *rest.items)]
    assert seen == sorted([*(bot.rank for bot in before), 9])
    assert rest.next_cursor is None


async def test_the_last_page_has_no_cursor_even_when_it_is_full(bots: BotRepository) -> None:
    await bots.add_many([Bot(slug=f"bot-{n}") for n in range(4)])

    page = await bots.list(limit=2)
    last = await bots.list(limit=2, cursor=page.next_cursor)

    assert len(last.items) == 2
    assert last.next_cursor is None


async def test_no_page_is_found_by_offset(wired: Database, wire: Wire, acme: UUID) -> None:
    async with wired.tenant(acme) as session:
        bots = BotRepository(session)
        await bots.add_many([Bot(slug=f"bot-{n}") for n in range(3)])
        page = await bots.list(limit=1)
        await bots.list(limit=1, cursor=page.next_cursor)

    assert not any("OFFSET" in statement for statement in wire.statements)


async def test_a_cursor_of_another_order_is_refused(bots: BotRepository) -> None:
    await bots.add_many([Bot(slug="one"), Bot(slug="two")])
    page = await bots.list(limit=1, order_by=Bot.rank)

    for order_by, descending in ((None, False), (Bot.slug, False), (Bot.rank, True)):
        with pytest.raises(InvalidInputError, match="cursor") as caught:
            await bots.list(limit=1, cursor=page.next_cursor, order_by=order_by, descending=descending)
        assert caught.value.field == "cursor"


async def test_a_nullable_or_foreign_column_is_no_order(bots: BotRepository) -> None:
    for column in (Bot.nickname, Note.number):
        with pytest.raises(InvalidInputError, match="order_by"):
            await bots.list(order_by=column)


async def test_rows_are_counted_and_told_to_exist(bots: BotRepository) -> None:
    await bots.add_many([Bot(slug="one", rank=1), Bot(slug="two", rank=2)])

    assert await bots.count() == 2
    assert await bots.count(Bot.rank > 1) == 1
    assert await bots.exists(Bot.slug == "one")
    assert not await bots.exists(Bot.slug == "three")


async def test_a_stream_gives_every_row_through_a_cursor(wired: Database, wire: Wire, acme: UUID) -> None:
    async with wired.tenant(acme) as session:
        bots = BotRepository(session)
        await bots.add_many([Bot(slug=f"bot-{n}", rank=n) for n in range(25) if n != 13])
        wire.clear()

        seen = [bot.slug async for bot in bots.stream(Bot.rank >= 5, batch=7)]

    assert len(seen) == 19
    assert wire.round_trips > 3  # in pieces, not at once


# -- add


async def test_an_added_row_has_what_the_database_filled_in(bots: BotRepository, acme: UUID) -> None:
    bot = await bots.add(Bot(slug="robin"))

    assert bot.org_id == acme
    assert (bot.mood, bot.rank, bot.active, bot.metadata_) == (Mood.CALM, 0, True, {})
    assert bot.created_at.tzinfo is not None
    assert bot.updated_at == bot.created_at


async def test_an_added_row_keeps_the_id_and_the_moment_that_it_was_given(bots: BotRepository) -> None:
    ident, moment = uuid4(), datetime(2020, 2, 29, 12, tzinfo=UTC)

    bot = await bots.add(Bot(id=ident, slug="robin", created_at=moment))

    assert (bot.id, bot.created_at) == (ident, moment)


async def test_many_rows_are_added_in_one_statement(wired: Database, wire: Wire, acme: UUID) -> None:
    async with wired.tenant(acme) as session:
        await BotRepository(session).add_many([Bot(slug=f"bot-{n}") for n in range(200)])

    assert sum("INSERT" in statement for statement in wire.statements) == 1


async def test_many_rows_are_added_all_or_none(db: Database, acme: UUID) -> None:
    with pytest.raises(ConflictError):
        async with db.tenant(acme) as session:
            await BotRepository(session).add_many([Bot(slug="one"), Bot(slug="two"), Bot(slug="one")])

    async with db.tenant(acme) as session:
        assert await BotRepository(session).count() == 0


async def test_a_deleted_rows_unique_values_are_free_again(bots: BotRepository) -> None:
    first = await bots.add(Bot(slug="robin"))
    await bots.delete(first.id)

    second = await bots.add(Bot(slug="robin"))

    assert second.id != first.id


async def test_two_organizations_may_hold_the_same_values(db: Database, acme: UUID, globex: UUID) -> None:
    for org_id in (acme, globex):
        async with db.tenant(org_id) as session:
            await BotRepository(session).add(Bot(slug="robin"))


# -- update


async def test_an_update_changes_and_returns_the_row_in_one_statement(wired: Database, wire: Wire, acme: UUID) -> None:
    async with wired.tenant(acme) as session:
        bots = BotRepository(session)
        bot = await bots.add(Bot(slug="robin"))
        wire.clear()

        changed = await bots.update(bot.id, rank=7, mood="cross", metadata_={"a": 1})

        assert changed is bot
        assert (bot.rank, bot.mood, bot.metadata_) == (7, Mood.CROSS, {"a": 1})
        assert len(wire.statements) == 1


async def test_an_update_moves_updated_at(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot = await BotRepository(session).add(Bot(slug="robin"))
        before = bot.updated_at

    async with db.tenant(acme) as session:
        changed = await BotRepository(session).update(bot.id, rank=1)
    assert changed.updated_at > before
    assert changed.created_at == bot.created_at


async def test_a_changed_attribute_is_written_and_refreshed_at_the_flush(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot_id = (await BotRepository(session).add(Bot(slug="robin"))).id

    async with db.tenant(acme) as session:
        bot = await BotRepository(session).get(bot_id)
        before = bot.updated_at
        bot.rank = 9
        await session.flush()
        assert bot.updated_at > before  # without a lazy load, which async code cannot do


async def test_a_required_column_is_not_emptied(bots: BotRepository) -> None:
    bot = await bots.add(Bot(slug="robin"))

    with pytest.raises(InvalidInputError, match="rank is required"):
        await bots.update(bot.id, rank=None)


async def test_a_deleted_row_is_not_updated(bots: BotRepository) -> None:
    bot = await bots.add(Bot(slug="robin"))
    await bots.delete(bot.id)

    with pytest.raises(NotFoundError):
        await bots.update(bot.id, rank=1)


# -- upsert


async def test_an_upsert_inserts_or_changes_the_row_that_holds_the_values(bots: BotRepository) -> None:
    first = await bots.upsert(Bot(slug="robin", nickname="r", rank=1), on="bots_nickname_live")
    first_id = first.id

    second = await bots.upsert(Bot(slug="wren", nickname="r", rank=2), on="bots_nickname_live")

    assert second.id == first_id
    assert (second.slug, second.rank) == ("wren", 2)
    assert await bots.count() == 1


async def test_an_upsert_works_on_an_expression_and_on_a_constraint(bots: BotRepository) -> None:
    bot = await bots.upsert(Bot(slug="robin", rank=1), on="bots_slug_live")
    again = await bots.upsert(Bot(slug="robin", rank=2), on="bots_slug_live")
    notes = NoteRepository(bots.session)
    key = "notes_org_id_bot_id_number_key"
    one = await notes.upsert(Note(bot_id=bot.id, number=1, body="first"), on=key)
    two = await notes.upsert(Note(bot_id=bot.id, number=1, body="second"), on=key)

    assert (again.id, again.rank) == (bot.id, 2)
    assert two.id == one.id
    assert two.body == "second"


async def test_an_upsert_changes_the_named_fields_only(bots: BotRepository) -> None:
    await bots.upsert(Bot(slug="robin", nickname="r", rank=1), on="bots_nickname_live")

    kept = await bots.upsert(Bot(slug="wren", nickname="r", rank=2), on="bots_nickname_live", update=["rank"])
    same = await bots.upsert(Bot(slug="lark", nickname="r", rank=3), on="bots_nickname_live", update=[])

    assert (kept.slug, same.slug) == ("robin", "robin")
    assert same.rank == 2


async def test_an_upsert_leaves_a_deleted_row_alone(bots: BotRepository) -> None:
    gone = await bots.upsert(Bot(slug="robin", nickname="r"), on="bots_nickname_live")
    gone_id = gone.id
    await bots.delete(gone_id)

    made = await bots.upsert(Bot(slug="robin", nickname="r"), on="bots_nickname_live")

    assert made.id != gone_id


async def test_two_upserts_at_once_make_one_row(db: Database, acme: UUID) -> None:
    met = asyncio.Barrier(8)

    async def work(rank: int) -> UUID:
        async with db.tenant(acme) as session:
            await BotRepository(session).count()
            await met.wait()
            return (await BotRepository(session).upsert(Bot(slug="robin", rank=rank), on="bots_slug_live")).id

    ids = await asyncio.gather(*(work(rank) for rank in range(8)))

    assert len(set(ids)) == 1


async def test_an_unknown_key_is_told_with_those_there_are(bots: BotRepository) -> None:
    with pytest.raises(InvalidInputError, match="bots_nickname_live, bots_slug_live"):
        await bots.upsert(Bot(slug="robin"), on="no_such_key")


async def test_an_organization_is_upserted_on_the_platform(db: Database) -> None:
    async with db.platform(reason="test") as session:
        org = await OrgRepository(session).add(Org(name="Initech"))
        with pytest.raises(InvalidInputError, match="unique key of organizations"):
            await OrgRepository(session).upsert(Org(name="Initech"), on="organizations_name_key")
        assert (await OrgRepository(session).update(org.id, name="Initrode")).name == "Initrode"


# -- delete, restore, erase


async def test_a_soft_deleted_row_is_hidden_unless_asked_for(bots: BotRepository) -> None:
    bot = await bots.add(Bot(slug="robin"))

    await bots.delete(bot.id)

    assert bot.deleted_at is not None
    assert await bots.get_or_none(bot.id) is None
    assert await bots.find() == []
    assert (await bots.list()).items == []
    assert (await bots.count(), await bots.exists()) == (0, False)
    assert [row async for row in bots.stream()] == []
    assert await bots.get_many([bot.id]) == []
    assert await bots.get(bot.id, include_deleted=True) is bot
    assert await bots.find(include_deleted=True) == [bot]
    assert (await bots.list(include_deleted=True)).items == [bot]
    assert await bots.count(include_deleted=True) == 1
    assert await bots.exists(include_deleted=True)
    assert [row async for row in bots.stream(include_deleted=True)] == [bot]
    assert await bots.get_many([bot.id], include_deleted=True) == [bot]


async def test_a_row_is_deleted_once(bots: BotRepository) -> None:
    bot = await bots.add(Bot(slug="robin"))
    await bots.delete(bot.id)

    with pytest.raises(NotFoundError):
        await bots.delete(bot.id)


async def test_a_deleted_row_is_restored(bots: BotRepository) -> None:
    bot = await bots.add(Bot(slug="robin"))
    await bots.delete(bot.id)

    restored = await bots.restore(bot.id)

    assert restored is bot
    assert restored.deleted_at is None
    assert await bots.get(bot.id) is bot
    with pytest.raises(NotFoundError):
        await bots.restore(bot.id)  # it is live


async def test_a_row_whose_values_were_taken_meanwhile_is_not_restored(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bots = BotRepository(session)
        gone = await bots.add(Bot(slug="robin"))
        await bots.delete(gone.id)
        await bots.add(Bot(slug="robin"))

    with pytest.raises(ConflictError, match="bots_slug_live"):
        async with db.tenant(acme) as session:
            await BotRepository(session).restore(gone.id)


async def test_an_erased_row_is_gone_with_all_that_belongs_to_it(
    bots: BotRepository, session: ScopedSession, admin: asyncpg.Connection
) -> None:
    bot = await bots.add(Bot(slug="robin", notes=[Note(number=1)]))
    await session.commit()
    assert await admin.fetchval("SELECT count(*) FROM ibex_core.notes WHERE bot_id = $1", bot.id) == 1

    await bots.erase(bot.id)

    assert await session.get(Bot, bot.id) is None  # nor does the session still hold it
    assert await bots.get_or_none(bot.id, include_deleted=True) is None
    await session.commit()
    assert await admin.fetchval("SELECT count(*) FROM ibex_core.notes WHERE bot_id = $1", bot.id) == 0
    with pytest.raises(NotFoundError):
        await bots.erase(bot.id)


async def test_a_soft_deleted_row_is_erased(bots: BotRepository) -> None:
    bot = await bots.add(Bot(slug="robin"))
    await bots.delete(bot.id)

    await bots.erase(bot.id)

    assert await bots.count(include_deleted=True) == 0


async def test_a_model_that_keeps_no_deleted_rows_deletes_for_good(bots: BotRepository) -> None:
    bot = await bots.add(Bot(slug="robin"))
    notes = NoteRepository(bots.session)
    note = await notes.add(Note(bot_id=bot.id, number=1))

    await notes.delete(note.id)

    assert await notes.count(include_deleted=True) == 0
    with pytest.raises(InvalidInputError, match="keeps no deleted rows"):
        await notes.restore(note.id)


async def test_an_append_only_row_is_read_and_never_changed(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        entry = await EntryRepository(session).add(Entry(line="once"))

    async with db.tenant(acme) as session:
        assert (await EntryRepository(session).get(entry.id)).line == "once"
    with pytest.raises(AccessDeniedError):
        async with db.tenant(acme) as session:
            await EntryRepository(session).update(entry.id, line="twice")
    with pytest.raises(AccessDeniedError):
        async with db.tenant(acme) as session:
            await EntryRepository(session).delete(entry.id)


# -- the platform


async def test_a_platform_repository_reads_all_and_writes_for_the_one_it_names(
    db: Database, acme: UUID, globex: UUID, add_bot: AddBot
) -> None:
    mine, theirs = await add_bot(acme), await add_bot(globex)
    async with db.platform(reason="test") as session:
        everyone, one = BotRepository(session), BotRepository(session, acme)

        assert {bot.id for bot in await everyone.get_many([mine, theirs])} == {mine, theirs}
        assert [bot.id for bot in await one.find()] == [mine]
        assert (await one.add(Bot(slug="wren"))).org_id == acme
        assert one.org_id == acme
        with pytest.raises(NotFoundError):
            await one.update(theirs, rank=1)
        assert (await everyone.update(theirs, rank=1)).rank == 1


async def test_a_row_that_names_no_organization_is_refused_on_the_platform(db: Database, acme: UUID) -> None:
    with pytest.raises(TenantMissingError, match="this Bot names no organization"):
        async with db.platform(reason="test") as session:
            await BotRepository(session).add(Bot(slug="robin"))
    async with db.platform(reason="test") as session:
        parent = await BotRepository(session).add(Bot(org_id=acme, slug="robin", notes=[Note(number=1)]))
        assert parent.notes[0].org_id == acme  # a child has its parent's


async def test_a_repository_never_commits(db: Database, acme: UUID, admin: asyncpg.Connection) -> None:
    async with db.session_factory(acme) as session:
        bots = BotRepository(session)
        bot = await bots.add(Bot(slug="robin"))
        await bots.update(bot.id, rank=1)
        await bots.delete(bot.id)

    assert await admin.fetchval("SELECT count(*) FROM ibex_core.bots WHERE id = $1", bot.id) == 0


async def test_what_the_session_holds_is_written_before_a_repository_reads(
    bots: BotRepository, session: ScopedSession
) -> None:
    session.add(Bot(slug="robin"))

    assert await bots.count() == 1
    assert (await session.scalars(select(Bot.slug))).all() == ["robin"]
