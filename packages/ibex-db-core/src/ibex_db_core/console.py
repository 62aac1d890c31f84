"""What the commands of `ibex-db` say, to people and to machines; needs the ``cli`` extra.

A command builds one `Result`, a dataclass: its fields are the JSON document,
its ``__rich__`` is what a person reads.  `Output` decides which of the two::

    @dataclass(frozen=True)
    class Counted(Result):
        rows: int

        def __rich__(self) -> RenderableType:
            return f"{self.rows} rows"

    def count(url: Url = None, as_json: AsJson = False, debug: Debug = False) -> None:
        async def work() -> Counted:
            async with connect(url) as db:                       # ibex_db_core.cli.options
                with output.progress("counting") as told: ...    # told("half way")
                return Counted(...)

        output = Output(as_json=as_json, debug=debug)
        output.run(work)

`Output`    run(work)        asyncio.run(work()), show what it returns, leave with the exit code
            show(result)     the result on stdout, once; `run` does it for what work returns
            progress(text)   a spinner on a terminal, lines elsewhere; nothing with --json
            bar()            the same with numbers: the function given tells what, how much, of how much
            note(text)       a line for people on stderr; nothing with --json
            warn(text)       a line on stderr, always
            log              the rich Console of stderr, for progress bars (disable=output.as_json)
`Result`    exit_code        0, or FOUND where a check found something
`table`     the one look of our tables

Strings are printed as they are: Rich's [markup] is off, styles go through ``rich.text.Text``.
"""

import asyncio
import json
import sys
import traceback
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from typing import Any, cast

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from ibex_db_core.errors import UNSHOWN, ConflictError, IbexError, InvalidInputError, Shown, size_of

__all__ = ["CANCELLED", "DEFECT", "EXIT_CODES", "FAILED", "FOUND", "Output", "Result", "Tell", "console", "table"]

Tell = Callable[[str, int, int | None], None]
"""What goes on, how much of it is done, and of how much; None: nobody knows."""

# 2 is the framework's own, for a command line that it does not understand.
FOUND, FAILED, DEFECT, CANCELLED = 1, 3, 4, 130

EXIT_CODES = (
    "Exit codes: 0 fine; 1 a check found something; 2 the command line is wrong; "
    "3 ibex-db or the database refused, and says what to do; 4 a defect in ibex-db; 130 cancelled."
)

# Nobody's terminal: wide enough that a table piped into grep keeps one row on one line.
_PIPED_WIDTH = 200


class Result:
    """What a command found out; subclasses are dataclasses."""

    @property
    def exit_code(self) -> int:
        """0, unless a check found something: then FOUND."""
        return 0

    @abstractmethod
    def __rich__(self) -> RenderableType:
        """Return what a person reads."""

    def facts(self) -> object:
        """Return what a machine reads: by default every field."""
        return asdict(cast("Any", self))


