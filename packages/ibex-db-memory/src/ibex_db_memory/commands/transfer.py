"""`ibex-db export`, `import` and `import-from`; need the ``cli`` extra."""

import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, cast
from uuid import UUID

import typer
from rich.console import RenderableType
from rich.text import Text

from ibex_db_core.cli.options import AsJson, Debug, Url, connect
from ibex_db_core.console import EXIT_CODES, Output, Result, table
from ibex_db_core.database import Database
from ibex_db_core.errors import NotFoundError

__all__ = ["organization", "register"]

Org = Annotated[
    str, typer.Option("--org", metavar="ORG", help="The organization: its id, or its slug.", show_default=False)
]
IncludeErased = Annotated[bool, typer.Option("--include-erased", help="Also bring back what was erased here.")]


class Library(StrEnum):
    """Whose tables import-from reads."""

    MEM0 = "mem0"
    LANGGRAPH = "langgraph"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export", epilog=EXIT_CODES)(export)
    app.command("import", epilog=EXIT_CODES)(import_)
    app.command("import-from", epilog=EXIT_CODES)(import_from)


@dataclass(frozen=True)
class Exported(Result):
    """A file that was written."""

    file: str
    memories: int
    bytes: int
    seconds: float

    def __rich__(self) -> RenderableType:
        """Return one line."""
        size = f"{self.bytes / 1e6:.1f} MB"
        return Text(f"Wrote {self.memories:,} memories ({size}) to {self.file} in {self.seconds:.1f} s.", style="green")


@dataclass(frozen=True)
class Brought(Result):
    """What became of what was brought in."""

    counts: Mapping[str, int]
    seconds: float

    def facts(self) -> object:
        """Return the counts as fields of one object."""
        return {**self.counts, "seconds": self.seconds}

    def __rich__(self) -> RenderableType:
        """Return the counts that say something."""
        told = [(name.replace("_", " "), f"{count:,}") for name, count in self.counts.items() if count]
        return table(["Outcome", "How many"], told or [("nothing was in it", "0")], title=f"In {self.seconds:.1f} s")


