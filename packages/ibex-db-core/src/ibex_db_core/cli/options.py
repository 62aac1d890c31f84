"""The options that every command shares, and the database that they choose."""

import os
from typing import Annotated

import typer

from ibex_db_core.database import Database
from ibex_db_core.url import parse

__all__ = ["AsJson", "Debug", "Url", "connect", "where"]


def _not_blank(url: str | None) -> str | None:
    # --url "$UNSET" must not fall back on another database.
    if url is not None and not url.strip():
        raise typer.BadParameter("is empty: leave it out to use the environment's database")
    return url


Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        show_default=False,
        callback=_not_blank,
        help="The database. It takes the place of IBEX_DATABASE_URL (and of IBEX_OWNER_URL and IBEX_PLATFORM_URL, so "
        "that no other database is meant by accident). With neither, the embedded Postgres is used.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def connect(url: str | None) -> Database:
    """Return the database of --url, else of the environment, else the embedded one."""
    if url is None and not os.environ.get("IBEX_DATABASE_URL", "").strip():
        # A deployment's pipeline migrates and knows no other login.
        url = os.environ.get("IBEX_OWNER_URL", "").strip() or None
    return Database.from_env(url=url)


def where(url: str | None) -> str:
    """Name the database that migrations go to, without login or password."""
    address = url or os.environ.get("IBEX_OWNER_URL") or os.environ.get("IBEX_DATABASE_URL", "").strip()
    if not address:
        return "the embedded Postgres"
    parsed = parse(address).url
    host = parsed.host or parsed.query.get("host") or "this machine"
    return f"database {parsed.database!r} on {host if isinstance(host, str) else ', '.join(host)}"
