"""`ibex-db doctor`."""

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Column
from rich.text import Text

from ibex_db_core.cli.options import AsJson, Debug, Url, connect, where
from ibex_db_core.console import EXIT_CODES, FOUND, Output, Result, table
from ibex_db_core.doctor import CODES, Finding, Severity

__all__ = ["register"]

_STYLES = {Severity.CRITICAL: "bold red", Severity.HIGH: "red", Severity.MEDIUM: "yellow", Severity.LOW: "cyan"}


_SOUND = "Nothing found: the database is as the installed wheels expect it."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXIT_CODES)(doctor)


@dataclass(frozen=True)
class Audited(Result):
    """What an audit found, the gravest first."""

    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """Tell that something was found."""
        return FOUND if self.findings else 0

    def __rich__(self) -> RenderableType:
        """Return the table of findings, and below it the SQL of each, whole, to be copied."""
        if not self.findings:
            return Text(_SOUND, style="green")
        columns = ("#", "Severity", Column("Code", no_wrap=True), "Object", "What could happen")
        rows = (
            (str(number), Text(found.severity, _STYLES[found.severity]), found.code, found.object, found.risk)
            for number, found in enumerate(self.findings, 1)
        )
        remedies = [
            Text(f"-- {number}. {found.code}: {found.object}\n{found.remedy_sql}\n", no_wrap=True, overflow="ignore")
            for number, found in enumerate(self.findings, 1)
        ]
        counts = ", ".join(
            f"{number} {severity}"
            for severity in Severity
            if (number := sum(found.severity is severity for found in self.findings))
        )
        return Group(table(columns, rows), Text("\nWhat mends them:\n", style="bold"), *remedies, Text(counts, "red"))


def doctor(
    *,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Leave this code out; may be given more than once.")
    ] = None,
    performance: Annotated[
        bool, typer.Option("--performance", help="Look at how it works instead of whether it is safe.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Audit a live database, other people's changes included; leave with 1 where something was found.

    Roles, policies, grants, keys, triggers, functions, views, storage, versions, drift;
    with --performance: updates, dead rows, statistics, partitions, indexes, memory,
    transactions and statements, as the server has counted them.
    Read-only. Connects as the owner: IBEX_OWNER_URL where it is set.
    """
    left_out = frozenset(ignore or ())
    if unknown := sorted(left_out - CODES.keys()):
        raise typer.BadParameter(f"no such code: {', '.join(unknown)}", param_hint="--ignore")
    output = Output(as_json=as_json, debug=debug)

    async def work() -> Audited:
        with output.progress(f"auditing {where(url)}"):
            async with connect(url) as database:
                report = await database.doctor(performance=performance)
        return Audited(list(report.without(left_out).findings))

    output.run(work)
