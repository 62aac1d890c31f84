"""`ibex-db upgrade`, `downgrade`, `current` and `check`."""

import asyncio
import logging
import re
import sys
import time
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Column
from rich.text import Text

from ibex_db_core.cli.options import (
    AllowDestructive,
    AsJson,
    Attempts,
    Debug,
    DryRun,
    LockTimeout,
    Scratch,
    Url,
    connect,
    where,
)
from ibex_db_core.cli.planned import planned
from ibex_db_core.console import CANCELLED, EXIT_CODES, FOUND, Output, Result, table
from ibex_db_core.migrations import Migrator, Revision
from ibex_db_core.migrations.plans import ATTEMPTS, LOCK_TIMEOUT

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (upgrade, downgrade, current, check):
        app.command(epilog=EXIT_CODES)(command)


# -- upgrade


@dataclass(frozen=True)
class Upgraded(Result):
    """The revisions that one upgrade applied."""

    applied: list[Revision]
    seconds: float

    def __rich__(self) -> RenderableType:
        """Return the revisions, and how long they took."""
        if not self.applied:
            return Text("Nothing to do: every revision is applied.", style="green")
        done = Text(f"Applied {_count(self.applied)} in {self.seconds:.1f} s.", style="green")
        return Group(_listed(self.applied), done)


@dataclass(frozen=True)
class Script(Result):
    """The SQL of an upgrade."""

    sql: str

    def __rich__(self) -> RenderableType:
        """Return the SQL as it is, whatever the terminal's width."""
        return Text(self.sql.rstrip(), no_wrap=True, overflow="ignore")


def upgrade(
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="For example memory@head.", show_default="the newest of all")
    ] = "heads",
    *,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL of all revisions and touch no database.")] = False,
    dry_run: DryRun = False,
    scratch: Scratch = None,
    allow_destructive: AllowDestructive = False,
    lock_timeout: LockTimeout = LOCK_TIMEOUT,
    attempts: Attempts = ATTEMPTS,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Bring the schema to the newest revision of every installed wheel.

    Idempotent, and safe to start in many places at once: one migrates, the others wait.
    A revision that does not get its lock lets go of all it has, and tries again.
    """
    output = Output(as_json=as_json, debug=debug)
    if sql and dry_run:
        raise typer.BadParameter("choose one: --sql asks no database, --dry-run asks this one", param_hint="--dry-run")

    async def work() -> Result:
        if sql:
            return Script(Migrator.sql(revision))
        if dry_run:
            return await planned(output, url, revision, down=False, scratch=scratch)
        started = time.perf_counter()
        with output.progress(f"upgrading {where(url)}") as told, _steps(told):
            async with connect(url) as database:
                applied = await database.upgrade(
                    revision, lock_timeout=lock_timeout, attempts=attempts, allow_destructive=allow_destructive
                )
        return Upgraded(applied, round(time.perf_counter() - started, 3))

    output.run(work)


# -- downgrade


@dataclass(frozen=True)
class Downgraded(Result):
    """The revisions that one downgrade took back, newest first."""

    reverted: list[Revision]

    def __rich__(self) -> RenderableType:
        """Return the revisions."""
        if not self.reverted:
            return Text("Nothing to do: no revision above it is applied.", style="green")
        return Group(_listed(self.reverted), Text(f"Took back {_count(self.reverted)}.", style="green"))


def downgrade(
    revision: Annotated[str, typer.Argument(help="Where to go back to: memory@base, memory@-1, a revision, or base.")],
    *,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask. Where data goes, --allow-destructive is needed too.")
    ] = False,
    dry_run: DryRun = False,
    scratch: Scratch = None,
    allow_destructive: AllowDestructive = False,
    lock_timeout: LockTimeout = LOCK_TIMEOUT,
    attempts: Attempts = ATTEMPTS,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take the schema back to a revision; tables made since then go, with their data.

    On a terminal it says what goes, and asks; elsewhere --yes agrees, and --allow-destructive agrees to the losses.
    """
    output = Output(as_json=as_json, debug=debug)

    def agreed() -> Coroutine[None, None, Result]:
        if dry_run:
            return planned(output, url, revision, down=True, scratch=scratch)
        allowed = allow_destructive
        if not (yes or allow_destructive):
            _somebody()
            lost = asyncio.run(losses())
            _confirm(f"Downgrade {where(url)} to {revision}? {_told(lost)}")
            allowed = True  # what goes has just been read out
        return work(allowed=allowed)

    async def losses() -> list[str]:
        async with connect(url) as database, database.migrator() as migrator:
            return await migrator.losses(revision, down=True)

    async def work(*, allowed: bool) -> Downgraded:
        with output.progress(f"downgrading {where(url)}") as told, _steps(told):
            async with connect(url) as database, database.migrator() as migrator:
                before = await migrator.current()
                await migrator.downgrade(
                    revision, lock_timeout=lock_timeout, attempts=attempts, allow_destructive=allowed
                )
                after = {step.id: step for step in await migrator.current()}
        return Downgraded([after[step.id] for step in reversed(before) if step.applied and not after[step.id].applied])

    output.run(agreed)