class Output:
    """Where one command's words go: stdout for its result, stderr for all else."""

    def __init__(self, *, as_json: bool = False, debug: bool = False) -> None:
        self.as_json = as_json
        self.debug = debug
        self.log = console(stderr=True)

    def run(self, work: Callable[[], Coroutine[Any, Any, Result | None]]) -> None:
        """Run a command in an event loop of its own and show its result.

        Args:
            work: called before the loop runs, so what it does before it returns the
                coroutine may block: asking a person, for example.

        Raises:
            typer.Exit: always; it carries the exit code.
        """
        try:
            result = asyncio.run(work())
        except KeyboardInterrupt:
            self.note("Cancelled.")
            raise typer.Exit(CANCELLED) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as exc:
            # Cancelling a migration may break its connection, and the complaint about that hides the Ctrl-C.
            if isinstance(exc.__context__, asyncio.CancelledError):
                raise typer.Exit(CANCELLED) from None
            self._fail(exc)
            raise typer.Exit(FAILED if isinstance(exc, IbexError) else DEFECT) from exc
        if result is not None:
            self.show(result)
        raise typer.Exit(result.exit_code if result is not None else 0)

    def show(self, result: Result) -> None:
        """Print a result on stdout; with --json that is its only document, so call it once."""
        if self.as_json:
            _print_json(result.facts())
        else:
            # In a group, because print() alone would join a Text to others and forget its no_wrap.
            console().print(Group(result), crop=False)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Tell a person something on stderr; machines are not told."""
        if not self.as_json:
            self.log.print(Text(text, style="dim"), soft_wrap=not self.log.is_terminal)

    def warn(self, text: str) -> None:
        """Say on stderr what must not be missed."""
        warn(text)

    @contextmanager
    def progress(self, text: str) -> Generator[Callable[[str], None]]:
        """Show that work goes on; the function given tells a step of it."""
        if self.as_json or not self.log.is_terminal:
            self.note(text)
            yield self.note
            return
        with self.log.status(Text(text)) as status:
            yield lambda step: status.update(Text(step))

    @contextmanager
    def bar(self) -> Generator[Tell]:
        """Show one bar on a terminal, a line for each step elsewhere, and nothing to machines."""
        if self.as_json or not self.log.is_terminal:
            yield self._lines()
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
        with Progress(*columns, TimeElapsedColumn(), console=self.log, transient=True) as progress:
            task = progress.add_task("", total=None, told="")

            def tell(what: str, done: int, of: int | None) -> None:
                told = "" if of is None else f"{done:,} of {of:,}"
                progress.update(task, description=what, completed=done, told=told)
                progress.tasks[0].total = of  # update() takes no None for "nobody knows"

            yield tell

    def _lines(self) -> Tell:
        last = ""

        def tell(what: str, _done: int, _of: int | None) -> None:
            nonlocal last
            if what != last:
                last = what
                self.note(what)

        return tell

    def _fail(self, exc: Exception) -> None:
        ours = isinstance(exc, IbexError)
        if self.debug or not ours:
            traceback.print_exception(exc)
        if self.as_json:
            facts = _facts(exc) if isinstance(exc, IbexError) else {}
            _print_json({"error": {**facts, "type": type(exc).__name__, "message": str(exc)}})
        elif not ours:
            self.log.print(f"error: this is a defect in ibex-db, please report it: {exc!r}", soft_wrap=True)
        elif self.log.is_terminal:
            self.log.print(
                Panel(Text(str(exc)), title=type(exc).__name__, title_align="left", border_style="red", expand=False)
            )
        else:
            self.log.print(f"error: {exc}", soft_wrap=True)


def warn(text: str) -> None:
    """Say on stderr what must not be missed, before there is an Output."""
    log = console(stderr=True)
    log.print(Text.assemble(("warning:", "yellow"), " ", text), soft_wrap=not log.is_terminal)


def console(*, stderr: bool = False) -> Console:
    """Return a console of ours: text as it is, no codes and no narrow columns where nobody looks."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = max(made.width, _PIPED_WIDTH)
    return made


def table(
    columns: Iterable[str | Column], rows: Iterable[Iterable[RenderableType]], *, title: str | None = None
) -> Table:
    """Return a table in our one look."""
    made = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    return made


def _print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=2, default=_plain) + "\n")
    sys.stdout.flush()


def _facts(exc: IbexError) -> dict[str, object]:
    """Return what an error knows, as far as its message may tell it: this ends in logs as well."""
    facts = {name: fact for name, fact in vars(exc).items() if fact}
    if isinstance(exc, InvalidInputError) and "value" in facts:
        facts["value"] = _tellable(exc.field, exc.value)
    if isinstance(exc, ConflictError) and exc.values:
        facts["values"] = {name: _tellable(name, value) for name, value in exc.values.items()}
    return facts


def _tellable(field: str, value: object) -> object:
    return size_of(value) if field in UNSHOWN and not isinstance(value, Shown) else value


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)
