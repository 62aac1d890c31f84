"""`ibex-db schema`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from ibex_db_core.cli.options import AsJson, Debug
from ibex_db_core.console import EXIT_CODES, Output, Result
from ibex_db_core.errors import ConfigurationError
from ibex_db_core.migrations.runner import metadata
from ibex_db_core.schema import Entity, ddl, entities, mermaid, svg

__all__ = ["register"]


class Format(StrEnum):
    """How the tables are told."""

    MERMAID = "mermaid"
    SVG = "svg"
    DDL = "ddl"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXIT_CODES)(schema)


@dataclass(frozen=True)
class Drawn(Result):
    """The tables of the installed wheels, and how a person asked to see them."""

    tables: list[Entity]
    format: Format
    text: str

    def __rich__(self) -> RenderableType:
        """Return the text as it is, whatever the terminal's width."""
        return Text(self.text.rstrip(), no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Written(Result):
    """A file that was written."""

    file: str
    format: Format
    tables: int

    def __rich__(self) -> RenderableType:
        """Return one line."""
        return Text(f"Wrote {self.tables} tables to {self.file} as {self.format}.", style="green")


def schema(
    *,
    format_: Annotated[Format, typer.Option("--format", "-f", help="A diagram, or the statements.")] = Format.MERMAID,
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write it there; an older file is replaced.", show_default="stdout"
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw the tables of the installed wheels, or print the SQL that makes them.

    Asks no database. With --json: every table with its columns and keys, and the text in the chosen format.
    """

    async def work() -> Result:
        models = metadata()
        tables = entities(models)
        match format_:
            case Format.MERMAID:
                text = mermaid(tables)
            case Format.SVG:
                text = svg(tables)
            case Format.DDL:
                text = ddl(models)
        if output_file is None:
            return Drawn(tables, format_, text)
        try:
            output_file.write_text(text, encoding="utf-8")
        except OSError as exc:
            raise ConfigurationError(
                f"cannot write {output_file}: {exc.strerror}; name a file in a folder that exists and is yours"
            ) from exc
        return Written(str(output_file), format_, len(tables))

    Output(as_json=as_json, debug=debug).run(work)
