"""The `ibex-db` application: our own commands, and those of the other installed wheels.

A package adds commands with an entry point, which is given the application
and adds to it as Typer's documentation says::

    [project.entry-points."ibex_db.commands"]
    memory = "ibex_db_memory.commands:register"

    def register(app: typer.Typer) -> None:
        app.command(epilog=EXIT_CODES)(demo)

Keep the module light: it is imported for every command, `--help` included.  An
entry point that fails is told on stderr, with its package, and the other
commands work on: nobody's migration waits for a demo.
"""

import os
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from ibex_db_core.cli import distribute, doctor, migrations, postgres, schema, sign
from ibex_db_core.cli.versions import Versions
from ibex_db_core.console import EXIT_CODES, Output, warn

__all__ = ["COMMANDS_GROUP", "build"]

COMMANDS_GROUP = "ibex_db.commands"


def build() -> typer.Typer:
    """Return the application with every installed wheel's commands."""
    app = typer.Typer(
        name="ibex-db",
        epilog=EXIT_CODES,
        pretty_exceptions_enable=False,  # frames of ours hold addresses with passwords
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    migrations.register(app)
    doctor.register(app)
    sign.register(app)
    distribute.register(app)
    postgres.register(app)
    schema.register(app)
    for point in sorted(entry_points(group=COMMANDS_GROUP), key=lambda point: point.name):
        _add(point, app)
    return app


def _root(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the versions and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: print JSON.")] = False,
) -> None:
    """Tenant-isolated Postgres for the IBEX agent platform.

    Commands work on --url, else on IBEX_DATABASE_URL, else on the embedded Postgres.
    Migrations connect as IBEX_OWNER_URL where that is set.
    """
    if version:
        Output(as_json=as_json).show(Versions.installed())
        raise typer.Exit
    if as_json:
        raise typer.BadParameter("comes after the command: ibex-db current --json", param_hint="--json")
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _add(point: EntryPoint, app: typer.Typer) -> None:
    try:
        theirs = typer.Typer()
        point.load()(theirs)
        if theirs.registered_commands or theirs.registered_groups:
            typer.main.get_command(theirs)  # Typer reads signatures here: one that it refuses is to break no other
            app.add_typer(theirs)  # without a name: its commands become ours
    except Exception as exc:  # noqa: BLE001 - another package's code may raise anything
        if "_IBEX_DB_COMPLETE" not in os.environ:  # else it would land in the middle of a shell's line
            warn(_broken(point, exc))


def _broken(point: EntryPoint, exc: Exception) -> str:
    package = point.dist.name if point.dist is not None else point.name
    if not isinstance(exc, ModuleNotFoundError):
        way_out = "report it to its authors"
    elif (exc.name or "").partition(".")[0] == point.module.partition(".")[0]:
        way_out = f"reinstall {package}"
    else:
        way_out = f"install {package}[cli]"
    return (
        f"{package} adds no commands, because {point.value} failed with {type(exc).__name__}: {exc}; {way_out}. "
        "All other commands work."
    )
