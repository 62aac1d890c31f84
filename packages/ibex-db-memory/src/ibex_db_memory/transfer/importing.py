"""From the records of a file to the loader: whose they become, under which ids, in which batches."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from uuid import UUID, uuid5

from ibex_db_core.errors import InvalidInputError
from ibex_db_memory.transfer import incoming
from ibex_db_memory.transfer.fileformat import Reader
from ibex_db_memory.transfer.incoming import POINTERS, Incoming
from ibex_db_memory.transfer.loading import Loader


class Destination:
    """Where the memories of a file go: whose they become, and under which ids.

    Args:
        agents: old agent to new.
        ids: old id to new.
    """

    def __init__(self, agents: Mapping[UUID, UUID], ids: Callable[[UUID], UUID]) -> None:
        self._agents = agents
        self._ids = ids

    def place(self, one: Incoming, line: int) -> Incoming:
        """Put a memory in its place."""
        values = one.values
        if values["agent_id"] not in self._agents:
            raise InvalidInputError("agent_id", values["agent_id"], "must be one of the header's agents", index=line)
        values["agent_id"] = self._agents[values["agent_id"]]
        for name in ("id", *POINTERS):
            if values[name] is not None:
                values[name] = self._ids(values[name])
        return one

    def connect(self, edge: dict[str, Any]) -> dict[str, Any]:
        """Put both ends of a relationship in their place."""
        return {**edge, **{end: self._ids(edge[end]) for end in ("source_memory_id", "target_memory_id")}}


def renamed(org_id: UUID, places: Mapping[UUID, UUID]) -> Callable[[UUID], UUID]:
    """Return old id to new: itself, unless an agent becomes another; the same each time for the same agents."""
    if all(old == new for old, new in places.items()):
        return lambda ident: ident
    space = uuid5(org_id, ",".join(sorted(f"{old}={new}" for old, new in places.items())))
    return lambda ident: uuid5(space, str(ident))


class Pouring:
    """Brings the records of one file in, batch by batch.

    Args:
        loader: of the organization.
        destination: where they go.
        batch_size: memories, or relationships, of one statement.
        told: called after each batch of memories.
    """

    def __init__(
        self, loader: Loader, destination: Destination, batch_size: int, told: Callable[[], None] | None
    ) -> None:
        self._loader = loader
        self._destination = destination
        self._size = batch_size
        self._told = told
        self._batch: dict[UUID, Incoming] = {}
        self._edges: list[dict[str, Any]] = []

    async def pour(self, records: AsyncIterator[Mapping[str, Any]], reader: Reader) -> None:
        """Bring in all records.

        Raises:
            InvalidInputError: with ``index``, the number of the line that is wrong.
        """
        async for record in records:
            if record["kind"] == "memory":
                memory = incoming.memory(record, reader.number, self._loader.space)
                one = self._destination.place(memory, reader.number)
                # What a memory points at must be there before it, and of an id that comes twice the first.
                if any(one.values[name] in self._batch for name in ("id", *POINTERS)):
                    await self._flush()
                self._batch[one.values["id"]] = one
            else:
                self._edges.append(self._destination.connect(incoming.relationship(record, reader.number)))
            if len(self._batch) == self._size or len(self._edges) == self._size:
                await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        if self._batch:
            await self._loader.load(list(self._batch.values()))
            self._batch.clear()
            if self._told is not None:
                self._told()
        if self._edges:
            await self._loader.relate(self._edges)
            self._edges.clear()
