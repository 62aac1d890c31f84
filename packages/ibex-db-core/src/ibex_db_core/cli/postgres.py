"""`ibex-db postgres`: the embedded server, kept up for as long as the command runs."""

import asyncio
import shlex
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from ibex_db_core.cli.options import AsJson, Debug
from ibex_db_core.console import EXIT_CODES, FAILED, Output, Result
from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.migrations import Revision
from ibex_db_core.provisioning import DATABASE, PLATFORM_LOGIN, SERVICE_LOGIN, Cluster

__all__ = ["register"]

_LOOK_SECONDS = 0.5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXIT_CODES)(postgres)


@dataclass(frozen=True)
class Serving(Result):
    """A server that runs: its addresses as the environment variables that ibex-db reads."""

    home: Path
    major: int
    applied: list[Revision]
    environment: dict[str, str]

    def __rich__(self) -> RenderableType:
        """Return lines for a shell, unbroken."""
        lines = (f"export {name}={shlex.quote(value)}" for name, value in self.environment.items())
        return Text("\n".join(lines), no_wrap=True, overflow="ignore")


def postgres(
    *,
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Where its data are.", show_default="$IBEX_HOME, else the user's data folder"
        ),
    ] = None,
    tcp: Annotated[
        bool, typer.Option("--tcp", help="Print addresses on 127.0.0.1 with passwords, not on the unix socket.")
    ] = False,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Bring the schema to the newest revision first.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run the embedded Postgres until Ctrl-C or SIGTERM (then leave with 0); should it end by itself, leave with 3.

    Prints its addresses as lines for a shell: what services connect as, the login for cross-tenant work, and the
    owner's for migrations. Other programs that use the same home share the server; it stops with the last of them.
    """
    output = Output(as_json=as_json, debug=debug)
    output.run(lambda: _serve(output, EmbeddedPostgres(home), tcp=tcp, upgrade=upgrade))


async def _serve(output: Output, server: EmbeddedPostgres, *, tcp: bool, upgrade: bool) -> None:
    try:
        with output.progress("starting Postgres"):
            serving, pending = await _start(server, tcp=tcp, upgrade=upgrade)
        with _asked_to_stop() as asked:
            output.show(serving)
            if pending:
                output.note("Not every revision is applied: set these variables and run ibex-db upgrade.")
            output.note(f"PostgreSQL {serving.major} serves {serving.home}. Ctrl-C stops it.")
            if not await _lasts(server, asked):
                output.warn(
                    f"PostgreSQL has ended, and nobody here stopped it: {serving.home / 'postgres.log'} may say why. "
                    "Run this again: it recovers what was committed."
                )
                raise typer.Exit(FAILED)
        with output.progress("stopping Postgres"):
            stopped = await asyncio.to_thread(server.stop_and_wait)
        output.note("Stopped." if stopped else "Left running: another program uses this server.")
    finally:
        await asyncio.to_thread(server.stop)


async def _lasts(server: EmbeddedPostgres, asked: asyncio.Event) -> bool:
    """Wait until somebody asks to stop; False: the server ended before."""
    while not asked.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), _LOOK_SECONDS)
            return True
        if not await asyncio.to_thread(server.is_running):
            return asked.is_set()
    return True


async def _start(server: EmbeddedPostgres, *, tcp: bool, upgrade: bool) -> tuple[Serving, bool]:
    await asyncio.to_thread(server.start)
    cluster = Cluster.of(server, tcp=tcp)
    await cluster.create_logins()
    await cluster.create_database(DATABASE)
    async with cluster.database(DATABASE) as database:
        applied = await database.upgrade() if upgrade else []
        async with database.migrator() as migrator:
            pending = not all(step.applied for step in await migrator.current())
    logins = {"IBEX_DATABASE_URL": SERVICE_LOGIN, "IBEX_PLATFORM_URL": PLATFORM_LOGIN, "IBEX_OWNER_URL": None}
    environment = {
        name: cluster.url(DATABASE, user=login).render_as_string(hide_password=False) for name, login in logins.items()
    }
    return Serving(server.home, server.server_version, applied, environment), pending


@contextmanager
def _asked_to_stop() -> Generator[asyncio.Event]:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, asked.set)
    try:
        yield asked
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
