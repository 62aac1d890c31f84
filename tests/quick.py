"""Which cases of a test the quick run makes: some, of many that show the same elsewhere."""

from collections.abc import Callable, Container, Iterable
from typing import TypeVar

import pytest

Case = TypeVar("Case")


def parametrize(
    name: str, cases: Iterable[Case], *, quick: Container[Case], ids: Callable[[Case], str] | None = None
) -> pytest.MarkDecorator:
    """Make a test of each case, and mark as long those that are not among the quick ones."""
    parameters = [pytest.param(case, marks=() if case in quick else pytest.mark.long) for case in cases]
    return pytest.mark.parametrize(name, parameters, ids=ids)
