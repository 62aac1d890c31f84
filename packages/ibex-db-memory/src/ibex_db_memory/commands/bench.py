"""`ibex-db bench`; needs the ``cli`` extra."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Column
from rich.text import Text

from ibex_db_core.cli.options import AsJson, Debug, Url, connect, where
from ibex_db_core.console import EXIT_CODES, Output, Result, table
from ibex_db_memory.commands.crossings import collected

if TYPE_CHECKING:
    from ibex_db_memory.bench import Bench

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXIT_CODES)(bench)


@dataclass(frozen=True)
class Benched(Result):
    """What was measured, and where."""

    where: str
    bench: "Bench"

    def facts(self) -> object:
        """Return the run as one object."""
        return {"where": self.where, **asdict(self.bench)}

    def __rich__(self) -> RenderableType:
        """Return a row for each verb, and what was found beside."""
        found = self.bench
        figures = [Column(name, justify="right") for name in ("p50 ms", "p95 ms", "times")]
        columns: list[str | Column] = ["Verb, with its transaction", *figures]
        rows = [(one.verb, f"{one.p50_ms:.2f}", f"{one.p95_ms:.2f}", f"{one.over_empty:.1f}") for one in found.measured]
        wrote = f"remember_many: {found.rows_per_second:,.0f} rows a second, into the live vector index"
        recall = f"search by vector: recall@10 {found.recall:.3f} of a full scan's; {found.plan}"
        return Group(
            table(columns, rows, title=f"{found.memories:,} memories, {found.rounds} rounds, {self.where}"),
            Text(f"\n{wrote}\n{recall}"),
            Text("times: of an empty transaction. Its organization was erased; a receipt of that stays.", style="dim"),
        )


def bench(
    *,
    memories: Annotated[
        int, typer.Option(min=100, max=1_000_000, help="How many memories the organization is filled with.")
    ] = 2_000,
    rounds: Annotated[int, typer.Option(min=10, max=100_000, help="How often each verb is done.")] = 100,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure the verbs on this database, with an organization that is erased afterwards.

    Verbs are done in turn, one task at a time. Compare ratios, of runs on a quiet machine; a time alone says more of
    the machine and the network than of the library. Needs the platform's login (IBEX_PLATFORM_URL) where services do.
    """
    output = Output(as_json=as_json, debug=debug)

    async def work() -> Benched:
        from ibex_db_memory.bench import measure

        with output.bar() as tell, collected():
            async with connect(url) as database:
                return Benched(where(url), await measure(database, memories=memories, rounds=rounds, tell=tell))

    output.run(work)
