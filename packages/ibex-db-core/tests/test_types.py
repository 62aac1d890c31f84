"""Column types: vectors that travel in binary and come back as float32, closed sets, JSON objects."""

import math
from array import array
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import asyncpg
import numpy as np
import pgvector
import pytest
from hypothesis import given, strategies as st
from sqlalchemy import make_url, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from toys import Bot, BotRepository, Mood
from wire import Wire

from ibex_db_core import Database, InvalidInputError, VectorLike
from ibex_db_core.types import Vector, pack_vector

# In double precision none of them is what float32 makes of it.
NUMBERS = [0.1, -0.2, 0.3]
AS_FLOAT32 = array("f", NUMBERS).tolist()

SPELLINGS: dict[str, VectorLike] = {
    "list": NUMBERS,
    "tuple": tuple(NUMBERS),
    "array f": array("f", NUMBERS),
    "array d": array("d", NUMBERS),
    "numpy float32": np.array(NUMBERS, dtype=np.float32),
    "numpy float64": np.array(NUMBERS, dtype=np.float64),
    "numpy strided": np.array([*NUMBERS, *NUMBERS]).reshape(2, 3).T.copy().T[0],
    "pgvector": pgvector.Vector(NUMBERS),
}


@pytest.fixture
async def plain(service_address: str) -> AsyncIterator[AsyncEngine]:
    """An engine that somebody else made: no codec, no BEGIN of ours."""
    engine = create_async_engine(service_address.replace("postgresql://", "postgresql+asyncpg://"))
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
async def test_every_spelling_of_a_vector_comes_back_as_a_list_of_float32(
    db: Database, acme: UUID, spelling: VectorLike
) -> None:
    async with db.tenant(acme) as session:
        added = await BotRepository(session).add(Bot(slug="robin", embedding=spelling))

    async with db.tenant(acme) as session:
        found = await BotRepository(session).get(added.id)
    assert type(found.embedding) is list
    assert found.embedding == AS_FLOAT32


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
async def test_every_spelling_of_a_vector_may_be_searched_for(db: Database, acme: UUID, spelling: VectorLike) -> None:
    async with db.tenant(acme) as session:
        await BotRepository(session).add(Bot(slug="robin", embedding=NUMBERS))

        distance = await session.scalar(select(Bot.embedding.cosine_distance(spelling)))

    assert distance == pytest.approx(0.0, abs=1e-6)


async def test_rule_22_vectors_travel_in_binary_both_ways_on_our_engine(
    wired: Database, wire: Wire, acme: UUID
) -> None:
    async with wired.tenant(acme) as session:
        added = await BotRepository(session).add(Bot(slug="robin", embedding=NUMBERS))
    async with wired.tenant(acme) as session:
        await BotRepository(session).get(added.id)

    binary = pgvector.Vector(NUMBERS).to_binary()
    answered = b"".join(message.body for message in wire.messages if message.origin == "server")
    assert binary in wire.sent
    assert binary in answered
    assert b"[0.1" not in wire.sent + answered


async def test_a_plain_engine_sends_and_reads_vectors_as_text(
    wire: Wire, acme: UUID, service_address: str, admin: asyncpg.Connection
) -> None:
    address = wire.address(make_url(service_address)).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(address)
    async with AsyncSession(engine) as session:
        added = await BotRepository(session, acme).add(Bot(slug="robin", embedding=NUMBERS))
        bot_id = added.id
        await session.commit()
        found = await BotRepository(session, acme).get(bot_id)
        embedding = found.embedding
    await engine.dispose()

    assert embedding == pytest.approx(NUMBERS)
    assert b"[0.1" in wire.sent  # so the test of the binary format above would see text
    kept = await admin.fetchval("SELECT embedding::text FROM ibex_core.bots WHERE id = $1", bot_id)
    assert kept == "[0.1,-0.2,0.3]"


