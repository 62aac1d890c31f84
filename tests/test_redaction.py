"""Contents, vectors and tokens stay out of messages, spans, metrics and redacted logs; and would be in plain ones."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from listening import Ear
from sqlalchemy import text

from ibex_db import (
    AccessDeniedError,
    Agent,
    ConflictError,
    Database,
    DatabaseError,
    ForeignKeyError,
    IbexError,
    IllegalTransitionError,
    InvalidInputError,
    InvalidTokenError,
    Memory,
    MemoryRepository,
    NotFoundError,
    Organization,
    Redaction,
    RuleViolationError,
    ScopedSession,
    StatementTimeoutError,
    Telemetry,
    TenantMismatchError,
    TokenRepository,
    User,
    redact,
)
from ibex_db_core.testing import TestDatabase

CONTENT = "Ahab-hunts-whales"
NUMBER = 0.1234554321
TOKEN = "ibex_" + "Zq7" * 23 + "Zq"
MARKS = (CONTENT, str(NUMBER), "Zq7Zq7")

assert len(TOKEN) == 76


@dataclass
class House:
    """A database that tells the ear everything, an organization in it, and another."""

    db: Database
    ear: Ear
    org_id: UUID
    agent_id: UUID
    user_id: UUID
    rival_id: UUID


@pytest.fixture
async def house(ibex_test_database: TestDatabase) -> AsyncIterator[House]:
    ear = Ear()
    telemetry = Telemetry(tracer_provider=ear.tracers, meter_provider=ear.meters)
    async with ibex_test_database.connect(telemetry=telemetry) as db:
        async with db.platform(reason="test data") as session:
            org, rival = (Organization(name=name, slug=name.lower()) for name in ("Acme", "Globex"))
            session.add_all([org, rival])
            await session.flush()
            agent = Agent(org_id=org.id, name="Support", slug="support")
            user = User(org_id=org.id, email="ishmael@acme.example", name="Ishmael")
            session.add_all([agent, user])
        yield House(db, ear, org.id, agent.id, user.id, rival.id)


# -- every kind of error, each with marks in what was given


Provoke = Callable[[House, ScopedSession], Awaitable[object]]


async def too_long(house: House, session: ScopedSession) -> object:
    return await MemoryRepository(session).remember(agent_id=house.agent_id, content=CONTENT * 1000, category="factual")


async def no_text(house: House, session: ScopedSession) -> object:
    return await MemoryRepository(session).remember(
        agent_id=house.agent_id,
        content=[CONTENT],  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        category="factual",
    )


async def short_vector(house: House, session: ScopedSession) -> object:
    return await MemoryRepository(session).remember(
        agent_id=house.agent_id, content=CONTENT, category="factual", embedding=[NUMBER] * 12
    )


async def no_metadata(house: House, session: ScopedSession) -> object:
    return await MemoryRepository(session).remember(
        agent_id=house.agent_id,
        content="x",
        category="factual",
        metadata=[CONTENT],  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    )


async def no_category(house: House, session: ScopedSession) -> object:
    return await MemoryRepository(session).remember(agent_id=house.agent_id, content="x", category=CONTENT)


async def long_question(_house: House, session: ScopedSession) -> object:
    return await MemoryRepository(session).search(text=CONTENT * 1000)


async def wrong_draft(house: House, session: ScopedSession) -> object:
    draft = {"agent_id": house.agent_id, "content": CONTENT * 1000, "category": "factual"}
    return await MemoryRepository(session).remember_many([draft])


async def bad_update(house: House, session: ScopedSession) -> object:
    memories = MemoryRepository(session)
    kept = await memories.remember(agent_id=house.agent_id, content="Has a cat.", category="factual")
    return await memories.update(kept.memory.id, content=CONTENT * 1000, embedding=None)


async def strange_agent(_house: House, session: ScopedSession) -> object:
    return await MemoryRepository(session).remember(
        agent_id=uuid4(), content=CONTENT, category="factual", embedding=[NUMBER] * 384
    )


async def same_id(house: House, session: ScopedSession) -> object:
    memories = MemoryRepository(session)
    kept = await memories.remember(agent_id=house.agent_id, content="Has a cat.", category="factual")
    return await memories.remember(id=kept.memory.id, agent_id=house.agent_id, content=CONTENT, category="factual")


async def same_content(house: House, session: ScopedSession) -> object:
    memories = MemoryRepository(session)
    await memories.remember(agent_id=house.agent_id, content=CONTENT, category="factual")
    return await memories.add(Memory(agent_id=house.agent_id, content=CONTENT, category="factual"))


async def broken_rule(house: House, session: ScopedSession) -> object:
    return await session.execute(
        text(
            "INSERT INTO ibex_core.memories (org_id, id, agent_id, content, content_hash, category, source, "
            "confidence) VALUES (:org, :id, :agent, :content, repeat('a', 64), 'factual', 'extracted', 5)"
        ),
        {"org": house.org_id, "id": uuid4(), "agent": house.agent_id, "content": CONTENT},
    )


async def another_tenants_row(house: House, session: ScopedSession) -> object:
    return await session.execute(
        text(
            "INSERT INTO ibex_core.memories (org_id, id, agent_id, content, content_hash, category, source) "
            "VALUES (:org, :id, :agent, :content, repeat('a', 64), 'factual', 'extracted')"
        ),
        {"org": house.rival_id, "id": uuid4(), "agent": house.agent_id, "content": CONTENT},
    )


async def another_tenants_object(house: House, session: ScopedSession) -> object:
    row = Memory(org_id=house.rival_id, agent_id=house.agent_id, content=CONTENT, category="factual")
    return await MemoryRepository(session).add(row)


async def no_number_for_the_server(_house: House, session: ScopedSession) -> object:
    return await session.execute(text("SELECT CAST(CAST(:said AS text) AS integer)"), {"said": CONTENT})


async def no_number_for_the_driver(_house: House, session: ScopedSession) -> object:
    return await session.execute(text("SELECT CAST(:said AS integer)"), {"said": CONTENT})


async def no_json(_house: House, session: ScopedSession) -> object:
    return await session.execute(text("SELECT CAST(CAST(:said AS text) AS jsonb)"), {"said": f'{{"a": {CONTENT}}}'})


async def too_slow(_house: House, session: ScopedSession) -> object:
    await session.execute(text("SET LOCAL statement_timeout = 20"))
    return await session.execute(text("SELECT pg_sleep(5), CAST(:said AS text)"), {"said": CONTENT})


async def no_such_row(_house: House, session: ScopedSession) -> object:
    return await MemoryRepository(session).get(uuid4())


async def no_such_step(house: House, session: ScopedSession) -> object:
    memories = MemoryRepository(session)
    kept = await memories.remember(agent_id=house.agent_id, content=CONTENT, category="factual")
    return await memories.approve(kept.memory.id)


async def wrong_token(house: House, _session: ScopedSession) -> object:
    return await house.db.authenticate(TOKEN)


async def token_as_a_name(house: House, session: ScopedSession) -> object:
    return await TokenRepository(session).issue(name=TOKEN * 10, user_id=house.user_id, permissions=1)


async def token_as_an_id(_house: House, session: ScopedSession) -> object:
    return await TokenRepository(session).get(TOKEN)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def the_services_own_error(_house: House, _session: ScopedSession) -> object:
    raise RuntimeError(f"no answer for {TOKEN} at postgresql://me:{CONTENT}@db/ibex: {[NUMBER] * 384}")


CASES: list[tuple[Provoke, type[Exception]]] = [
    (too_long, InvalidInputError),
    (no_text, InvalidInputError),
    (short_vector, InvalidInputError),
    (no_metadata, InvalidInputError),
    (no_category, InvalidInputError),
    (long_question, InvalidInputError),
    (wrong_draft, InvalidInputError),
    (bad_update, InvalidInputError),
    (strange_agent, ForeignKeyError),
    (same_id, ConflictError),
    (same_content, ConflictError),
    (broken_rule, RuleViolationError),
    (another_tenants_row, AccessDeniedError),
    (another_tenants_object, TenantMismatchError),
    (no_number_for_the_server, DatabaseError),
    (no_number_for_the_driver, DatabaseError),
    (no_json, DatabaseError),
    (too_slow, StatementTimeoutError),
    (no_such_row, NotFoundError),
    (no_such_step, IllegalTransitionError),
    (wrong_token, InvalidTokenError),
    (token_as_a_name, InvalidInputError),
    (token_as_an_id, InvalidInputError),
    (the_services_own_error, RuntimeError),
]

# A token where none belongs is in its error's message, as any wrong value is: logs are redacted by its shape.
SHOWN_IN_MESSAGES = {token_as_a_name, token_as_an_id, the_services_own_error, no_category}


@pytest.fixture
def logs() -> Iterator[tuple[logging.Logger, io.StringIO, io.StringIO]]:
    """A logger with a plain handler and, after it, a redacted one; both as JSON, with what else is in the record."""
    plain, redacted = io.StringIO(), io.StringIO()
    logger = logging.getLogger(f"service.{uuid4().hex}")
    logger.propagate = False
    for stream, filters in ((plain, ()), (redacted, (Redaction(),))):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(Whole())
        for one in filters:
            handler.addFilter(one)
        logger.addHandler(handler)
    yield logger, plain, redacted
    logger.handlers.clear()


class Whole(logging.Formatter):
    """Everything that a record holds."""

    def format(self, record: logging.LogRecord) -> str:
        said = super().format(record)
        return json.dumps({**record.__dict__, "said": said}, default=str)


@pytest.mark.parametrize(("provoke", "kind"), CASES, ids=[provoke.__name__ for provoke, _ in CASES])
async def test_no_error_brings_a_content_a_vector_or_a_token_out(
    house: House,
    logs: tuple[logging.Logger, io.StringIO, io.StringIO],
    provoke: Provoke,
    kind: type[Exception],
) -> None:
    logger, _, redacted = logs

    with pytest.raises(kind) as caught:
        async with house.db.tenant(house.org_id) as session:
            await provoke(house, session)
    error = caught.value
    logger.error("failed: %s, %r", error, error, exc_info=error, extra={"content": CONTENT, "cause": error})
    logger.error(error, exc_info=error)

    assert kind.__name__ in redacted.getvalue()  # it still says what happened
    assert marks_in(redacted.getvalue()) == []
    assert marks_in(house.ear.everything()) == []
    assert marks_in(redact(error)) == []
    if provoke not in SHOWN_IN_MESSAGES:
        assert marks_in(str(error)) == []


def marks_in(told: str) -> list[str]:
    return [mark for mark in MARKS if mark in told]


@pytest.mark.parametrize("provoke", [no_number_for_the_server, no_number_for_the_driver, the_services_own_error])
async def test_a_plain_handler_would_have_printed_it(
    house: House, logs: tuple[logging.Logger, io.StringIO, io.StringIO], provoke: Provoke
) -> None:
    logger, plain, _ = logs

    try:
        async with house.db.tenant(house.org_id) as session:
            await provoke(house, session)
    except Exception:
        logger.exception("failed")

    assert marks_in(plain.getvalue()) != []


async def test_the_value_is_still_there_for_who_handles_the_error(house: House) -> None:
    with pytest.raises(InvalidInputError) as caught:
        async with house.db.tenant(house.org_id) as session:
            await too_long(house, session)

    assert caught.value.value == CONTENT * 1000
    assert "got text of 17000 characters" in str(caught.value)


# -- the filter by itself


SECRETS: list[tuple[object, Any]] = [
    ("token %s", (TOKEN,)),
    ("header %(it)s", ({"it": f"Bearer {TOKEN}"},)),
    ("vector %s", ([NUMBER] * 384,)),
    ("vector %r", (tuple([NUMBER] * 8),)),
    ("cut off %s", (repr([NUMBER] * 384)[:200],)),
    ("to postgresql+asyncpg://me:" + CONTENT + "@db/ibex", ()),
    ("to host=db user=me password='" + CONTENT + "'", ()),
    ("[SQL: SELECT $1]\n[parameters: ('" + CONTENT + "',)]\n(Background on this error at: ...)", ()),
    ("DETAIL:  Failing row contains (1, " + CONTENT + ").", ()),
    ("duplicate key\nDETAIL:  Key (org_id, content)=(1, " + CONTENT + ") already exists.", ()),
    ({"password": CONTENT, "user": "me"}, ()),
    ({"event": "sign-in", "form": {"API-Key": CONTENT, "content": CONTENT}}, ()),
    ("form %s", ({"password": CONTENT},)),
    ("form %(password)s", ({"password": CONTENT},)),
    ("forms %s %s", (1, [{"access_token": CONTENT}, {"x": {"content": CONTENT}}])),
    ("form " + repr({"password": CONTENT}), ()),
    ("form " + json.dumps({"user": "me", "password": CONTENT}), ()),
    ("wrong %d", (CONTENT,)),
    ("too many %s %s", (CONTENT,)),
    (InvalidInputError("content", CONTENT, "must be shorter"), ()),
]


@pytest.mark.parametrize(("message", "args"), SECRETS, ids=[str(message)[:12] for message, _ in SECRETS])
def test_a_secret_in_a_message_is_taken_out(
    logs: tuple[logging.Logger, io.StringIO, io.StringIO], message: object, args: tuple[object, ...]
) -> None:
    logger, _, redacted = logs
    logger.removeHandler(logger.handlers[0])  # it would print what does not fit to stderr

    logger.error(message, *args)

    assert redacted.getvalue() != ""
    assert marks_in(redacted.getvalue()) == []


# Each made of what one of the patterns begins with, and of nothing that would end it.
LONG = {
    "digits": "[" + "1" * 400_000,
    "spaces": "[1" + " " * 400_000,
    "brackets": "[ " * 200_000,
    "numbers": "[" + "1.5e1, " * 6 + "2.5 " * 100_000,
    "keys": "Key (a)=(" * 40_000,
    "names of keys": "Key (" * 80_000,
    "keys of functions": "Key (f(" * 60_000,
    "rows": "Failing row contains (" * 20_000,
    "types": "invalid input syntax for type " * 14_000,
    "details": "DETAIL: " * 50_000,
    "parameters": "[parameters: " * 30_000,
    "addresses": "://a:" * 80_000,
    "passwords": "password=" * 40_000 + "'",
    "hexadecimals": "0a" * 200_000,
    "tokens": "ibex_" * 80_000,
}

_REDACTED_EACH = """
import json, sys
from ibex_db_core import redact
for name, text in json.load(sys.stdin).items():
    redact(text)
    print(name, flush=True)
