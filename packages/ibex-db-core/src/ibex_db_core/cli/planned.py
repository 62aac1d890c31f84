"""What `--dry-run` shows of a migration."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from ibex_db_core.cli.options import connect, where
from ibex_db_core.console import Output, Result, table
from ibex_db_core.migrations import MigrationPlan, PlannedRevision

__all__ = ["Planned", "planned"]

_STYLES = {"reads and writes": "bold red", "writes": "yellow", "nobody": "green"}


@dataclass(frozen=True)
class Planned(Result):
    """What a migration would do."""

    plan: MigrationPlan
    down: bool

    def facts(self) -> object:
        """Return every field, and for each revision the strongest lock on each table with whom it blocks."""
        plan = asdict(self.plan)
        for told, revision in zip(plan["revisions"], self.plan.revisions, strict=True):
            told["locks"] = [{**asdict(lock), "blocks": lock.blocks} for lock in revision.locks]
        return {"changed": False, **plan}

    def __rich__(self) -> RenderableType:
        """Return each revision with its locks, what it costs and its SQL."""
        if not self.plan.revisions:
            return Text("Nothing to do.", style="green")
        parts = [part for one in self.plan.revisions for part in _revision(one, down=self.down)]
        if self.plan.in_the_way:
            parts.append(Text("Open now on the live server for more than two seconds, and in the way:", style="yellow"))
            parts += [Text(f"  {line}") for line in self.plan.in_the_way]
        version = self.plan.examined_on
        note = "" if version.split(".")[0] == self.plan.live.split(".")[0] else f" The live server is {self.plan.live}."
        parts.append(
            Text(
                "Nothing was changed: the revisions ran on a copy of the schema without rows, on another database "
                f"(PostgreSQL {version}), which is gone.{note}",
                style="green",
            )
        )
        return Group(*parts)


def _revision(one: PlannedRevision, *, down: bool) -> Iterator[RenderableType]:
    yield Text(f"{'take back ' if down else ''}{one.id}: {one.message}", style="bold")
    if one.locks:
        yield table(
            ("Lock on a table that is there", "Mode", "Keeps waiting", "Rows"),
            ((lock.table, lock.mode, Text(lock.blocks, _STYLES[lock.blocks]), _rows(lock.rows)) for lock in one.locks),
        )
    else:
        yield Text("No lock on a table that is there.", style="green")
    for what, names in (
        ("writes anew, row by row", {name for said in one.statements for name in said.rewrites}),
        ("reads from end to end", {name for said in one.statements for name in said.scans}),
    ):
        if names:
            yield Text(f"It {what}: {', '.join(sorted(names))}", style="yellow")
    yield from (Text(f"DESTROYS {line}", style="bold red") for line in one.destroys)
    yield Text("")
    for said in one.statements:
        alone = "" if said.transaction else "-- outside a transaction\n"
        yield Text(f"{alone}{said.sql};", no_wrap=True, overflow="ignore")
    yield Text("")


def _rows(rows: int | None) -> str:
    return "not counted yet" if rows is None else f"about {rows:,}"


async def planned(output: Output, url: str | None, revision: str, *, down: bool, scratch: str | None) -> Planned:
    """MigrationPlan a migration of the database that the options name."""
    with output.progress(f"planning for {where(url)}, on a copy of its schema"):
        async with connect(url) as database, database.migrator() as migrator:
            return Planned(await migrator.plan(revision, down=down, scratch=scratch), down)
