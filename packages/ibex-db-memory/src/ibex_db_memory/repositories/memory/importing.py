"""In from other libraries' tables: mem0 and LangGraph's Postgres store."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_memory.importers import langgraph, mem0
from ibex_db_memory.importers.source import Source, check_table, opened, quoted, rows
from ibex_db_memory.models import MemoryCategory, Session, SessionStatus
from ibex_db_memory.repositories.memory.moving import BATCH_SIZE, Moving
from ibex_db_memory.transfer import incoming
from ibex_db_memory.transfer.incoming import Incoming
from ibex_db_memory.transfer.loading import Loader
from ibex_db_memory.transfer.outcomes import Imported, ImportedItem
from ibex_db_tenancy import Agent


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What every importer asks beside where and whose.

    Attributes:
        category: of memories whose source names none.
        embeddings: bring the vectors along; False where another model made them.
        embedding_model: which model made them.
        include_erased: also bring back what was erased here.
        skip_invalid: go on where a row breaks a rule, and report it; False: nothing is kept.
        batch_size: memories of one statement, 1 to 10,000.
        progress: called after each batch with how many are done.
        on_item: called with what became of each row.
    """

    category: MemoryCategory | str = MemoryCategory.FACTUAL
    embeddings: bool = True
    embedding_model: str | None = None
    include_erased: bool = False
    skip_invalid: bool = False
    batch_size: int = BATCH_SIZE
    progress: Callable[[int], None] | None = None
    on_item: Callable[[ImportedItem], None] | None = None


_DEFAULTS = ImportOptions()


