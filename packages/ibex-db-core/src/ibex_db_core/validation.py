"""Bad input is refused when it is assigned, before any SQL, by one mechanism.

Every mapped attribute is checked against its own column: the type, the length,
the range in ``info``.  ``Memory(confidence=2)``, ``memory.confidence = 2`` and a
repository's ``update(id, confidence=2)`` all fail alike, with InvalidInputError.

Column ``info`` keys understood here: ``range`` = (lowest, highest), inclusive;
``length`` = (shortest, longest) in characters; ``pattern`` = (regex, what it means).
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from functools import cache
from typing import cast
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Enum, Integer, Numeric, String, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapper

from ibex_db_core.errors import InvalidInputError
from ibex_db_core.types import Vector, VectorLike, pack_vector

Check = Callable[[object], object]

_INT4 = (-(2**31), 2**31 - 1)
_INT8 = (-(2**63), 2**63 - 1)


def check(model: type[DeclarativeBase], field: str, value: object) -> object:
    """Return value as the column will store it.

    Raises:
        InvalidInputError: the model has no such field, or the value breaks its rule.
    """
    checks = _checks(model)
    if field not in checks:
        raise InvalidInputError(field, value, f"is no field of {model.__name__}; it has {', '.join(sorted(checks))}")
    return checks[field](value)


@cache
def _checks(model: type[DeclarativeBase]) -> dict[str, Check]:
    mapper = cast("Mapper[object]", model.__mapper__)
    return {
        attribute.key: checker(attribute.key, cast("Column[object]", attribute.columns[0]))
        for attribute in mapper.column_attrs
        if isinstance(attribute.columns[0], Column)
    }


def checker(field: str, column: "Column[object]") -> Check:
    """Return the check for one column: value in, value as stored out, InvalidInputError where it breaks a rule."""
    if column.computed is not None:
        return lambda value: _generated(field, value)
    rule = _rule(field, column)
    generated = column.default is not None or column.server_default is not None or column.primary_key

    def run(value: object) -> object:
        if value is None:
            if column.nullable or generated:
                return None  # NULL, or "left out": the default fills it, and NOT NULL has the last word
            raise InvalidInputError(field, value, "is required")
        return rule(value)

    return run


def _generated(field: str, value: object) -> object:
    raise InvalidInputError(field, value, "is made by the database: leave it out")


def _rule(field: str, column: "Column[object]") -> Check:
    kind = column.type
    if isinstance(kind, Vector):
        return lambda value: _vector(field, kind.dim, value)
    if isinstance(kind, Enum):
        return lambda value: enum_member(field, cast("type[StrEnum]", kind.enum_class), value)
    if isinstance(kind, String):
        shortest, longest = column.info.get("length", (0, kind.length))
        pattern = column.info.get("pattern")
        return lambda value: text(field, value, shortest=shortest, longest=longest, pattern=pattern)
    if isinstance(kind, DateTime):
        return lambda value: moment(field, value)
    if isinstance(kind, Boolean):
        return lambda value: _instance(field, value, bool, "must be True or False")
    if isinstance(kind, Integer):
        bounds = column.info.get("range", _INT8 if isinstance(kind, BigInteger) else _INT4)
        return lambda value: integer(field, value, *bounds)
    if isinstance(kind, Numeric):
        bounds = column.info.get("range", (-math.inf, math.inf))
        return lambda value: decimal(field, value, *bounds, scale=kind.scale)
    if isinstance(kind, Uuid):
        return lambda value: uuid(field, value)
    if isinstance(kind, JSONB):
        return lambda value: json_object(field, value)
    return lambda value: value


def _instance(field: str, value: object, wanted: type, rule: str) -> object:
    if not isinstance(value, wanted):
        raise InvalidInputError(field, value, rule)
    return value


def _vector(field: str, dim: int | None, value: object) -> list[float]:
    return pack_vector(cast("VectorLike", value), dim=dim, field=field).to_list()


def text(
    field: str,
    value: object,
    *,
    shortest: int = 0,
    longest: int | None = None,
    pattern: tuple[str, str] | None = None,
) -> str:
    """Check a string: no NUL byte and no lone surrogate (Postgres stores neither), length in characters."""
    if not isinstance(value, str):
        raise InvalidInputError(field, value, "must be a string")
    if "\x00" in value:
        raise InvalidInputError(field, value, "must not contain a NUL byte, which Postgres text cannot hold")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise InvalidInputError(field, value, "must be valid Unicode, without lone surrogates") from exc
    if shortest and not value.strip():
        raise InvalidInputError(field, value, "must not be blank")
    if len(value) < shortest:
        raise InvalidInputError(field, value, f"must have at least {shortest} characters, not {len(value)}")
    if longest is not None and len(value) > longest:
        raise InvalidInputError(field, value, f"must have at most {longest} characters, not {len(value)}")
    if pattern is not None and not re.fullmatch(pattern[0], value):
        raise InvalidInputError(field, value, f"must be {pattern[1]}")
    return value


def enum_member(field: str, members: type[StrEnum], value: object) -> StrEnum:
    """Return the member for a member or its value."""
    try:
        return members(cast("str", value))
    except ValueError:
        allowed = ", ".join(member.value for member in members)
        # Python's own error says no more, and quotes the value.
        raise InvalidInputError(field, value, f"must be one of {allowed}") from None


def moment(field: str, value: object) -> datetime:
    """Check an aware datetime."""
    if not isinstance(value, datetime):
        raise InvalidInputError(field, value, "must be a datetime")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidInputError(field, value, "must carry a time zone, for example datetime.now(UTC)")
    try:
        value.astimezone(UTC)
    except OverflowError as exc:
        raise InvalidInputError(field, value, "must lie in the years 1 to 9999 in UTC too") from exc
    return value


def integer(field: str, value: object, lowest: float, highest: float) -> int:
    """Check a whole number within bounds, both inclusive."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInputError(field, value, "must be a whole number")
    if not lowest <= value <= highest:
        raise InvalidInputError(field, value, f"must lie in [{lowest}, {highest}]")
    return value


