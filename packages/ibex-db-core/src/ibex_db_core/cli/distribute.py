"""`ibex-db distribute`: a migrated database spread over the workers of its Citus cluster, by organization."""

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from ibex_db_core.cli.options import AsJson, Debug, Url, connect, where
from ibex_db_core.console import EXIT_CODES, Output, Result
from ibex_db_core.distribution.steps import SHARDS, Step

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXIT_CODES)(distribute)


@dataclass(frozen=True)
class Planned(Result):
    """What would be done."""

    steps: list[Step]

    def __rich__(self) -> RenderableType:
        """Return each step with its reason and its SQL."""
        if not self.steps:
            return Text("Every step has been taken: nothing to do.", style="green")
        lines: list[RenderableType] = []
        for number, step in enumerate(self.steps, 1):
            lines += [Text(f"{number}. {step.title}", style="bold"), Text(f"   {step.reason}")]
            lines += [Text(f"   {statement};", style="dim") for statement in step.statements]
        return Group(*lines)


@dataclass(frozen=True)
class Distributed(Result):
    """What was done."""

    steps: list[Step]

    def __rich__(self) -> RenderableType:
        """Return how many steps were taken."""
        if not self.steps:
            return Text("Every step had been taken, and every shard is as closed as its table.", style="green")
        return Text(f"{len(self.steps)} steps taken; every shard is as closed as its table.", style="green")


def distribute(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the steps, their reasons and their SQL; change nothing.")
    ] = False,
    shards: Annotated[int, typer.Option(min=1, max=1024, help="Shards of each table.")] = SHARDS,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Spread a migrated database over the workers of its Citus cluster, by organization.

    Connects to the coordinator as a superuser. Run it with --dry-run first, and with services stopped.
    Takes the steps that are missing, so it may be run again: after it was cut short, and after a shard was moved.
    """
    output = Output(as_json=as_json, debug=debug)

    async def work() -> Result:
        async with connect(url) as database, database.migrator() as migrator:
            if dry_run:
                return Planned(await migrator.distribution(shards=shards))
            with output.progress(f"distributing {where(url)}") as told:
                return Distributed(await migrator.distribute(shards=shards, told=lambda step: told(step.title)))

    output.run(work)
