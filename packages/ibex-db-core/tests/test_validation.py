"""Bad input is refused with field, value and rule, and no statement reaches the server."""

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import given, strategies as st
from sqlalchemy import insert
from toys import Bot, BotRepository, Mood, Note, Org
from wire import Wire

from ibex_db_core import Database, InvalidInputError, validation

BAD: list[tuple[str, object, str]] = [
    ("slug", "", "must not be blank"),
    ("slug", "   ", "must not be blank"),
    ("slug", "x" * 33, "at most 32 characters, not 33"),
    ("slug", "Not A Slug", "lower case letters"),
    ("slug", "robin\n", "lower case letters"),
    ("slug", "ro\x00bin", "NUL byte"),
    ("slug", "ro\ud800bin", "lone surrogates"),
    ("slug", 7, "must be a string"),
    ("slug", b"robin", "must be a string"),
    ("slug", None, "is required"),
    ("nickname", "a\x00b", "NUL byte"),
    ("mood", "furious", "must be one of calm, cross"),
    ("mood", Mood, "must be one of calm, cross"),
    ("mood", True, "must be one of calm, cross"),
    ("rank", 101, r"must lie in \[-100, 100\]"),
    ("rank", -101, r"must lie in \[-100, 100\]"),
    ("rank", True, "must be a whole number"),
    ("rank", 1.0, "must be a whole number"),
    ("rank", "1", "must be a whole number"),
    ("rank", 10**5000, "must lie in"),
    ("visits", 2**63, "must lie in"),
    ("score", 1.001, r"must lie in \[0, 1\]"),
    ("score", -0.0001, r"must lie in \[0, 1\]"),
    ("score", math.nan, "must be finite"),
    ("score", Decimal("sNaN"), "must be finite"),
    ("score", math.inf, "must be finite"),
    ("score", Decimal("1e999999"), "too many digits"),
    ("score", 10**5000, "too many digits"),
    ("score", True, "must be a number"),
    ("score", "0.5", "must be a number"),
    ("active", 1, "must be True or False"),
    ("active", "yes", "must be True or False"),
    ("id", "not a uuid", "must be a UUID"),
    ("id", 7, "must be a UUID"),
    ("created_at", datetime(2026, 1, 1), "must carry a time zone"),  # noqa: DTZ001 - the point
    ("created_at", "2026-01-01T00:00:00Z", "must be a datetime"),
    ("created_at", datetime.min.replace(tzinfo=timezone(timedelta(hours=14))), "years 1 to 9999"),
    ("embedding", [0.1], "exactly 3 dimensions"),
    ("embedding", [0.1, math.nan, 0.3], "finite"),
    ("embedding", [0.1, math.inf, 0.3], "finite"),
    ("embedding", [0.0, 0.0, 0.0], "zero vector"),
    ("metadata_", [], "must be a dict"),
    ("metadata_", "{}", "must be a dict"),
    ("metadata_", {1: "a"}, "string keys"),
    ("metadata_", {"a": {1: "b"}}, "string keys"),
    ("metadata_", {"a": [{None: 1}]}, "string keys"),
    ("metadata_", {"a": object()}, "serialisable as JSON"),
    ("metadata_", {"a": {1, 2}}, "serialisable as JSON"),
    ("metadata_", {"a": datetime(2026, 1, 1, tzinfo=UTC)}, "serialisable as JSON"),
    ("metadata_", {"a": math.nan}, "serialisable as JSON"),
    ("metadata_", {"a": "b\x00"}, "NUL"),
    ("metadata_", {"a\x00": "b"}, "NUL"),
    ("metadata_", {"a": "\ud800"}, "serialisable as JSON"),
]


def _circle() -> dict[str, object]:
    found: dict[str, object] = {}
    found["again"] = found
    return found


def _deep() -> dict[str, object]:
    found: dict[str, object] = {}
    for _ in range(100_000):
        found = {"a": found}
    return found


@pytest.mark.parametrize(("field", "value", "rule"), BAD, ids=[f"{field} {rule}" for field, _, rule in BAD])
def test_a_value_that_breaks_its_columns_rule_is_refused_by_constructor_and_assignment(
    field: str, value: object, rule: str
) -> None:
    bot = Bot(slug="robin")

    with pytest.raises(InvalidInputError, match=rule) as by_constructor:
        Bot(**{"slug": "robin", field: value})
    with pytest.raises(InvalidInputError, match=rule) as by_assignment:
        setattr(bot, field, value)
    assert by_constructor.value.field == by_assignment.value.field == field


@pytest.mark.parametrize("make", [_circle, _deep])
def test_json_that_has_no_end_is_refused(make: Callable[[], dict[str, object]]) -> None:
    with pytest.raises(InvalidInputError, match="serialisable as JSON"):
        Bot(slug="robin", metadata_=make())