class Importing(Moving):
    """Bringing in what other libraries keep."""

    async def import_mem0(
        self,
        source: Source,
        *,
        table: str = "mem0",
        schema: str = "public",
        agents: Mapping[str, UUID] | None = None,
        agent_id: UUID | None = None,
        options: ImportOptions = _DEFAULTS,
    ) -> Imported:
        """Bring in the memories of mem0's pgvector table, all or none; what is known already stays as it is.

        What becomes of each column is told in ibex_db_memory.importers.mem0.  A
        row keeps its id, so importing again adds nothing.

        Args:
            source: a DSN, or an open connection of asyncpg; read at one moment, never written.
            table: mem0's ``collection_name``.
            schema: the table's.
            agents: mem0's agent_id to the agent here.
            agent_id: whose the other memories become.
            options: see ImportOptions.

        Raises:
            InvalidInputError: no such table, vectors of another dimension, a row without an agent here, or
                one that breaks a rule (``index`` counts rows from 1).

        Example:
            >>> driver = (await (await session.connection()).get_raw_connection()).driver_connection
            >>> _ = await driver.execute("CREATE TEMP TABLE mem0 (id uuid, vector vector(384), payload jsonb)")
            >>> payload = '{"data": "Likes tea.", "agent_id": "support-bot"}'
            >>> _ = await driver.execute("INSERT INTO mem0 VALUES (gen_random_uuid(), NULL, $1::text::jsonb)", payload)
            >>> done = await memories.import_mem0(driver, schema="pg_temp", agents={"support-bot": agent.id})
            >>> done.created, done.duplicates
            (1, 0)
        """
        places = await self._agents_here(agents)
        default = await self._agent_here(agent_id)
        category = cast("MemoryCategory", validation.enum_member("category", MemoryCategory, options.category))
        name = quoted(schema, table)
        runs: dict[tuple[UUID, str], UUID] = {}

        async def read(row: Mapping[str, Any]) -> dict[str, Any] | str:
            payload = mem0.payload_of(row)
            if not payload.get("data"):
                return "the payload has no data"
            agent = places.get(str(payload.get("agent_id")), default)
            record = mem0.record(row, payload, category)
            record["agent_id"] = self._required(agent, "agent_id", payload.get("agent_id"))
            if payload.get("run_id") is not None:
                record["session_id"] = await self._run(record["agent_id"], str(payload["run_id"]), runs)
            return record

        async with opened(source) as connection:
            if not await check_table(connection, name, "payload"):
                raise InvalidInputError("table", f"{schema}.{table}", "is no table of mem0's: it has no payload")
            if options.embeddings:
                await check_table(connection, name, "vector", (await self._space_now()).dimensions)
            query = mem0.query(name, embeddings=options.embeddings)
            async with aclosing(rows(connection, query)) as found:
                return await self._bring(found, lambda row: str(row["id"]), read, options)

    async def import_langgraph(
        self,
        source: Source,
        *,
        schema: str = "public",
        agents: Mapping[str, UUID] | None = None,
        agent_id: UUID | None = None,
        content: str | None = None,
        vector_field: str | None = None,
        options: ImportOptions = _DEFAULTS,
    ) -> Imported:
        """Bring in the items of LangGraph's Postgres store, all or none; what is known already stays as it is.

        What becomes of each column is told in ibex_db_memory.importers.langgraph.

        Args:
            source: a DSN, or an open connection of asyncpg; read at one moment, never written.
            schema: where ``store`` and ``store_vectors`` are.
            agents: a namespace, dotted, to the agent here; the longest that fits an item's namespace counts.
            agent_id: whose the other items become.
            content: the field of the value that is the content, dotted; None looks for the usual ones.
            vector_field: the field whose vector is kept; None: the content's.
            options: see ImportOptions.

        Raises:
            InvalidInputError: no such tables, vectors of another dimension, an item without an agent here, or
                one that breaks a rule (``index`` counts items from 1).

        Example:
            >>> driver = (await (await session.connection()).get_raw_connection()).driver_connection
            >>> _ = await driver.execute("CREATE TEMP TABLE store (prefix text, key text, value jsonb, "
            ...     "created_at timestamptz, updated_at timestamptz, expires_at timestamptz)")
            >>> value = '{"text": "Likes tea."}'
            >>> _ = await driver.execute(
            ...     "INSERT INTO store VALUES ('memories.ada', 'tea', $1::text::jsonb, now(), now(), NULL)", value)
            >>> done = await memories.import_langgraph(driver, schema="pg_temp", agents={"memories": agent.id})
            >>> done.created, done.duplicates
            (1, 0)
        """
        places = await self._agents_here(agents)
        default = await self._agent_here(agent_id)
        category = cast("MemoryCategory", validation.enum_member("category", MemoryCategory, options.category))
        store, vectors = quoted(schema, "store"), quoted(schema, "store_vectors")

        async def read(row: Mapping[str, Any]) -> dict[str, Any] | str:
            record = langgraph.record(row, self._tenant, category, content=content, vector_field=vector_field)
            agent = langgraph.agent_of(row["prefix"], places) or default
            return {**record, "agent_id": self._required(agent, "namespace", row["prefix"])}

        async with opened(source) as connection:
            if not await check_table(connection, store, "value"):
                raise InvalidInputError("schema", schema, "has no table store of LangGraph's")
            embedded = options.embeddings and await check_table(
                connection, vectors, "embedding", (await self._space_now()).dimensions
            )
            query = langgraph.query(store, vectors if embedded else None)
            async with aclosing(rows(connection, query)) as found:
                return await self._bring(found, lambda row: f"{row['prefix']}/{row['key']}", read, options)

    async def _bring(
        self,
        found: AsyncIterator[Mapping[str, Any]],
        named: Callable[[Mapping[str, Any]], str],
        read: Callable[[Mapping[str, Any]], Any],
        options: ImportOptions,
    ) -> Imported:
        """Read, check and load rows, in a savepoint of their own."""
        size = validation.integer("batch_size", options.batch_size, 1, 10_000)
        await self._flush()
        await self._ready()
        async with self._savepoint():
            loader = await self._loader(include_erased=options.include_erased, on_item=options.on_item)
            batch: list[Incoming] = []
            number = 0
            async for row in found:
                number += 1
                try:
                    record = await read(row)
                    one = (
                        record
                        if isinstance(record, str)
                        else incoming.memory({**record, **_model(options, record)}, space=loader.space)
                    )
                except InvalidInputError as exc:
                    if not options.skip_invalid:
                        raise InvalidInputError(exc.field, exc.value, exc.rule, index=number) from exc
                    one = str(exc)
                if isinstance(one, str):
                    loader.skip(named(row), one)
                    continue
                one.source_id = named(row)
                batch.append(one)
                if len(batch) == size:
                    await _load(loader, batch, options)
            await _load(loader, batch, options)
            return await loader.finish()

    async def _agent_here(self, agent_id: UUID | None) -> UUID | None:
        if agent_id is None:
            return None
        ident = validation.uuid("agent_id", agent_id)
        statement = select(Agent.id).where(Agent.org_id == self._tenant, Agent.id == ident)
        if (await self._execute(statement)).scalar_one_or_none() is None:
            raise NotFoundError(Agent.__name__, ident)
        return ident

    async def _agents_here(self, agents: Mapping[str, UUID] | None) -> Mapping[str, UUID]:
        return {str(name): cast("UUID", await self._agent_here(ident)) for name, ident in (agents or {}).items()}

    @staticmethod
    def _required(agent: UUID | None, field: str, value: object) -> UUID:
        if agent is None:
            raise InvalidInputError(
                field, value, "has no agent here: name one in agents, or pass agent_id for all others"
            )
        return agent

    async def _run(self, agent_id: UUID, run_id: str, runs: dict[tuple[UUID, str], UUID]) -> UUID:
        """Return the session of a run, which ended before we knew it; made where it is not there."""
        key = (agent_id, run_id)
        if key not in runs:
            external = validation.check(Session, "external_id", run_id)
            values = {"org_id": self._tenant, "agent_id": agent_id, "external_id": external}
            await self._execute(
                insert(Session).values(**values, status=SessionStatus.COMPLETED).on_conflict_do_nothing()
            )
            statement = select(Session.id).where(
                Session.org_id == self._tenant, Session.agent_id == agent_id, Session.external_id == external
            )
            runs[key] = cast("UUID", (await self._execute(statement)).scalar_one())
        return runs[key]


def _model(options: ImportOptions, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"embedding_model": options.embedding_model if record["embedding"] is not None else None}


async def _load(loader: Loader, batch: list[Incoming], options: ImportOptions) -> None:
    if batch:
        await loader.load(batch)
        batch.clear()
        if options.progress is not None:
            options.progress(loader.report.memories)
