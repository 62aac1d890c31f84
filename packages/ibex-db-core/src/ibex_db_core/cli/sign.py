"""`ibex-db sign`: signed tenants switched on and off, and their key changed."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from ibex_db_core.cli.options import AsJson, Debug, Url, connect, where
from ibex_db_core.console import EXIT_CODES, Output, Result, table
from ibex_db_core.errors import ConfigurationError
from ibex_db_core.migrations import Migrator, Signing
from ibex_db_core.signing import KEY_VARIABLE, SigningKey

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXIT_CODES)(sign)


@dataclass(frozen=True)
class NewKey(Result):
    """A key that nobody has yet."""

    key: str

    def __rich__(self) -> RenderableType:
        """Return the key alone, to be piped into a secret store."""
        return Text(self.key, no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Status(Result):
    """Whether tenants must be signed, and with which keys."""

    signing: Signing

    def __rich__(self) -> RenderableType:
        """Return the state, and the keys by their ids."""
        found = self.signing
        if not found.enabled:
            return Text("Signing is off: a tenant is whatever the transaction says.", style="green")
        rows = ((key.id, f"{key.created_at:%Y-%m-%d %H:%M:%S}", _until(key.valid_until)) for key in found.keys)
        lines: list[RenderableType] = [
            Text(f"Signing is on: {found.signed} tables demand a signature.", style="green"),
            table(("Key", "Taken", "Valid until"), rows),
        ]
        if found.unsigned:
            lines.append(Text(f"{found.unsigned} tables demand none: ibex-db doctor names them", style="red"))
        return Group(*lines)


def _until(moment: object) -> str:
    return "the next rotation" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


_DAY = 24.0


def sign(
    *,
    new_key: Annotated[bool, typer.Option("--new-key", help="Print a new key; touches no database.")] = False,
    enable: Annotated[
        bool, typer.Option("--enable", help=f"Demand signatures made with the key in {KEY_VARIABLE}.")
    ] = False,
    disable: Annotated[bool, typer.Option("--disable", help="Demand none any more, and forget the keys.")] = False,
    rotate: Annotated[bool, typer.Option("--rotate", help=f"Take the new key in {KEY_VARIABLE}.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Tell whether it is on, and the ids of the keys.")] = False,
    overlap: Annotated[
        float, typer.Option(min=0.0, help="With --rotate: hours that the key before stays valid.")
    ] = _DAY,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Have every tenant transaction signed, so that SQL injected into a service cannot become another tenant.

    Services must have the key before --enable, and the new one after --rotate and within the overlap.
    The key is read from IBEX_SIGNING_KEY, never from the command line, which every process list shows.
    """
    output = Output(as_json=as_json, debug=debug)
    if sum((new_key, enable, disable, rotate, status)) != 1:
        raise typer.BadParameter("choose one of --new-key, --enable, --disable, --rotate, --status")

    async def work() -> Result:
        if new_key:
            return NewKey(SigningKey.new())
        step: Callable[[Migrator], Awaitable[Signing]]
        if enable:
            key = _key()
            step = lambda migrator: migrator.sign(key)  # noqa: E731
        elif rotate:
            key = _key()
            step = lambda migrator: migrator.rotate(key, overlap=overlap * 3600)  # noqa: E731
        elif disable:
            step = Migrator.unsign
        else:
            step = Migrator.signing
        with output.progress(f"signing in {where(url)}"):
            async with connect(url) as database, database.migrator() as migrator:
                return Status(await step(migrator))

    output.run(work)


def _key() -> str:
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        return key
    raise ConfigurationError(f"set {KEY_VARIABLE} to the key: `ibex-db sign --new-key` makes one")