def decimal(field: str, value: object, lowest: float, highest: float, *, scale: int | None = None) -> Decimal:
    """Return the exact decimal, rounded to the column's scale; bounds are inclusive."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise InvalidInputError(field, value, "must be a number")
    try:
        exact = number = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
        if not number.is_finite():
            raise InvalidInputError(field, value, "must be finite")
        if scale is not None:
            number = number.quantize(Decimal(1).scaleb(-scale))
    except InvalidOperation as exc:
        raise InvalidInputError(field, value, "has too many digits") from exc
    if not lowest <= exact <= highest:
        raise InvalidInputError(field, value, f"must lie in [{lowest}, {highest}]")
    return number


def number(field: str, value: object, lowest: float, highest: float) -> float:
    """Check a finite number within bounds, both inclusive."""
    return float(decimal(field, value, lowest, highest))


def uuid(field: str, value: object) -> UUID:
    """Return the UUID for a UUID or its text."""
    if isinstance(value, UUID):
        return value
    if isinstance(value, str):
        try:
            return UUID(value)
        except ValueError as exc:
            raise InvalidInputError(field, value, "must be a UUID") from exc
    raise InvalidInputError(field, value, "must be a UUID")


def uuids(field: str, value: object) -> list[UUID]:
    """Return the UUIDs of several ids, in the order given; one alone is no several."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise InvalidInputError(field, value, "must be a list of UUIDs, or another iterable of them")
    return [uuid(field, ident) for ident in cast("Iterable[object]", value)]


def json_object(field: str, value: object) -> dict[str, object]:
    """Check a JSON object that Postgres can hold: string keys, finite numbers, no NUL."""
    if not isinstance(value, dict):
        raise InvalidInputError(field, value, "must be a dict (a JSON object)")
    found = cast("dict[str, object]", value)
    try:
        _json_value(field, found)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        if isinstance(exc, InvalidInputError):
            raise
        raise InvalidInputError(field, found, f"must be serialisable as JSON ({exc})") from exc
    return found


def _json_value(field: str, value: object) -> None:
    """Refuse at any depth what json.dumps lets through: a key that it would turn into text, a NUL."""
    if isinstance(value, str):
        if "\x00" in value:
            raise InvalidInputError(field, value, "must not contain a NUL character, which jsonb cannot hold")
    elif isinstance(value, dict):
        for key, item in cast("dict[object, object]", value).items():
            if not isinstance(key, str):
                raise InvalidInputError(field, cast("object", value), "must have string keys only")
            _json_value(field, key)
            _json_value(field, item)
    elif isinstance(value, (list, tuple)):
        for item in cast("list[object]", value):
            _json_value(field, item)
