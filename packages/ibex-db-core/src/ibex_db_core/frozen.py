"""Frozen dataclasses where many are made: written open, then closed.

The constructor of a frozen dataclass asks object.__setattr__ for each field,
which costs a hit of a search four times what setting its slots does (decision
0050).
"""

from dataclasses import MISSING, field, fields, make_dataclass
from typing import TypeVar, cast

__all__ = ["opened"]

T = TypeVar("T")


def opened(cls: type[T]) -> type[T]:
    """Return a frozen dataclass's twin that is not frozen; ``made.__class__ = cls`` closes what it made.

    Args:
        cls: with slots, and nothing in __post_init__.
    """
    plain = [
        (one.name, object, field(default=one.default) if one.default is not MISSING else field())
        for one in fields(cls)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - any dataclass
    ]
    return cast("type[T]", make_dataclass(cls.__name__, plain, slots=True))
