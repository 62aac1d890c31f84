"""Keyset pagination: pages that neither skip nor repeat a row while others are written."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Generic, TypeVar, cast
from uuid import UUID

from sqlalchemy import ColumnElement, and_, bindparam, or_
from sqlalchemy.orm import DeclarativeBase

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError

T_co = TypeVar("T_co", covariant=True)

MAX_LIMIT = 1000

_NO_CURSOR = "must be a next_cursor that a page gave"


@dataclass(frozen=True, slots=True)
class Page(Generic[T_co]):
    """One page of rows.

    Attributes:
        items: in the order asked for.
        next_cursor: give it to the next call as ``cursor``; None at the end.
    """

    items: Sequence[T_co]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Order:
    """One column of an order; pages need columns that are never NULL."""

    key: str
    column: ColumnElement[object]
    descending: bool = False

    @property
    def clause(self) -> ColumnElement[object]:
        """The ORDER BY element."""
        return self.column.desc() if self.descending else self.column.asc()


def encode_cursor(order: Sequence[Order], row: object) -> str:
    """Name a row's place in an order; opaque to callers, valid for that order only."""
    parts = [_signature(order), *(_to_json(getattr(row, step.key)) for step in order)]
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode().rstrip("=")


def after(order: Sequence[Order], cursor: str, model: type[DeclarativeBase]) -> ColumnElement[bool]:
    """Return the condition "comes after the cursor's row".

    Raises:
        InvalidInputError: it is no cursor of this listing.
    """
    if not isinstance(cast("object", cursor), str):
        raise InvalidInputError("cursor", cursor, _NO_CURSOR)
    try:
        parts = cast("object", json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError("cursor", cursor, _NO_CURSOR) from exc
    if not isinstance(parts, list) or len(found := cast("list[object]", parts)) != len(order) + 1:
        raise InvalidInputError("cursor", cursor, "must be a next_cursor of this listing")
    if found[0] != _signature(order):
        raise InvalidInputError("cursor", cursor, f"belongs to another order ({found[0]}), not {_signature(order)}")
    # Bound with the column's type: a bare True or False would not compare.
    values = [
        bindparam(None, _checked(model, step.key, value), type_=step.column.type, unique=True)
        for step, value in zip(order, found[1:], strict=True)
    ]
    # a > x OR (a = x AND b > y) ...: row comparison cannot mix directions.
    branches: list[ColumnElement[bool]] = []
    for at, step in enumerate(order):
        beyond = step.column < values[at] if step.descending else step.column > values[at]
        same = [order[i].column == values[i] for i in range(at)]
        branches.append(and_(*same, beyond))
    # Said once more of the first column alone: an index starts there, and not at the first page's first row.
    first, value = order[0], values[0]
    bound = first.column <= value if first.descending else first.column >= value
    return and_(bound, or_(*branches))


def limit_of(limit: object) -> int:
    """Check a page's size, 1 to MAX_LIMIT."""
    return validation.integer("limit", limit, 1, MAX_LIMIT)


def _signature(order: Sequence[Order]) -> str:
    return ",".join(f"{'-' if step.descending else ''}{step.key}" for step in order)


def _to_json(value: object) -> object:
    if isinstance(value, datetime):
        return {"t": value.isoformat()}
    if isinstance(value, Decimal):
        return {"n": str(value)}
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, StrEnum):
        return value.value
    return value


def _checked(model: type[DeclarativeBase], field: str, value: object) -> object:
    """Return one value of a cursor as its column takes it; a cursor may be forged."""
    try:
        found = validation.check(model, field, _from_json(value))
    except (KeyError, TypeError, ValueError, ArithmeticError) as exc:
        raise InvalidInputError("cursor", value, _NO_CURSOR) from exc
    if found is None:
        raise InvalidInputError("cursor", value, _NO_CURSOR)
    return found


def _from_json(value: object) -> object:
    if isinstance(value, dict):
        named = cast("dict[str, str]", value)
        return datetime.fromisoformat(named["t"]) if "t" in named else Decimal(named["n"])
    return value
