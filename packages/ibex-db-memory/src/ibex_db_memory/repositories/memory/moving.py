"""Out to a file and in again: export and import_."""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, cast
from uuid import UUID

from sqlalchemy import select, text

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError
from ibex_db_core.migrations import newest
from ibex_db_core.tenant import SCOPED
from ibex_db_core.translation import translated
from ibex_db_memory.repositories.memory import statements
from ibex_db_memory.repositories.memory.spaces import Spaces
from ibex_db_memory.transfer import exporting
from ibex_db_memory.transfer.fileformat import Header, Lines, Reader, header_of
from ibex_db_memory.transfer.importing import Destination, Pouring, renamed
from ibex_db_memory.transfer.loading import Loader
from ibex_db_memory.transfer.outcomes import Imported, ImportedItem
from ibex_db_tenancy import Agent, ErasureKey
from ibex_db_tenancy.erasure import lock_number

BATCH_SIZE = 500
_MAX_BATCH = 10_000

_SHARE = text("SELECT pg_advisory_xact_lock_shared(:number)")


class Moving(Spaces):
    """Moving memories between organizations and databases."""

    async def export(
        self,
        *,
        agents: Iterable[UUID] | None = None,
        include_deleted: bool = True,
        versions: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> AsyncGenerator[bytes]:
        """Yield an export of the organization's memories, line by line: JSON Lines, newlines included.

        One moment's view of everything that import_() needs to make them again:
        every column, vectors bit by bit, tags, relationships, versions.  The
        format is told in the decision record 22.

        Args:
            agents: of these agents only; None: of all.
            include_deleted: forgotten memories too.
            versions: with each memory's history; False: it begins anew where the file is imported.
            progress: called after each memory with how many are done, and how many there are.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Speaks Danish.", category="factual")
            >>> lines = [line async for line in memories.export()]
            >>> len(lines), b"Speaks Danish." in lines[1]
            (3, True)
        """
        wanted = None if agents is None else validation.uuids("agents", agents)
        space = await self._space_now()
        beside = space.id is not None
        statement = exporting.statement(
            agents=wanted is not None, include_deleted=include_deleted, versions=versions, beside=beside
        )
        parameters: dict[str, object] = {"org_id": self._tenant, **space.parameters}
        if beside:
            parameters["embedding_model"] = space.embedding_model
        if wanted is not None:
            parameters["agents"] = wanted
        await self._flush()
        with translated():
            rows = await self._session.stream(statement, parameters, execution_options={"yield_per": 200, SCOPED: True})
            async with aclosing(exporting.lines(cast("Any", rows), newest(), progress, space.dimensions)) as made:
                async for line in made:
                    yield line

    async def import_(
        self,
        lines: Lines,
        *,
        agents: Mapping[UUID | str, UUID | str] | None = None,
        create_agents: bool = False,
        include_erased: bool = False,
        batch_size: int = BATCH_SIZE,
        progress: Callable[[int, int], None] | None = None,
        on_item: Callable[[ImportedItem], None] | None = None,
    ) -> Imported:
        """Bring the memories of an export in, all or none; what is known already stays as it is.

        Reads the lines as it goes.  Memories keep their ids where every agent is
        itself; where one becomes another, ids are made from the old ones, the same
        each time, so importing again adds nothing.  The last line says whether
        the file was whole; where it was not, nothing is kept.

        Args:
            lines: an open file (``open(path, "rb")``), lines, or what export() returns.
            agents: whose memories they become: the old agent's id or slug to the id or slug of one here.
                Others are found by their id, then by their slug.
            create_agents: make the agents that are not found, under their slugs.
            include_erased: also bring back what was erased here.
            batch_size: memories of one statement, 1 to 10,000.
            progress: called after each batch with how many memories are done, and how many there are.
            on_item: called with what became of each memory.

        Raises:
            ExportDamagedError: the file was cut off or changed.
            InvalidInputError: with ``index``, the number of the line that is wrong; or an agent that is not here.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Speaks Danish.", category="factual")
            >>> lines = [line async for line in memories.export()]
            >>> gone = await memories.erase(kept.memory.id)
            >>> (await memories.import_(lines)).erased
            1
            >>> (await memories.import_(lines, include_erased=True)).created
            1
        """
        validation.integer("batch_size", batch_size, 1, _MAX_BATCH)
        if isinstance(lines, (str, bytes)) or not isinstance(cast("object", lines), (Iterable, AsyncIterable)):
            raise InvalidInputError("lines", lines, "must be an open file, a list of lines, or what export() returns")
        await self._flush()
        await self._ready()
        # A savepoint: whoever catches the error and goes on finds nothing half written.
        async with self._savepoint():
            loader = await self._loader(include_erased=include_erased, on_item=on_item)
            reader = Reader(lines, loader.space.dimensions)
            async with aclosing(reader.records()) as records:
                header = header_of(await anext(records))
                places = await self._places(header, agents or {}, create=create_agents)
                destination = Destination(places, renamed(self._tenant, places))
                told = (lambda: progress(loader.report.memories, header.memories)) if progress else None
                await Pouring(loader, destination, batch_size, told).pour(records, reader)
            return await loader.finish()

    async def _loader(self, *, include_erased: bool, on_item: Callable[[ImportedItem], None] | None) -> Loader:
        """Return a loader; from here on no erasure of the organization goes on beside it."""
        await self._execute(_SHARE, {"number": lock_number(self._tenant)})
        found = await self._execute(select(ErasureKey.__table__.c["key"]).where(ErasureKey.org_id == self._tenant))
        return Loader(
            self._execute,
            self._tenant,
            binary=statements.speaks_binary(cast("Any", self._session.get_bind())),
            key=found.scalar_one_or_none(),
            include_erased=include_erased,
            on_item=on_item,
            space=await self._space_now(hold=True),
            sharded=await self._is_sharded(),
        )

    async def _places(
        self, header: Header, given: Mapping[UUID | str, UUID | str], *, create: bool
    ) -> Mapping[UUID, UUID]:
        """Return who each agent of the file is here."""
        here = (await self._execute(select(Agent).where(Agent.org_id == self._tenant))).scalars().all()
        ids = {agent.id for agent in here}
        slugs = {agent.slug: agent.id for agent in here if agent.deleted_at is None}
        wanted = {str(old): new for old, new in given.items()}
        if unknown := wanted.keys() - {str(one[key]) for one in header.agents for key in ("id", "slug")}:
            known = ", ".join(str(one["slug"]) for one in header.agents)
            raise InvalidInputError("agents", min(unknown), f"is no agent of this file; it has {known or 'none'}")
        found: dict[UUID, UUID] = {}
        for one in header.agents:
            old, slug = cast("UUID", one["id"]), str(one["slug"])
            new = wanted.get(str(old), wanted.get(slug))
            if new is not None:
                place = slugs.get(new) if isinstance(new, str) else new
                if place is None and isinstance(new, str):
                    place = validation.uuid("agents", new)
                if place not in ids:
                    raise InvalidInputError("agents", new, "is no agent of this organization")
            else:
                place = old if old in ids else slugs.get(slug)
            if place is None:
                if not create:
                    raise InvalidInputError(
                        "agents",
                        slug,
                        "is no agent of this organization: name one for it (agents={old: new}), or pass create_agents",
                    )
                place = await self._new_agent(one, keep=header.organization.get("id") == str(self._tenant))
            found[old] = cast("UUID", place)
        return found

    async def _new_agent(self, told: Mapping[str, Any], *, keep: bool) -> UUID:
        """Make an agent as the file tells it; with its id, where it was this organization's."""
        agent = Agent(
            org_id=self._tenant, name=told.get("name"), slug=told.get("slug"), description=told.get("description")
        )
        if keep:
            agent.id = told["id"]
        self._session.add(agent)
        await self._flush()
        return agent.id