def _told(lost: Sequence[str]) -> str:
    return "No data goes." if not lost else "".join(("This goes for good:", *(f"\n  - {line}" for line in lost), "\n"))


def _somebody() -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "nobody is there to be asked: pass --yes, and --allow-destructive to lose data", param_hint="--yes"
        )


def _confirm(question: str) -> None:
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        typer.echo(err=True)
        agreed = False
    if not agreed:
        typer.echo("Cancelled: nothing was changed.", err=True)
        raise typer.Exit(CANCELLED)


# -- current


@dataclass(frozen=True)
class Current(Result):
    """Every revision of the installed wheels, oldest first."""

    revisions: list[Revision]

    def __rich__(self) -> RenderableType:
        """Return the table, and what to do where it is not at its end."""
        pending = [step for step in self.revisions if not step.applied]
        shown = _listed(self.revisions, applied=True)
        if not pending:
            return shown
        return Group(shown, Text(f"{_count(pending)} to apply: ibex-db upgrade", style="yellow"))


def current(url: Url = None, *, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the revisions of the installed wheels, and which of them the database has."""

    async def work() -> Current:
        async with connect(url) as database, database.migrator() as migrator:
            return Current(await migrator.current())

    Output(as_json=as_json, debug=debug).run(work)


# -- check


@dataclass(frozen=True)
class Finding:
    """One way in which the database is not what the code expects, and the way out."""

    problem: str
    way_out: str


@dataclass(frozen=True)
class Checked(Result):
    """What a check found; nothing means that the live schema is the models'."""

    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """Tell that something was found."""
        return FOUND if self.findings else 0

    def __rich__(self) -> RenderableType:
        """Return each finding with its way out."""
        if not self.findings:
            return Text("The live schema is what the models say.", style="green")
        lines = [
            Text.assemble(("✗ ", "red"), finding.problem, ("\n  → ", "dim"), finding.way_out)
            for finding in self.findings
        ]
        found = len(self.findings)
        return Group(*lines, Text(f"{found} finding{'' if found == 1 else 's'}.", style="red"))


def check(url: Url = None, *, as_json: AsJson = False, debug: Debug = False) -> None:
    """Compare the live schema with the models; leave with 1 where they differ."""
    output = Output(as_json=as_json, debug=debug)

    async def work() -> Checked:
        with output.progress(f"comparing {where(url)} with the models"):
            async with connect(url) as database, database.migrator() as migrator:
                pending = [step for step in await migrator.current() if not step.applied]
                if pending:  # only a schema that is where it should be can have drifted
                    return Checked([_pending(step) for step in pending])
                return Checked([Finding(drift, _DRIFTED) for drift in await migrator.check()])

    output.run(work)


_DRIFTED = (
    "changed by hand: change it back; changed in a model: write a migration for it; "
    "another version of the wheels migrated it: install that version"
)


def _pending(step: Revision) -> Finding:
    return Finding(
        f"revision {step.id} of {step.wheel} is not applied: {step.message}", "ibex-db upgrade, then check again"
    )


# -- shared


def _listed(revisions: Sequence[Revision], *, applied: bool = False) -> RenderableType:
    names = ("Wheel", "Revision", "Message", *(["Applied"] if applied else []))
    return table(
        [Column(name, no_wrap=name != "Message") for name in names],
        (
            (step.wheel, step.id, step.message, *([Text("yes", "green") if step.applied else "no"] if applied else []))
            for step in revisions
        ),
    )


def _count(revisions: Sequence[Revision]) -> str:
    return f"{len(revisions)} revision{'' if len(revisions) == 1 else 's'}"


_MOVE = re.compile(r"Running (?P<verb>upgrade|downgrade) (?P<before>.*?) -> (?P<after>[^,]*),")


@contextmanager
def _steps(told: Callable[[str], None]) -> Generator[None]:
    """Tell each revision as it begins, which Alembic's log says, and each wait for a lock."""

    class Steps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = record.getMessage()
            if moved := _MOVE.match(said):
                told(f"applying {moved['after']}" if moved["verb"] == "upgrade" else f"taking back {moved['before']}")
            elif record.name == "ibex_db.migrations":
                told(said)

    handler = Steps()
    logs = [logging.getLogger(name) for name in ("alembic.runtime.migration", "ibex_db.migrations")]
    levels = [log.level for log in logs]
    for log in logs:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
            log.removeHandler(handler)
