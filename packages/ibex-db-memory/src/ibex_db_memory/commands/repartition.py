"""`ibex-db repartition`; needs the ``cli`` extra."""

import time
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from ibex_db_core.cli.options import AsJson, Debug, Url, connect, where
from ibex_db_core.console import EXIT_CODES, Output, Result
from ibex_db_memory.partitioning import (
    MOST_PARTITIONS,
    RepartitionStatus,
    abandon_repartition,
    repartition as lay,
    repartition_status,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXIT_CODES)(repartition)


@dataclass(frozen=True)
class Laid(Result):
    """Where memories lies, and what was done."""

    status: RepartitionStatus
    done: str
    seconds: float

    def __rich__(self) -> RenderableType:
        """Return what was done, and where it stands."""
        found = self.status
        lines = [Text(f"{self.done} ({self.seconds:.1f} s)." if self.seconds else f"{self.done}.", style="green")]
        lines.append(
            Text(f"memories: {found.partitions} partitions, about {found.rows:,} rows, {found.size / 2**20:,.0f} MB.")
        )
        if found.copying_to is not None:
            lines.append(
                Text(
                    f"A copy in {found.copying_to} partitions is under way, with about {found.copied:,} rows: "
                    f"--partitions {found.copying_to} goes on with it, --abandon takes it away.",
                    style="yellow",
                )
            )
        if found.unvalidated:
            lines.append(Text(f"{found.unvalidated} foreign keys are to be validated: run it again.", style="yellow"))
        return Group(*lines)


def repartition(
    *,
    partitions: Annotated[
        int | None,
        typer.Option("--partitions", min=1, max=MOST_PARTITIONS, show_default=False, help="How many there shall be."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what it would take; change nothing.")] = False,
    abandon: Annotated[bool, typer.Option("--abandon", help="Take away a copy that is under way.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows copied in one transaction.")] = 2000,
    patience: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="SECONDS", help="How long to try, each time, for a moment in which tables are free."
        ),
    ] = 600.0,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Lay memories into another number of hash partitions, while services read and write.

    A copy is filled beside the table, kept in step by a trigger, indexed, compared, and takes over in a moment.
    Killed in the middle: run it again. It needs as much free disk as memories takes.
    """
    output = Output(as_json=as_json, debug=debug)
    if (partitions is None) == (not abandon):
        raise typer.BadParameter("choose one: --partitions or --abandon", param_hint="--partitions")

    async def work() -> Result:
        started = time.perf_counter()
        with output.progress(f"partitions of {where(url)}") as told:
            async with connect(url) as database, database.migrator() as migrator:
                before = await repartition_status(migrator)
                if dry_run:
                    return Laid(before, _would(before, partitions), 0.0)
                if partitions is None:
                    gone = await abandon_repartition(migrator, patience=patience)
                    done, after = "Abandoned" if gone else "There was no copy", await repartition_status(migrator)
                else:
                    after = await lay(migrator, partitions, batch=batch, patience=patience, tell=told)
                    done = _done(before, after)
        return Laid(after, done, round(time.perf_counter() - started, 3))

    output.run(work)


def _done(before: RepartitionStatus, after: RepartitionStatus) -> str:
    if before.copying_to is not None or before.partitions != after.partitions:
        return f"From {before.partitions} to {after.partitions} partitions"
    return f"Validated {before.unvalidated} foreign keys" if before.unvalidated else "Nothing to do"


def _would(before: RepartitionStatus, partitions: int | None) -> str:
    if partitions is None:
        return "It would take the copy away" if before.copying_to is not None else "There is no copy"
    if before.copying_to not in {None, partitions}:
        return f"It would be refused: a copy in {before.copying_to} partitions is under way"
    if before.copying_to is None and before.partitions == partitions:
        return f"It would validate {before.unvalidated} foreign keys" if before.unvalidated else "Nothing to do"
    goes_on = "go on to " if before.copying_to is not None else ""
    return (
        f"It would {goes_on}copy about {before.rows:,} rows from {before.partitions} into {partitions} partitions; "
        f"{before.size / 2**20:,.0f} MB more must be free on the server's disk meanwhile"
    )