def export(
    *,
    org: Org,
    output_file: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Where to write it.")
    ],
    agent: Annotated[
        list[str] | None,
        typer.Option("--agent", metavar="AGENT", show_default="all", help="Only this agent's: id or slug. Repeatable."),
    ] = None,
    without_deleted: Annotated[bool, typer.Option("--without-deleted", help="Leave forgotten memories out.")] = False,
    without_versions: Annotated[bool, typer.Option("--without-versions", help="Leave histories out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write an organization's memories to a file: JSON Lines, with vectors, tags, relationships and histories.

    The file appears when it is whole, and nobody but you may read it.
    """
    output = Output(as_json=as_json, debug=debug)
    if output_file.exists() and not force:
        raise typer.BadParameter(f"{output_file} is there already: --force replaces it", param_hint="--output")

    async def work() -> Result:
        from ibex_db_memory import MemoryRepository

        started = time.perf_counter()
        count = 0
        part = output_file.with_name(f".{output_file.name}.part")
        async with organization(url, org) as (database, org_id), database.tenant(org_id, read_only=True) as session:
            agents = await _agents(database, org_id, agent) if agent else None
            with output.bar() as tell, _private(part) as file:
                tell("exporting", 0, None)

                def told(done: int, of: int) -> None:
                    nonlocal count
                    count = done
                    tell("exporting", done, of)

                async for line in MemoryRepository(session).export(
                    agents=agents,
                    include_deleted=not without_deleted,
                    versions=not without_versions,
                    progress=told,
                ):
                    file(line)
        size = part.stat().st_size
        part.replace(output_file)
        return Exported(str(output_file), count, size, round(time.perf_counter() - started, 3))

    output.run(work)


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, help="What export wrote.")
    ],
    *,
    org: Org,
    agent: Annotated[
        list[str] | None,
        typer.Option(
            "--agent",
            metavar="OLD=NEW",
            show_default="by id, then by slug",
            help="Whose memories an agent's become: ids or slugs. Repeatable.",
        ),
    ] = None,
    create_agents: Annotated[bool, typer.Option("--create-agents", help="Make the agents that are not there.")] = False,
    include_erased: IncludeErased = False,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Bring the memories of an exported file in: all of them, or none.

    What is known already stays as it is, so a file can be imported again. What was erased here is refused.
    """
    output = Output(as_json=as_json, debug=debug)
    agents = _pairs(agent)

    async def work() -> Result:
        from ibex_db_memory import MemoryRepository

        started = time.perf_counter()
        async with organization(url, org) as (database, org_id), database.tenant(org_id) as session:
            with output.bar() as tell, file.open("rb") as lines:
                tell("importing", 0, None)
                done = await MemoryRepository(session).import_(
                    lines,
                    agents=cast("dict[UUID | str, UUID | str]", agents),
                    create_agents=create_agents,
                    include_erased=include_erased,
                    progress=partial(tell, "importing"),
                )
        return Brought(asdict(done), round(time.perf_counter() - started, 3))

    output.run(work)


def import_from(
    library: Annotated[Library, typer.Argument(help="Whose tables they are.")],
    source: Annotated[str, typer.Argument(metavar="DSN", help="The database that they are in; it is only read.")],
    *,
    org: Org,
    agent: Annotated[
        list[str] | None,
        typer.Option(
            "--agent",
            metavar="THEIRS=OURS",
            show_default=False,
            help="mem0's agent_id, or LangGraph's namespace (dotted), and the id or slug of our agent. Repeatable.",
        ),
    ] = None,
    other_agent: Annotated[
        str | None, typer.Option("--other-agent", metavar="AGENT", show_default=False, help="Whose the rest become.")
    ] = None,
    table_name: Annotated[str, typer.Option("--table", help="mem0's collection.")] = "mem0",
    schema: Annotated[str, typer.Option("--schema", help="The schema of the tables.")] = "public",
    without_embeddings: Annotated[
        bool, typer.Option("--without-embeddings", help="Leave vectors behind: another model made them.")
    ] = False,
    embedding_model: Annotated[
        str | None, typer.Option("--embedding-model", metavar="NAME", show_default=False, help="Which model made them.")
    ] = None,
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="Go on where a row breaks a rule.")] = False,
    include_erased: IncludeErased = False,
    url: Url = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Bring in what mem0 or LangGraph's Postgres store keeps: all of it, or nothing."""
    output = Output(as_json=as_json, debug=debug)
    pairs = _pairs(agent)

    async def work() -> Result:
        from ibex_db_memory import ImportOptions, MemoryRepository

        started = time.perf_counter()
        async with organization(url, org) as (database, org_id), database.tenant(org_id) as session:
            ours = await _agents(database, org_id, [*pairs.values(), *([other_agent] if other_agent else [])])
            agents = dict(zip(pairs, ours, strict=False))
            default = ours[-1] if other_agent else None
            memories = MemoryRepository(session)
            what = f"importing from {library}"
            with output.bar() as tell:
                tell(what, 0, None)
                options = ImportOptions(
                    embeddings=not without_embeddings,
                    embedding_model=embedding_model,
                    include_erased=include_erased,
                    skip_invalid=skip_invalid,
                    progress=lambda done: tell(what, done, None),
                )
                if library is Library.MEM0:
                    done = await memories.import_mem0(
                        source, table=table_name, schema=schema, agents=agents, agent_id=default, options=options
                    )
                else:
                    done = await memories.import_langgraph(
                        source, schema=schema, agents=agents, agent_id=default, options=options
                    )
        return Brought(asdict(done), round(time.perf_counter() - started, 3))

    output.run(work)


def _pairs(given: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in given or []:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise typer.BadParameter(f"{pair!r} is no pair, as support=helpdesk", param_hint="--agent")
        found[old] = new
    return found


@asynccontextmanager
async def organization(url: str | None, org: str) -> AsyncGenerator[tuple[Database, UUID]]:
    """Open the database, and find the organization: a slug is the platform's to look up."""
    async with connect(url) as database:
        if _is_uuid(org):
            yield database, UUID(org)
            return
        from ibex_db_tenancy import Organization, OrganizationRepository

        async with database.platform(reason=f"ibex-db: find the organization {org!r}") as session:
            found = await OrganizationRepository(session).by_slug(org)
        if found is None:
            raise NotFoundError(Organization.__name__, org)
        yield database, found.id


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


async def _agents(database: Database, org_id: UUID, given: list[str]) -> list[UUID]:
    """Return the ids of agents that are named by id or slug."""
    from ibex_db_tenancy import Agent, AgentRepository

    async with database.tenant(org_id, read_only=True) as session:
        agents = AgentRepository(session)
        found = [await agents.get(UUID(one)) if _is_uuid(one) else await agents.by_slug(one) for one in given]
    for one, agent in zip(given, found, strict=True):
        if agent is None:
            raise NotFoundError(Agent.__name__, one)
    return [agent.id for agent in found if agent is not None]


@contextmanager
def _private(part: Path) -> Generator[Callable[[bytes], object]]:
    """Open a file that only its owner can read; where the work fails, it goes."""
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