async def test_a_missing_vector_is_none_in_both_formats(db: Database, plain: AsyncEngine, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        added = await BotRepository(session).add(Bot(slug="robin"))

    async with db.tenant(acme) as session:
        assert (await BotRepository(session).get(added.id)).embedding is None
    async with AsyncSession(plain) as session:
        assert (await BotRepository(session, acme).get(added.id)).embedding is None


async def test_a_text_query_reads_vectors_through_the_codec_too(db: Database, acme: UUID) -> None:
    async with db.tenant(acme) as session:
        found = await session.scalar(text("SELECT '[1,2,3]'::public.vector"))

    assert found == pgvector.Vector([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ([0.1, 0.2], "exactly 3 dimensions"),
        ([0.1, 0.2, 0.3, 0.4], "exactly 3 dimensions"),
        ([], "at least one dimension"),
        ([0.1, math.nan, 0.3], "finite"),
        ([0.1, math.inf, 0.3], "finite"),
        ([math.inf, -math.inf, 0.3], "finite"),
        ([1e39, 0.2, 0.3], "finite|float32"),
        (pgvector.Vector([math.nan, 0.2, 0.3]), "finite"),
        ([0.0, 0.0, 0.0], "zero vector"),
        ([1e-60, 0.0, 0.0], "zero vector"),
        (np.zeros(3), "zero vector"),
        (np.ones((1, 3)), "one axis"),
        (np.float32(1.0), "one axis"),
        ("abc", "sequence of numbers"),
        (b"abcdefghijkl", "sequence of numbers"),
        (bytearray(b"abcdefghijkl"), "sequence of numbers"),
        ({0.1: 0, 0.2: 0, 0.3: 0}, "sequence of numbers"),
        ({0.1, 0.2, 0.3}, "sequence of numbers"),
        (["0.1", "0.2", "0.3"], "float32 numbers"),
        ([None, 0.2, 0.3], "float32 numbers"),
        ([[0.1], [0.2], [0.3]], "float32 numbers"),
        (0.5, "float32 numbers"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_vector_of_the_column_is_refused_when_it_is_assigned(value: object, rule: str) -> None:
    with pytest.raises(InvalidInputError, match=rule) as caught:
        Bot(slug="robin", embedding=value)

    assert caught.value.field == "embedding"


@pytest.mark.parametrize(
    ("value", "got"),
    [([0.1, math.nan, 0.3], "NaN or infinity"), ([0.0, 0.0, 0.0], "all zeros"), ([1e30, 0.0, 0.0], "1.0e+30")],
)
def test_what_is_wrong_with_a_vector_is_told_without_its_numbers(value: list[float], got: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        pack_vector(value)

    assert str(caught.value).endswith(f"; got {got}")


async def test_a_bad_vector_in_a_query_is_refused_before_sql(wired: Database, wire: Wire, acme: UUID) -> None:
    async with wired.tenant(acme) as session:
        with pytest.raises(InvalidInputError, match="exactly 3 dimensions"):
            await session.scalar(select(Bot.embedding.cosine_distance([0.1])))
        assert wire.statements == []


def test_more_dimensions_than_pgvector_holds_are_refused_where_the_column_sets_none() -> None:
    with pytest.raises(InvalidInputError, match="at most 16,000"):
        pack_vector([1.0] * 16_001)
    with pytest.raises(InvalidInputError, match="at most 16,000"):
        pack_vector([1.0] * 70_000)


def _floats(lowest: float, highest: float) -> st.SearchStrategy[float]:
    return st.floats(lowest, highest, width=32)


def _lists(first: st.SearchStrategy[float], others: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.tuples(first, st.lists(others, max_size=50)).map(lambda drawn: [drawn[0], *drawn[1]])


# Powers of two just within, and just beyond, the [1e-15, 1e16] of the largest number.
MEASURED = _lists(_floats(2.0**-49, 2.0**53), _floats(-(2.0**53), 2.0**53))
TOO_SHORT = st.lists(_floats(-(2.0**-50), 2.0**-50), min_size=1, max_size=50)
TOO_LONG = _lists(_floats(2.0**54, 2.0**127), _floats(-(2.0**127), 2.0**127))


@given(MEASURED)
def test_packing_keeps_every_float32(numbers: list[float]) -> None:
    packed = pack_vector(numbers)

    assert packed.to_list() == numbers
    assert packed == pgvector.Vector(numbers)
    assert pgvector.Vector.from_binary(packed.to_binary()).to_list() == numbers


@given(TOO_SHORT | TOO_LONG)
def test_a_vector_that_pgvector_could_not_measure_is_refused(numbers: list[float]) -> None:
    with pytest.raises(InvalidInputError):
        pack_vector(numbers)


def test_a_vector_column_says_its_dimension_in_ddl() -> None:
    assert Vector(384).get_col_spec() == "VECTOR(384)"


async def test_a_closed_set_comes_back_as_its_enum_and_is_held_by_a_check(
    db: Database, acme: UUID, admin: asyncpg.Connection
) -> None:
    async with db.tenant(acme) as session:
        added = await BotRepository(session).add(Bot(slug="robin", mood="cross"))
        bot_id = added.id

    async with db.tenant(acme) as session:
        assert (await BotRepository(session).get(bot_id)).mood is Mood.CROSS
    assert await admin.fetchval("SELECT mood FROM ibex_core.bots WHERE id = $1", bot_id) == "cross"
    with pytest.raises(asyncpg.CheckViolationError, match="bots_mood_known"):
        await admin.execute("UPDATE ibex_core.bots SET mood = 'furious' WHERE id = $1", bot_id)


async def test_numbers_moments_and_json_come_back_as_they_were(db: Database, acme: UUID) -> None:
    nested: dict[str, object] = {"a": [1, 2.5, None, True, {"b": "ü \\u0000"}], "empty": {}}
    async with db.tenant(acme) as session:
        added = await BotRepository(session).add(Bot(slug="robin", score=0.1, metadata_=nested, visits=2**40))

    async with db.tenant(acme) as session:
        found = await BotRepository(session).get(added.id)
    assert found.score == Decimal("0.100")
    assert found.metadata_ == nested
    assert found.visits == 2**40
    assert found.created_at.tzinfo is not None
    assert abs((datetime.now(UTC) - found.created_at).total_seconds()) < 60
