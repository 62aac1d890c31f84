"""What the server refuses becomes our error: by SQLSTATE, with the constraint and the values, the cause chained."""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest
from conftest import add_organization, address
from sqlalchemy import event, exc as sa_exc, insert, text, update as sql_update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm.exc import StaleDataError
from toys import Bot, BotRepository, Entry, Note, NoteRepository

from ibex_db_core import (
    AccessDeniedError,
    ConflictError,
    ConnectionLostError,
    Database,
    DatabaseError,
    DeadlockError,
    EngineSettings,
    ForeignKeyError,
    IbexError,
    InvalidInputError,
    LockTimeoutError,
    NotFoundError,
    PoolExhaustedError,
    RuleViolationError,
    SchemaChangedError,
    ScopedSession,
    SerializationError,
    StatementTimeoutError,
    TransientError,
    translation,
)
from ibex_db_core.testing import TestDatabase
from ibex_db_core.translation import translate


async def test_rule_25_a_conflict_names_the_constraint_the_table_and_the_values(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        await BotRepository(session).add(Bot(slug="robin"))

    with pytest.raises(ConflictError, match="slug=robin") as caught:
        async with db.tenant(acme) as session:
            await BotRepository(session).add(Bot(slug="robin"))

    error = caught.value
    assert (error.constraint, error.table, error.sqlstate) == ("bots_slug_live", "bots", "23505")
    assert error.values == {"org_id": acme, "slug": "robin"}


async def test_a_conflict_on_a_unique_constraint_names_the_values_too(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot = await BotRepository(session).add(Bot(slug="robin"))
        await NoteRepository(session).add(Note(bot_id=bot.id, number=1))

    with pytest.raises(ConflictError) as caught:
        async with db.tenant(acme) as session:
            await NoteRepository(session).add(Note(bot_id=bot.id, number=1))

    assert caught.value.constraint == "notes_org_id_bot_id_number_key"
    assert caught.value.values == {"org_id": acme, "bot_id": bot.id, "number": 1}


@pytest.mark.parametrize(
    "asked", ["SELECT ibex_core.of_tomorrow()", "SELECT of_tomorrow FROM ibex_core.bots", "TABLE ibex_core.of_tomorrow"]
)
async def test_what_the_database_does_not_have_yet_says_to_upgrade_it(db: Database, acme: UUID, asked: str) -> None:
    with pytest.raises(DatabaseError, match=r"of_tomorrow.* does not exist; .* run `ibex-db upgrade`"):
        async with db.tenant(acme) as session:
            await session.execute(text(asked))


async def test_a_conflict_on_the_primary_key_names_the_id(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot = await BotRepository(session).add(Bot(slug="robin"))

    with pytest.raises(ConflictError) as caught:
        async with db.tenant(acme) as session:
            await BotRepository(session).add(Bot(id=bot.id, slug="wren"))

    assert caught.value.constraint == "bots_pkey"
    assert caught.value.values == {"org_id": acme, "id": bot.id}


async def test_a_conflict_of_a_plain_core_statement_is_translated_as_well(db: Database, acme: UUID) -> None:
    with pytest.raises(ConflictError) as caught:
        async with db.tenant(acme) as session:
            for _ in range(2):
                await session.execute(insert(Bot).values(org_id=acme, slug="robin"))

    assert caught.value.values == {"org_id": acme, "slug": "robin"}


async def test_a_conflict_on_an_engine_of_somebody_elses_is_translated_by_the_repository(
    service_address: str, acme: UUID
) -> None:
    engine = create_async_engine(service_address.replace("postgresql://", "postgresql+asyncpg://"))
    async with AsyncSession(engine) as session:
        await BotRepository(session, acme).add(Bot(slug="robin"))
        with pytest.raises(ConflictError) as caught:
            await BotRepository(session, acme).add(Bot(slug="robin"))
    await engine.dispose()

    assert caught.value.constraint == "bots_slug_live"


async def test_rule_25_a_child_of_a_parent_that_is_not_there_is_refused(db: Database, acme: UUID) -> None:
    with pytest.raises(ForeignKeyError) as caught:
        async with db.tenant(acme) as session:
            await NoteRepository(session).add(Note(bot_id=uuid4(), number=1))

    assert (caught.value.constraint, caught.value.sqlstate) == ("notes_org_id_bot_id_fkey", "23503")


async def test_a_child_of_another_organizations_parent_is_refused(
    db: Database, acme: UUID, globex: UUID, admin: asyncpg.Connection
) -> None:
    async with db.tenant(globex) as session:
        theirs = await BotRepository(session).add(Bot(slug="robin"))
    assert await admin.fetchval("SELECT count(*) FROM ibex_core.bots WHERE id = $1", theirs.id) == 1  # it is there

    with pytest.raises(ForeignKeyError):
        async with db.tenant(acme) as session:
            await NoteRepository(session).add(Note(bot_id=theirs.id, number=1))


async def test_rule_25_a_check_and_a_missing_column_are_rule_violations(db: Database, acme: UUID) -> None:
    with pytest.raises(RuleViolationError) as by_check:
        async with db.tenant(acme) as session:
            await BotRepository(session).add(Bot(slug="robin", rank=13))
    with pytest.raises(RuleViolationError) as by_null:
        async with db.tenant(acme) as session:
            await session.execute(text("INSERT INTO ibex_core.bots (org_id) VALUES (:org)"), {"org": acme})

    assert (by_check.value.constraint, by_check.value.sqlstate) == ("bots_rank_not_unlucky", "23514")
    assert by_null.value.sqlstate == "23502"
    assert "slug" in str(by_null.value)


async def test_rule_25_a_policy_a_grant_and_a_trigger_deny_access(db: Database, acme: UUID, globex: UUID) -> None:
    async with db.tenant(acme) as session:
        session.add(Entry(line="once"))

    for refused in (
        insert(Bot).values(org_id=globex, slug="robin"),  # the policy
        text("TRUNCATE ibex_core.bots"),  # the grant
        sql_update(Entry).values(line="twice"),  # append-only
    ):
        with pytest.raises(AccessDeniedError) as caught:
            async with db.tenant(acme) as session:
                await session.execute(refused)
        assert caught.value.sqlstate == "42501"


async def test_rule_25_a_statement_that_runs_too_long_is_told(toy_database: TestDatabase, acme: UUID) -> None:
    async with toy_database.connect(EngineSettings(statement_timeout=0.05)) as db:
        with pytest.raises(StatementTimeoutError, match="statement_timeout"):
            async with db.tenant(acme) as session:
                await session.execute(text("SELECT pg_sleep(30)"))


async def test_rule_25_a_lock_that_is_not_granted_is_told(toy_database: TestDatabase, acme: UUID) -> None:
    async with toy_database.connect(EngineSettings(lock_timeout=0.05)) as db:
        async with db.tenant(acme) as session:
            bot = await BotRepository(session).add(Bot(slug="robin"))
        async with db.tenant(acme) as holder:
            await BotRepository(holder).update(bot.id, rank=1)
            with pytest.raises(LockTimeoutError):
                async with db.tenant(acme) as waiter:
                    await BotRepository(waiter).update(bot.id, rank=2)


async def test_rule_25_a_deadlock_is_told_to_the_one_who_gives_way(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        one, two = await BotRepository(session).add_many([Bot(slug="robin"), Bot(slug="wren")])
    met = asyncio.Barrier(2)

    async def work(first: UUID, second: UUID) -> None:
        async with db.tenant(acme) as session:
            await BotRepository(session).update(first, rank=1)
            await met.wait()
            await BotRepository(session).update(second, rank=2)

    ends = await asyncio.gather(work(one.id, two.id), work(two.id, one.id), return_exceptions=True)

    assert sum(isinstance(end, DeadlockError) for end in ends) == 1
    assert ends.count(None) == 1


async def test_rule_25_a_serialization_failure_is_told(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot = await BotRepository(session).add(Bot(slug="robin"))

    with pytest.raises(SerializationError, match=r"db\.run"):
        async with db.tenant(acme) as slow:
            await slow.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            await BotRepository(slow).get(bot.id)
            async with db.tenant(acme) as quick:
                await BotRepository(quick).update(bot.id, rank=1)
            await BotRepository(slow).update(bot.id, rank=2)


async def test_rule_26_a_row_that_vanished_before_the_flush_is_told_as_not_found(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        bot = await BotRepository(session).add(Bot(slug="robin"))

    with pytest.raises(NotFoundError):
        async with db.tenant(acme) as slow:
            mine = await BotRepository(slow).get(bot.id)
            async with db.tenant(acme) as quick:
                await BotRepository(quick).erase(bot.id)
            mine.rank = 5


async def test_rule_25_whatever_else_the_server_says_keeps_its_state_and_its_cause(db: Database, acme: UUID) -> None:
    with pytest.raises(DatabaseError, match="42P01") as caught:
        async with db.tenant(acme) as session:
            await session.execute(text("SELECT * FROM ibex_core.no_such_table"))

    assert caught.value.sqlstate == "42P01"
    adapted = caught.value.__cause__
    assert adapted is not None
    assert isinstance(adapted.__cause__, asyncpg.UndefinedTableError)


async def test_a_server_whose_files_were_taken_away_is_told_with_the_way_out(db: Database, acme: UUID) -> None:
    with pytest.raises(DatabaseError, match="stop all that uses that server, and start again") as caught:
        async with db.tenant(acme) as session:
            await session.execute(text("LOAD '$libdir/plugins/not_there'"))

    assert caught.value.sqlstate == "58P01"


async def test_a_value_that_the_driver_cannot_send_is_ours_as_well(db: Database, acme: UUID) -> None:
    with pytest.raises(IbexError):
        async with db.tenant(acme) as session:
            await session.execute(text("SELECT CAST(:n AS int)"), {"n": "seven"})


@pytest.mark.parametrize("position", [1, 10, 100, 1000])
async def test_a_value_that_the_driver_cannot_send_is_not_in_the_message(
    db: Database, acme: UUID, position: int
) -> None:
    parameters: dict[str, object] = {f"p{number}": 1 for number in range(1, position)}
    statement = text("SELECT " + ", ".join(f"CAST(:{name} AS int)" for name in [*parameters, "last"]))

    with pytest.raises(DatabaseError) as caught:
        async with db.tenant(acme) as session:
            await session.execute(statement, {**parameters, "last": "Ahab: hunts\nwhales"})

    assert f"query argument ${position};" in str(caught.value)
    assert "Ahab" not in str(caught.value)
    assert "whales" not in str(caught.value)


async def test_a_conflict_quotes_no_field_that_messages_do_not_show(
    db: Database, acme: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation, "UNSHOWN", frozenset({"nickname"}))

    with pytest.raises(ConflictError) as caught:
        async with db.tenant(acme) as session:
            session.add_all([Bot(slug="robin", nickname="Ahab"), Bot(slug="wren", nickname="Ahab")])
            await session.flush()

    assert "Ahab" not in str(caught.value)


def test_our_own_error_passes_as_it_is() -> None:
    error = InvalidInputError("rank", 101, "must lie in [-100, 100]")

    assert translate(error) is error
    assert translate(sa_exc.StatementError("m", "SELECT 1", None, error)) is error


def test_a_pool_that_timed_out_and_a_stale_row_have_errors_of_ours() -> None:
    assert isinstance(translate(sa_exc.TimeoutError("QueuePool limit")), PoolExhaustedError)
    assert isinstance(translate(StaleDataError("UPDATE matched 0 rows")), NotFoundError)


def test_what_is_not_the_databases_is_left_alone() -> None:
    assert translate(ZeroDivisionError()) is None


@pytest.mark.parametrize(
    "said",
    [
        asyncpg.AdminShutdownError("terminating connection"),
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.TooManyConnectionsError("sorry, too many clients already"),
        asyncpg.IdleInTransactionSessionTimeoutError("terminating connection"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InterfaceError("connection is closed"),
        # Where a connection is set up, SQLAlchemy passes asyncpg's own on as they are.
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
        sa_exc.StatementError("m", "SELECT 1", None, ConnectionLostError("no connection could be made anew")),
        ConnectionResetError("reset by peer"),
        TimeoutError(),
    ],
)
def test_a_server_that_ends_or_refuses_a_session_is_a_lost_connection(said: Exception) -> None:
    assert isinstance(translate(said), ConnectionLostError)


def test_a_driver_that_lost_its_way_is_no_lost_connection() -> None:
    """Or db.run() would do the work again and again."""
    ours = translate(asyncpg.InternalClientError("got result for unknown protocol state 99"))

    assert type(ours) is DatabaseError


def test_a_conflict_in_a_partition_is_told_as_one_of_its_table() -> None:
    error = asyncpg.UniqueViolationError("duplicate key")
    error.constraint_name = "bots_slug_live_p07"
    error.table_name = "bots_p07"
    acme = uuid4()

    ours = translate(sa_exc.IntegrityError("INSERT", {}, error), {"org_id": acme, "slug": "robin", "rank": 1})

    assert isinstance(ours, ConflictError)
    assert (ours.constraint, ours.table) == ("bots_slug_live", "bots")
    assert ours.values == {"org_id": acme, "slug": "robin"}


# -- a schema that changes, and sessions that can do no more


@pytest.mark.parametrize("through_sqlalchemy", [False, True])
async def test_a_schema_that_changed_under_a_prepared_statement_is_worth_another_try(
    own_database: TestDatabase, *, through_sqlalchemy: bool
) -> None:
    def listener(*_args: object) -> None: ...

    owner = await asyncpg.connect(address(own_database))
    org = await add_organization(owner, "Acme")
    retype = "ALTER TABLE ibex_core.bots ALTER COLUMN nickname TYPE varchar({})"
    async with own_database.connect(EngineSettings(pool_size=1, max_overflow=0)) as database:
        if through_sqlalchemy:
            event.listen(database.engine.sync_engine, "before_execute", listener)
        async with database.tenant(org) as session:
            ident = (await BotRepository(session).add(Bot(slug="robin"))).id
        async with database.tenant(org) as session:
            await BotRepository(session).get(ident)
        await owner.execute(retype.format(90))

        with pytest.raises(SchemaChangedError, match="schema changed under a prepared statement") as caught:
            async with database.tenant(org) as session:
                await BotRepository(session).get(ident)
        async with database.tenant(org) as session:
            await BotRepository(session).get(ident)
        await owner.execute(retype.format(91))

        async def work(session: ScopedSession) -> UUID:
            return (await BotRepository(session).get(ident)).id

        assert await database.run(org, work) == ident
    await owner.close()
    assert isinstance(caught.value, TransientError)
    assert caught.value.__cause__ is not None


def test_what_the_driver_has_learned_of_types_may_be_outdated_too() -> None:
    assert isinstance(translate(asyncpg.InternalServerError("cache lookup failed for type 16999")), SchemaChangedError)
    assert isinstance(translate(asyncpg.OutdatedSchemaCacheError("of a composite type")), SchemaChangedError)


async def test_a_block_goes_on_after_its_connection_broke_with_an_error_that_says_what_to_do(
    single: Database, acme: UUID, admin: asyncpg.Connection
) -> None:
    async with single.tenant(acme) as session:
        bots = BotRepository(session)
        pid = await session.scalar(text("SELECT pg_backend_pid()"))
        await admin.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(ConnectionLostError):
            await session.execute(text("SELECT pg_sleep(5)"))

        for verb in (bots.count, lambda: bots.get_or_none(uuid4()), lambda: bots.add(Bot(slug="robin"))):
            with pytest.raises(
                ConnectionLostError, match=r"broke earlier.* block and do the work in another"
            ) as caught:
                await verb()
            assert isinstance(caught.value.__cause__, sa_exc.PendingRollbackError)
        await session.rollback()


async def test_a_block_goes_on_after_a_failed_flush_with_an_error_that_says_what_to_do(
    single: Database, acme: UUID
) -> None:
    async with single.tenant(acme) as session:
        bots = BotRepository(session)
        await bots.add(Bot(slug="robin"))
        with pytest.raises(ConflictError):
            await bots.add(Bot(slug="robin"))

        with pytest.raises(DatabaseError, match=r"failed earlier.*open another one.*begin_nested") as caught:
            await bots.count()
        assert isinstance(caught.value.__cause__, sa_exc.PendingRollbackError)
        await session.rollback()


def test_misuse_of_sqlalchemy_that_says_what_to_do_passes_as_it_is() -> None:
    assert translate(sa_exc.InvalidRequestError("No 'on clause' argument may be passed")) is None
    assert translate(sa_exc.MultipleResultsFound("Multiple rows were found")) is None
