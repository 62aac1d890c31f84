"""The examples in docstrings, run as they stand: ``>>>`` lines, in which ``await`` and ``async with`` work.

A wheel's test::

    EXAMPLES = examples("ibex_db_tenancy")

    @pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
    async def test_the_example_runs(example: DocTest, names: dict[str, object]) -> None:
        await run(example, names)

``names`` is what an example may use without saying where it comes from.  Every
docstring is one example with names of its own, and with a database of its own where
the fixture behind ``names`` gives it one.  Output is compared as doctest does:
``...`` stands for anything, a ``Traceback`` for an exception.
"""

import ast
import contextlib
import importlib
import inspect
import io
import pkgutil
import traceback
from collections.abc import Iterator
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, DocTest, DocTestFinder, Example, OutputChecker
from types import ModuleType

import pytest

_FLAGS = ELLIPSIS | NORMALIZE_WHITESPACE


def examples(package: str) -> list[DocTest]:
    """Return the docstrings of a package that hold examples, by name."""
    finder = DocTestFinder()
    found = [test for module in _modules(package) for test in finder.find(module, module.__name__) if test.examples]
    return sorted(found, key=lambda test: test.name)


def without_example(*classes: type) -> list[str]:
    """Return the public verbs that classes themselves define and whose docstrings hold no example."""
    return [
        f"{cls.__name__}.{name}"
        for cls in classes
        for name, value in vars(cls).items()
        if not name.startswith("_") and inspect.isroutine(value) and ">>>" not in (inspect.getdoc(value) or "")
    ]


async def run(test: DocTest, names: dict[str, object]) -> None:
    """Run one docstring's examples, one after the other, and fail at the first that does not say what it promises."""
    scope = dict(names)
    for example in test.examples:
        got = await _output(test, example, scope)
        if not OutputChecker().check_output(example.want, got, _FLAGS):
            told = OutputChecker().output_difference(example, got, _FLAGS)
            place = f"{test.filename}:{(test.lineno or 0) + example.lineno + 1}"
            pytest.fail(f"{test.name}, {place}\n{example.source}{told}", pytrace=False)


async def _output(test: DocTest, example: Example, scope: dict[str, object]) -> str:
    code = compile(example.source, f"<{test.name}>", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            result: object = eval(code, scope)  # noqa: S307 - our own docstrings
            if inspect.isawaitable(result):
                await result
    except Exception as exc:
        if example.exc_msg is None:
            raise
        # As in the docstring: the last line, whatever stands between.
        header = example.want.partition("\n")[0]
        return f"{header}\n{traceback.format_exception_only(exc)[-1]}"
    return printed.getvalue()


def _modules(package: str) -> Iterator[ModuleType]:
    top = importlib.import_module(package)
    yield top
    for found in pkgutil.walk_packages(getattr(top, "__path__", ()), f"{package}."):
        if ".migrations" not in found.name and not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)
