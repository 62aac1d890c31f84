"""Cursors: a row's place in an order, opaque, exact, and refused where they belong to something else."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given, strategies as st
from sqlalchemy import ColumnElement
from sqlalchemy.dialects import postgresql
from toys import Bot, Mood

from ibex_db_core import InvalidInputError
from ibex_db_core.pages import MAX_LIMIT, Order, after, encode_cursor, limit_of

NEWEST = [Order("created_at", Bot.created_at, True), Order("id", Bot.id, True)]  # type: ignore[arg-type]
ID = UUID("00000000-0000-4000-8000-00000000000a")


def bound(condition: ColumnElement[bool]) -> list[object]:
    return list(condition.compile(dialect=postgresql.dialect()).params.values())  # type: ignore[no-untyped-call]


def forged(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


ZONES = st.integers(-720, 720).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=ZONES)  # noqa: DTZ001 - hypothesis's way
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=0, max_size=30)


@given(moment=MOMENTS, ident=st.uuids())
def test_a_moment_and_an_id_come_back_exactly(moment: datetime, ident: UUID) -> None:
    cursor = encode_cursor(NEWEST, SimpleNamespace(created_at=moment, id=ident))

    values = bound(after(NEWEST, cursor, Bot))

    assert set(values) == {moment, ident}
    assert all(value.utcoffset() == moment.utcoffset() for value in values if isinstance(value, datetime))


@given(
    st.fixed_dictionaries(
        {
            "rank": st.integers(-100, 100),
            "visits": st.integers(-(2**63), 2**63 - 1),
            "score": st.decimals(0, 1, places=3),
            "active": st.booleans(),
            "mood": st.sampled_from(Mood),
            "nickname": TEXTS,
        }
    )
)
def test_values_of_every_kind_come_back_exactly(fields: dict[str, object]) -> None:
    for field, value in fields.items():
        order = [Order(field, getattr(Bot, field))]
        cursor = encode_cursor(order, SimpleNamespace(**{field: value}))
        found = bound(after(order, cursor, Bot))
        assert found == [value]
        assert type(found[0]) is type(value)


@given(TEXTS)
def test_a_cursor_is_fit_for_a_url(name: str) -> None:
    cursor = encode_cursor([Order("nickname", getattr(Bot, "nickname"))], SimpleNamespace(nickname=name))  # noqa: B009

    assert all(char.isalnum() or char in "-_" for char in cursor)


def test_mixed_directions_compare_column_by_column() -> None:
    order = [Order("rank", getattr(Bot, "rank"), True), Order("id", getattr(Bot, "id"))]  # noqa: B009
    cursor = encode_cursor(order, SimpleNamespace(rank=3, id=ID))

    said = str(after(order, cursor, Bot))

    assert said.replace("\n", "") == (
        "ibex_core.bots.rank <= :param_1 AND "
        "(ibex_core.bots.rank < :param_1 OR ibex_core.bots.rank = :param_1 AND ibex_core.bots.id > :param_2)"
    )


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "nonsense",
        "ü",
        "\ud800",
        "=====",
        7,
        b"abc",
        forged(),
        forged("-created_at,-id"),
        forged("-created_at,-id", 1, 2, 3),
        forged("id", str(ID)),
        forged("-created_at,-id", "2026-01-01", str(ID)),
        forged("-created_at,-id", {"t": "soon"}, str(ID)),
        forged("-created_at,-id", {"t": 7}, str(ID)),
        forged("-created_at,-id", {"t": "2026-01-01"}, str(ID)),
        forged("-created_at,-id", {"n": {}}, str(ID)),
        forged("-created_at,-id", {"n": "1"}, str(ID)),
        forged("-created_at,-id", {}, str(ID)),
        forged("-created_at,-id", {"t": "2026-01-01T00:00:00+00:00"}, "no id"),
        forged("-created_at,-id", {"t": "2026-01-01T00:00:00+00:00"}, None),
        forged("-created_at,-id", None, str(ID)),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        base64.urlsafe_b64encode(b'{"a": 1}').decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
    ids=range(24),
)
def test_what_is_no_cursor_of_this_listing_is_bad_input(cursor: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        after(NEWEST, cursor, Bot)  # type: ignore[arg-type]

    assert caught.value.field == "cursor"


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="replace")))
def test_no_bytes_whatever_break_the_reader(noise: bytes) -> None:
    with pytest.raises(InvalidInputError):
        after(NEWEST, base64.urlsafe_b64encode(noise).decode(), Bot)


def test_another_orders_cursor_is_told_with_both_orders() -> None:
    with pytest.raises(InvalidInputError, match=r"belongs to another order \(id,rank\), not -created_at,-id"):
        after(NEWEST, forged("id,rank", 1, 2), Bot)


@pytest.mark.parametrize("limit", [0, -1, MAX_LIMIT + 1, True, 1.5, "10", None])
def test_a_limit_out_of_range_is_bad_input(limit: object) -> None:
    with pytest.raises(InvalidInputError, match="limit"):
        limit_of(limit)


def test_a_limit_within_range_is_kept() -> None:
    assert (limit_of(1), limit_of(MAX_LIMIT)) == (1, 1000)


def test_a_moment_of_utc_stays_one() -> None:
    cursor = encode_cursor(NEWEST, SimpleNamespace(created_at=datetime(2026, 1, 1, tzinfo=UTC), id=ID))

    assert datetime(2026, 1, 1, tzinfo=UTC) in bound(after(NEWEST, cursor, Bot))
