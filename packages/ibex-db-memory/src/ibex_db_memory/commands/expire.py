"""`ibex-db expire`: retention, for cron; needs the ``cli`` extra."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import typer
from rich.console import RenderableType
from rich.text import Text
from sqlalchemy import Integer, Uuid, bindparam, text

from ibex_db_core.cli.options import AsJson, Debug, Url, connect
from ibex_db_core.console import EXIT_CODES, Output, Result
from ibex_db_core.database import Database
from ibex_db_memory.commands.transfer import organization

__all__ = ["register"]

_MAX_BATCH = 10_000

# An index-only look at the memories that expire at all; who has none costs nothing.
_DUE = """
    SELECT m.org_id, count(*) AS due FROM ibex_core.memories m
    WHERE m.expires_at <= now() AND m.expires_at IS NOT NULL AND m.deleted_at IS NULL{only}
    GROUP BY m.org_id
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("expire", epilog=EXIT_CODES)(expire)


@dataclass(frozen=True)
class Expired(Result):
    """What a sweep took away, or would have."""

    organizations: int
    memories: int
    dry_run: bool
    seconds: float

    def __rich__(self) -> RenderableType:
        """Return one line."""
        if not self.memories:
            return Text("Nothing has expired.", style="green")
        of = f"{self.memories:,} {_number(self.memories, 'memory', 'memories')} of {self.organizations:,} " + _number(
            self.organizations, "organization", "organizations"
        )
        if self.dry_run:
            return Text(f"{of} {_number(self.memories, 'has', 'have')} expired.", style="yellow")
        return Text(f"Took away {of} in {self.seconds:.1f} s.", style="green")


def expire(
    *,
    org: Annotated[
        str | None,
        typer.Option("--org", metavar="ORG", show_default="all", help="Only this organization's: its id, or its slug."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=_MAX_BATCH, help="Memories in one transaction.")
    ] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and take nothing away.")] = False,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take away the memories whose time has come: for cron, and as many at once as you like.

    Organization by organization, each in its own tenant transactions, so that a batch touches one partition, by its
    index. Two that run at once pass over what the other has locked. Searches hide an expired memory in any case.
    """
    output = Output(as_json=as_json, debug=debug)

    async def work() -> Result:
        started = time.perf_counter()
        with output.progress("looking for what has expired") as tell:
            if org is None:
                async with connect(url) as database:
                    due = await due_of(database, None)
                    counts = due if dry_run else await sweep(database, due, batch_size)
            else:
                async with organization(url, org) as (database, org_id):
                    due = await due_of(database, org_id)
                    counts = due if dry_run else await sweep(database, due, batch_size)
            tell("done")
        swept = [count for count in counts.values() if count]
        return Expired(len(swept), sum(swept), dry_run, round(time.perf_counter() - started, 3))

    output.run(work)


async def due_of(database: Database, org_id: UUID | None) -> Mapping[UUID, int]:
    """Return organization to how many of its memories have expired and are still there."""
    if org_id is not None:
        statement = text(_DUE.format(only=" AND m.org_id = :org_id")).bindparams(bindparam("org_id", org_id, Uuid()))
        async with database.tenant(org_id, read_only=True) as session:
            rows = (await session.execute(statement.columns(org_id=Uuid(), due=Integer()))).all()
    else:
        async with database.platform(reason="ibex-db expire: whose memories have expired") as session:
            rows = (await session.execute(text(_DUE.format(only="")).columns(org_id=Uuid(), due=Integer()))).all()
    return {row.org_id: row.due for row in rows}


async def sweep(database: Database, due: Mapping[UUID, int], batch_size: int) -> Mapping[UUID, int]:
    from ibex_db_core.tenant import ScopedSession
    from ibex_db_memory import MemoryRepository

    async def batch(session: ScopedSession) -> int:
        return await MemoryRepository(session).expire_due(batch_size=batch_size)

    swept: dict[UUID, int] = {}
    # Two sweeps that start together do not follow each other from organization to organization.
    for org_id in random.sample([*due], len(due)):
        swept[org_id] = 0
        while gone := await database.run(org_id, batch):
            swept[org_id] += gone
    return swept


def _number(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