async def test_bad_input_reaches_no_server(wired: Database, wire: Wire, acme: UUID) -> None:
    refused: list[Callable[[BotRepository], Awaitable[object]]] = [
        lambda bots: bots.update(uuid4(), rank=101),
        lambda bots: bots.update(uuid4(), embedding=[0.1]),
        lambda bots: bots.update(uuid4(), colour="red"),
        lambda bots: bots.update(uuid4(), id=uuid4()),
        lambda bots: bots.update(uuid4(), org_id=uuid4()),
        lambda bots: bots.update(uuid4(), updated_at=datetime.now(UTC)),
        lambda bots: bots.update(uuid4()),
        lambda bots: bots.update("not a uuid", rank=1),  # type: ignore[arg-type]
        lambda bots: bots.get("not a uuid"),  # type: ignore[arg-type]
        lambda bots: bots.get_many([uuid4(), 7]),  # type: ignore[list-item]
        lambda bots: bots.delete(7),  # type: ignore[arg-type]
        lambda bots: bots.find(limit=0),
        lambda bots: bots.find(limit=1001),
        lambda bots: bots.find(limit=True),
        lambda bots: bots.find(limit=1.5),  # type: ignore[arg-type]
        lambda bots: bots.list(limit=-1),
        lambda bots: bots.list(cursor="nonsense"),
        lambda bots: bots.list(order_by=Bot.nickname),
        lambda bots: bots.add(Note(bot_id=uuid4(), number=1)),  # type: ignore[arg-type]
        lambda bots: bots.upsert(Bot(slug="robin"), on="no_such_key"),
        lambda bots: bots.upsert(Bot(slug="robin"), on="bots_slug_live", update=["rank"]),
        lambda bots: _drain(bots, batch=0),
        lambda bots: _drain(bots, batch=10_001),
    ]

    async with wired.tenant(acme) as session:
        for work in refused:
            with pytest.raises(InvalidInputError):
                await work(BotRepository(session))
        before = list(wire.statements)
        await BotRepository(session).count()

    assert before == []
    assert any("count" in statement for statement in wire.statements)  # the wire would have shown one


async def _drain(bots: BotRepository, *, batch: int) -> None:
    async for _ in bots.stream(batch=batch):
        pass


async def test_a_core_statement_of_the_callers_own_is_refused_by_the_columns_type(
    wired: Database, wire: Wire, acme: UUID
) -> None:
    async with wired.tenant(acme) as session:
        with pytest.raises(InvalidInputError, match="finite"):
            await session.execute(insert(Bot).values(org_id=acme, slug="robin", embedding=[math.nan, 1, 1]))
        assert wire.statements == []


@pytest.mark.parametrize("org_id", ["nonsense", 7, None, b"\0" * 16])
async def test_an_organization_that_is_no_uuid_is_refused(db: Database, org_id: object) -> None:
    with pytest.raises(InvalidInputError, match="org_id must be a UUID"):
        db.tenant(org_id)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="org_id must be a UUID"):
        db.session_factory(org_id)  # type: ignore[arg-type]


def test_a_field_that_the_model_lacks_is_told_with_those_it_has() -> None:
    with pytest.raises(InvalidInputError, match=r"colour is no field of Bot; it has active, .*slug"):
        validation.check(Bot, "colour", "red")


def test_a_relationship_is_no_field() -> None:
    with pytest.raises(InvalidInputError, match="is no field of Bot"):
        validation.check(Bot, "notes", [])


def test_the_text_of_a_uuid_becomes_a_uuid() -> None:
    ident = uuid4()

    assert Bot(id=str(ident)).id == ident
    assert Org(id=ident.hex).id == ident


def test_the_value_of_an_enum_becomes_its_member() -> None:
    assert Bot(slug="robin", mood="cross").mood is Mood.CROSS


def test_a_number_is_rounded_to_the_columns_scale_and_judged_as_given() -> None:
    assert Bot(slug="robin", score=0.12345).score == Decimal("0.123")
    with pytest.raises(InvalidInputError, match="must lie in"):
        Bot(slug="robin", score=1.0001)


def test_none_is_left_out_where_the_column_has_a_default_or_is_nullable() -> None:
    bot = Bot(slug="robin", nickname=None, rank=None, embedding=None)

    assert all(value is None for value in (bot.nickname, bot.rank, bot.embedding))


def test_a_backslash_before_u0000_is_text_and_no_nul() -> None:
    assert Bot(slug="robin", metadata_={"path": r"C:\u0000"}).metadata_ == {"path": r"C:\u0000"}


@given(st.text(max_size=40))
def test_text_is_refused_exactly_where_postgres_could_not_hold_it(value: str) -> None:
    holdable = "\x00" not in value and not any("\ud800" <= char <= "\udfff" for char in value)

    if holdable:
        assert validation.text("body", value) == value
    else:
        with pytest.raises(InvalidInputError):
            validation.text("body", value)


@given(st.integers() | st.booleans() | st.floats() | st.text(max_size=3) | st.none())
def test_a_whole_number_is_an_int_within_its_bounds_and_nothing_else(value: object) -> None:
    if type(value) is int and 1 <= value <= 1000:
        assert validation.integer("limit", value, 1, 1000) == value
    else:
        with pytest.raises(InvalidInputError, match="limit"):
            validation.integer("limit", value, 1, 1000)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=1))
def test_a_decimal_lies_within_half_a_unit_of_its_scale(value: float) -> None:
    rounded = validation.decimal("score", value, 0, 1, scale=3)

    assert abs(rounded - Decimal(str(value))) <= Decimal("0.0005")
    assert rounded.as_tuple().exponent == -3
