"""Run the harness: ``uv run --group bench python -m benchmarks --size small``; docs/benchmarks.md says more."""

import argparse
import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import loading, report
from benchmarks.bench import Bench
from benchmarks.dataset import DataSet
from benchmarks.measures import CROWDED, MEASURES, conversations as real
from benchmarks.peers.process import PeerProcess, database_of, running
from benchmarks.peers.recipes import RECIPES, Recipe
from benchmarks.placement import Placement
from benchmarks.results import Results, Store, environment
from benchmarks.server import Raw, dsn, main_process, migrated, remove, served, versions
from benchmarks.sizes import SIZES, Size

_DATABASE = "bench"
_OUT = Path(__file__).parent / "out"


async def run(
    size: Size, only: Sequence[str], recipes: Sequence[Recipe], out: Path, *, conversations: Path | None, keep: bool
) -> Results:
    """Make the measures that are not made yet, and return what all of them found."""
    store = Store(out, size.name)
    server = out / "server"
    data = DataSet(out / "data", size)
    data.make()
    loaded = server.exists() and store.done(loading.NAME)
    wanted = [name for name in MEASURES if name in only and (name == loading.NAME or not store.done(name))]
    async with served(server) as cluster, AsyncExitStack() as exits:
        if not loaded:
            for name in (_DATABASE, *(database_of(recipe) for recipe in recipes)):
                await cluster.drop_database(name)
        database = await exits.enter_async_context(await migrated(cluster, _DATABASE))
        raw = await exits.enter_async_context(Raw.connected(cluster, _DATABASE))
        peers: list[PeerProcess] = []
        for recipe in recipes:
            await cluster.create_database(database_of(recipe))
            address = dsn(cluster.url(database_of(recipe)))
            peers.append(await exits.enter_async_context(running(recipe, address, out / "data", size.name)))
        placement = Placement(await main_process(cluster))
        made_with = environment(
            size.name,
            {**await versions(cluster, _DATABASE), "timed on processors": str(placement)},
            {peer.name: await peer.versions() for peer in peers},
        )
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
                    began = time.monotonic()
                    if name not in CROWDED:
                        placement.on_one()
                    try:
                        store.keep(name, await MEASURES[name](bench))
                    finally:
                        placement.on_any()
                    if not progress.console.is_terminal:  # where no bar is seen, say how far it is
                        progress.console.print(f"{name}: {time.monotonic() - began:.0f} s")
                    progress.update(task, completed=progress.tasks[task].total)
                progress.advance(overall)
    if not keep:
        remove(server)
    return store.collect(MEASURES, made_with)


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
    parser.add_argument("--size", choices=SIZES, default="small", help="smoke: a minute; small: minutes; full: hours")
    parser.add_argument("--only", help=f"these measures, separated by commas: {', '.join(MEASURES)}")
    parser.add_argument("--peers", help="these peers, by module, separated by commas; '' for none; default: all")
    parser.add_argument("--conversations", type=Path, help="measure on real ones too: see benchmarks.evidence_recall")
    parser.add_argument("--out", type=Path, default=_OUT, help="results, and what an interrupted run needs to go on")
    parser.add_argument("--keep", action="store_true", help="keep the server's data, so that more can be measured")
    parser.add_argument("--no-plots", action="store_true", help="JSON and Markdown only; needs no matplotlib")
    parser.add_argument("--docs", action="store_true", help="also write the figures of docs/benchmarks.md")
    given = parser.parse_args()
    only: str | None = given.only
    chosen: str | None = given.peers
    conversations: Path | None = given.conversations
    offered = [name for name in MEASURES if name != real.NAME or conversations is not None]
    names = offered if only is None else [loading.NAME, *only.split(",")]
    if unknown := set(names) - set(MEASURES):
        parser.error(f"no such measure: {', '.join(sorted(unknown))}")
    if real.NAME in names and conversations is None:
        parser.error(f"{real.NAME} are measured on your own: give their folder by --conversations")
    recipes = [recipe for recipe in RECIPES if chosen is None or recipe.module in chosen.split(",")]
    out: Path = given.out.resolve() / given.size
    logging.getLogger("ibex_db.platform").setLevel(logging.ERROR)  # it warns of every cross-tenant session
    results = asyncio.run(run(SIZES[given.size], names, recipes, out, conversations=conversations, keep=given.keep))
    report.write(results, out, plots=not given.no_plots, docs=given.docs)


if __name__ == "__main__":
    main()
