"""What may be told of a verb's result: how many rows, and what its wheel says of its own types.

A wheel adds to it: ``@seen.register`` on a function of its result's type.  What
is told goes to a tracing backend, so it is numbers, names of plans and
outcomes: never a value that a user gave or a row holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import cast

from ibex_db_core.base import Base
from ibex_db_core.errors import IbexError
from ibex_db_core.pages import Page

__all__ = ["Fact", "Measure", "Seen", "Verb", "kind_of", "seen"]

Fact = str | bool | int | float


@dataclass(frozen=True, slots=True)
class Verb:
    """A call of a verb, as far as its result's facts depend on it.

    Attributes:
        name: of the verb.
        seconds: that it took.
        asked: its ``limit``; None: it has none.
        arguments: by keyword, for what was asked for and never for telling them.
    """

    name: str
    seconds: float
    asked: int | None
    arguments: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Measure:
    """One value for one metric."""

    metric: str
    value: float
    attributes: Mapping[str, Fact] = field(default_factory=dict[str, Fact])


@dataclass(frozen=True, slots=True)
class Seen:
    """What may be told of a result.

    Attributes:
        rows: that the caller got; None: it got none.
        attributes: of the span.
        measures: for metrics.
    """

    rows: int | None = None
    attributes: Mapping[str, Fact] = field(default_factory=dict[str, Fact])
    measures: Sequence[Measure] = ()


@singledispatch
def seen(result: object, verb: Verb) -> Seen:  # noqa: ARG001 - for those that are registered
    """Return what may be told of a result: of one that nobody knows, nothing."""
    return Seen()


@seen.register
def _row(result: Base, verb: Verb) -> Seen:  # noqa: ARG001
    return Seen(rows=1)


@seen.register(list)
@seen.register(tuple)
def _rows(result: Sequence[object], verb: Verb) -> Seen:  # noqa: ARG001
    return Seen(rows=len(result))


@seen.register
def _page(result: Page, verb: Verb) -> Seen:  # type: ignore[type-arg]  # noqa: ARG001 - dispatch takes the bare class
    return Seen(rows=len(cast("Page[object]", result).items))


@seen.register
def _mapping(result: dict, verb: Verb) -> Seen:  # type: ignore[type-arg]  # noqa: ARG001
    return Seen(rows=len(cast("dict[object, object]", result)))


def kind_of(exc: BaseException) -> str:
    """Return the kind of an error, without a word of its message."""
    kind = type(exc)
    return (
        kind.__name__
        if isinstance(exc, IbexError) or kind.__module__ == "builtins"
        else (f"{kind.__module__}.{kind.__qualname__}")
    )
