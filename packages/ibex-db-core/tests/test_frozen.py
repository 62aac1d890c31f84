"""What is made open and closed afterwards is what the constructor makes."""

from dataclasses import FrozenInstanceError, dataclass, replace

import pytest

from ibex_db_core.frozen import opened


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 0


def made(x: int) -> Point:
    point = opened(Point)(x)
    point.__class__ = Point
    return point


def test_it_is_the_same_value() -> None:
    assert made(1) == Point(1)
    assert hash(made(1)) == hash(Point(1))
    assert repr(made(1)) == repr(Point(1))
    assert replace(made(1), y=2) == Point(1, 2)
    assert type(made(1)) is Point


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        made(1).x = 2  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