"""


def test_no_text_however_long_has_the_redaction_stand_still() -> None:
    """In a process of its own, to be ended: what grows with the square of these lengths takes an hour."""
    ran = subprocess.run(  # noqa: S603 - this interpreter, and code of the tests
        [sys.executable, "-c", _REDACTED_EACH],
        input=json.dumps(LONG),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )

    assert ran.stdout.splitlines() == list(LONG)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            f"Key (org_id, lower(content))=(1, {CONTENT}) already exists.",
            "Key (org_id, lower(content))=(removed) already",
        ),
        (f"Key (content)=(:) {CONTENT}) is not present in table.", "Key (content)=(removed) is not present in table."),
        (f"kept; Key (content)=({CONTENT}, cut o", "kept; Key (content)=(removed)"),
        (f"kept; Failing row contains (1, {CONTENT}, cut o", "kept; Failing row contains (removed)"),
        (f"kept [1., .5, -1e-3, 2.25, +3, 4., 5, {NUMBER}, 7] kept", "kept (vector removed) kept"),
    ],
)
def test_what_the_server_quotes_is_taken_out_cut_off_or_not(text: str, left: str) -> None:
    told = redact(text)

    assert left in told
    assert marks_in(told) == []


def test_what_is_no_secret_stays_as_it_is(logs: tuple[logging.Logger, io.StringIO, io.StringIO]) -> None:
    logger, _, redacted = logs
    ident = uuid4()

    said = "kept %d of %s for %r, %.1f s, ibex_core, %s"
    logger.warning(said, 3, "memories", ident, 0.5, [1, 2, 3], extra={"rows": 3})

    told = json.loads(redacted.getvalue())
    assert told["said"] == f"kept 3 of memories for {ident}, 0.5 s, ibex_core, [1, 2, 3]"
    assert told["rows"] == 3


def test_a_mapping_stays_one_and_keeps_what_is_no_secret(
    logs: tuple[logging.Logger, io.StringIO, io.StringIO],
) -> None:
    logger, _, redacted = logs

    logger.warning({"event": "sign-in", "tokens_used": 3, "Password": CONTENT, "tried": {"who": "bea", "n": 2}})

    told = json.loads(redacted.getvalue())
    assert told["msg"] == {
        "event": "sign-in",
        "tokens_used": 3,
        "Password": "***",
        "tried": {"who": "bea", "n": 2},
    }


async def test_a_value_that_is_none_of_those_allowed_is_in_no_redacted_log(
    house: House, logs: tuple[logging.Logger, io.StringIO, io.StringIO]
) -> None:
    logger, plain, redacted = logs

    with pytest.raises(InvalidInputError, match="must be one of") as caught:
        async with house.db.tenant(house.org_id) as session:
            await MemoryRepository(session).remember(
                agent_id=house.agent_id, content="Has a cat.", category=f"no {CONTENT}"
            )
    logger.error("refused: %s", caught.value, exc_info=caught.value)

    assert caught.value.__suppress_context__  # Python's own error would quote it once more
    assert marks_in(plain.getvalue()) == [CONTENT]  # what was mistyped helps who reads the message
    assert "category must be one of" in redacted.getvalue()
    assert marks_in(redacted.getvalue()) == []


def test_what_python_said_of_a_refused_value_is_not_told(
    logs: tuple[logging.Logger, io.StringIO, io.StringIO],
) -> None:
    logger, _, redacted = logs

    try:
        try:
            int(CONTENT)
        except ValueError as exc:
            raise InvalidInputError("content", CONTENT, "must be a number") from exc
    except InvalidInputError:
        logger.exception("failed")

    assert "ValueError: (message removed)" in redacted.getvalue()
    assert marks_in(redacted.getvalue()) == []


def test_a_traceback_keeps_its_places_and_its_causes(logs: tuple[logging.Logger, io.StringIO, io.StringIO]) -> None:
    logger, _, redacted = logs

    try:
        try:
            raise InvalidInputError("content", CONTENT, "must be shorter")
        except IbexError as exc:
            raise LookupError("gone") from exc
    except LookupError as exc:
        exc.add_note(f"for {TOKEN}")
        logger.exception("failed")

    said = json.loads(redacted.getvalue())["said"]
    assert "test_a_traceback_keeps_its_places" in said
    assert "InvalidInputError: content must be shorter; got text of 17 characters" in said
    assert "direct cause" in said
    assert "LookupError: gone" in said
    assert marks_in(said) == []


def test_every_error_of_a_group_is_told_without_its_values(
    logs: tuple[logging.Logger, io.StringIO, io.StringIO],
) -> None:
    logger, _, redacted = logs

    try:
        raise ExceptionGroup("two", [InvalidInputError("content", CONTENT, "must be shorter"), ValueError(TOKEN)])
    except ExceptionGroup:
        logger.exception("failed")

    assert "must be shorter" in redacted.getvalue()
    assert "ValueError" in redacted.getvalue()
    assert marks_in(redacted.getvalue()) == []
