"""Run the harness: ``uv run --group bench python -m benchmarks --size small``; docs/benchmarks.md says more."""

import argparse
import asyncio
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import loading, report
from benchmarks.bench import Bench
from benchmarks.dataset import DataSet
from benchmarks.evidence_recall import refusal
from benchmarks.measures import CROWDED, MEASURES, conversations as real
from benchmarks.peers.process import PeerProcess, database_of, running
from benchmarks.peers.recipes import RECIPES, Recipe
from benchmarks.placement import Placement
from benchmarks.results import Results, Store, environment, moment
from benchmarks.server import Raw, analyzed, dsn, main_process, migrated, remove, served, versions
from benchmarks.sizes import SIZES, Size

_DATABASE = "bench"
_OUT = Path(__file__).parent / "out"
_INTERRUPTED = 130


async def run(
    size: Size, only: Sequence[str], recipes: Sequence[Recipe], out: Path, *, conversations: Path | None, keep: bool
) -> Results:
    """Make the measures that are not made yet, and return what all of them found."""
    server = out / "server"
    data = DataSet(out / "data", size)
    data.make()
    there = server.exists()
    databases = [_DATABASE, *(database_of(recipe) for recipe in recipes)]
    async with served(server) as cluster, AsyncExitStack() as exits:
        placement = Placement(await main_process(cluster))
        store = Store(out, environment(size.name, {**await versions(cluster), "timed on": str(placement)}, recipes))
        loaded = there and store.done(loading.NAME)
        if not loaded:
            for name in databases:
                await cluster.drop_database(name)
        database = await exits.enter_async_context(await migrated(cluster, _DATABASE))
        raw = await exits.enter_async_context(Raw.connected(cluster, _DATABASE))
        peers: list[PeerProcess] = []
        for recipe in recipes:
            await cluster.create_database(database_of(recipe))
            address = dsn(cluster.url(database_of(recipe)))
            peers.append(await exits.enter_async_context(running(recipe, address, out / "data", size.name)))
        installed = {peer.name: await peer.versions() for peer in peers}
        wanted = [name for name in MEASURES if name in only and (name == loading.NAME or not store.done(name))]
        with _progress() as progress:
            overall = progress.add_task(f"[bold]{size.name}", total=len(wanted))
            for name in wanted:
                if name != loading.NAME or not loaded:
                    task = progress.add_task(name, total=None)
                    bench = Bench(
                        size=size,
                        data=data,
                        cluster=cluster,
                        conversations=conversations,
                        folder=out,
                        database=database,
                        database_name=_DATABASE,
                        raw=raw,
                        peers=peers,
                        placement=placement,
                        progress=progress,
                        task=task,
                    )
                    for written in databases if name != loading.NAME else ():
                        await analyzed(cluster, written)
                    began, when = time.monotonic(), moment()
                    if name not in CROWDED:
                        placement.on_one()
                    try:
                        store.keep(name, await MEASURES[name](bench), when)
                    finally:
                        placement.on_any()
                    if not progress.console.is_terminal:  # where no bar is seen, say how far it is
                        progress.console.print(f"{name}: {time.monotonic() - began:.0f} s")
                    progress.update(task, completed=progress.tasks[task].total)
                progress.advance(overall)
    if not keep:
        remove(server)
    return store.collect(MEASURES, installed)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="ibex-db beside its limit and its peers.")
    parser.add_argument(
        "--size", choices=SIZES, default="small", help="smoke: a minute; small: ten; full: over an hour"
    )
    parser.add_argument("--only", help=f"these measures, separated by commas: {', '.join(MEASURES)}")
    offered = ", ".join(recipe.module for recipe in RECIPES)
    parser.add_argument("--peers", help=f"these peers, separated by commas; '' for none; default: {offered}")
    parser.add_argument("--conversations", type=Path, help="measure on real ones too: see benchmarks.evidence_recall")
    parser.add_argument("--out", type=Path, default=_OUT, help="results, and what an interrupted run needs to go on")
    parser.add_argument("--keep", action="store_true", help="keep the server's data, so that more can be measured")
    parser.add_argument("--anew", action="store_true", help="forget what was measured at this size, and begin again")
    parser.add_argument("--no-plots", action="store_true", help="JSON and Markdown only; needs no matplotlib")
    parser.add_argument(
        "--docs", action="store_true", help="also write the figures of docs/benchmarks.md: a whole run's"
    )
    given = parser.parse_args()
    only: str | None = given.only
    conversations: Path | None = given.conversations
    modules = [recipe.module for recipe in RECIPES] if given.peers is None else [*filter(None, given.peers.split(","))]
    if strange := set(modules) - {recipe.module for recipe in RECIPES}:
        parser.error(f"no such peer: {', '.join(sorted(strange))}; there are {offered}")
    if conversations is not None and (why := refusal(conversations)) is not None:
        parser.error(f"--conversations {conversations}: {why}")
    measurable = [name for name in MEASURES if name != real.NAME or conversations is not None]
    names = measurable if only is None else [loading.NAME, *only.split(",")]
    if unknown := set(names) - set(MEASURES):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    if real.NAME in names and conversations is None:
        parser.error(f"{real.NAME} are measured on your own: give their folder by --conversations")
    if given.docs and (
        given.size != "full" or only is not None or len(modules) < len(RECIPES) or conversations is None
    ):
        parser.error(
            "--docs writes the page of a whole run: --size full, every measure, every peer, and --conversations"
        )
    recipes = [recipe for recipe in RECIPES if recipe.module in modules]
    out: Path = given.out.resolve() / given.size
    if given.anew:
        remove(out / "server")
        shutil.rmtree(out, ignore_errors=True)
    logging.getLogger("ibex_db.platform").setLevel(logging.ERROR)  # it warns of every cross-tenant session
    try:
        results = asyncio.run(run(SIZES[given.size], names, recipes, out, conversations=conversations, keep=given.keep))
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on at the measure that it was at, --anew begins again", file=sys.stderr
        )
        raise SystemExit(_INTERRUPTED) from None
    report.write(results, out, plots=not given.no_plots, docs=given.docs)


if __name__ == "__main__":
    main()
