"""The options that every command shares, and the database that they choose."""

import os
from typing import Annotated

import typer

from ibex_db_core.database import Database
from ibex_db_core.url import parse

__all__ = [
    "AllowDestructive",
    "AsJson",
    "Attempts",
    "Debug",
    "DryRun",
    "LockTimeout",
    "Scratch",
    "Url",
    "connect",
    "where",
]


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

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show SQL, locks, rewrites and losses; change nothing in this database.")
]
Scratch = Annotated[
    str | None,
    typer.Option(
        "--scratch",
        metavar="URL",
        show_default="the embedded Postgres",
        help="With --dry-run: a superuser on a server where a database may be made, best of the same version.",
    ),
]
AllowDestructive = Annotated[
    bool, typer.Option("--allow-destructive", help="Let it drop tables, columns or rows, or narrow a type.")
]
LockTimeout = Annotated[
    float,
    typer.Option(
        "--lock-timeout", min=0.0, metavar="SECONDS", help="How long to queue for a lock, and have others queue behind."
    ),
]
Attempts = Annotated[int, typer.Option("--attempts", min=1, help="How often to try for the locks of one revision.")]


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
