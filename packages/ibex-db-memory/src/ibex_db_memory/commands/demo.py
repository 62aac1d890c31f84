"""`ibex-db demo`; needs the ``cli`` extra."""

from pathlib import Path
from typing import Annotated

import typer

from ibex_db_core.cli.options import AsJson, Debug, Url, connect
from ibex_db_core.console import EXIT_CODES, Output, Result
from ibex_db_memory.commands.crossings import collected

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXIT_CODES)(demo)


def demo(
    *,
    memories: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE.jsonl",
            show_default=False,
            help="Memories of your own, one JSON object a line: content (or text); agent, organization, category, "
            "tags, confidence and more where you have them. They go into an organization of their own.",
        ),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--vectors",
            metavar="FILE.npy",
            show_default=False,
            help="Their vectors: float32, shape (lines, 384), row i for line i + 1.",
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE.jsonl",
            show_default=False,
            help="Questions for them: question; agent, organization; evidence (ids) or expected (rows from 0).",
        ),
    ] = None,
    question_vectors: Annotated[
        Path | None,
        typer.Option("--question-vectors", metavar="FILE.npy", show_default=False, help="The questions' vectors."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what the library does on real memories, and prove that organizations cannot reach each other.

    Migrates the database, makes two organizations with six agents, stores 205 memories, searches them, and tries in
    every way to reach one organization's rows from the other's sessions. Nothing needs to be configured; organizations
    of other names are left alone, and a second run finds everything known. Leaves with 1 when a claim does not hold.
    """
    output = Output(as_json=as_json, debug=debug)
    if (memories is None) != (vectors is None):
        raise typer.BadParameter("belong together: give both or neither", param_hint="--input and --vectors")
    if (questions is None) != (question_vectors is None):
        raise typer.BadParameter("belong together: give both or neither", param_hint="--questions, --question-vectors")
    if questions is not None and memories is None:
        raise typer.BadParameter("asks your own memories: give --input and --vectors too", param_hint="--questions")

    async def work() -> Result:
        from ibex_db_memory.demo import corpus, story

        with output.bar() as tell, collected() as reasons:
            tell("reading files", 0, None)
            own = None
            if memories is not None and vectors is not None:
                own = corpus.own(memories, vectors, questions, question_vectors)
            async with connect(url) as database:
                report = await story.play(database, own, tell=tell)
        return report.crossed_for(reasons)

    output.run(work)
