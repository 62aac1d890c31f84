"""Remembering: writes that know what is known already, one statement for a memory or for a thousand.

Why no ON CONFLICT DO UPDATE: it would write a dead row, and bump updated_at, for
every duplicate.  DO NOTHING writes nothing; the twin is read after it.  A twin
that was there when the INSERT ran and is gone when it is looked for, or that a
batch's snapshot does not see yet, has the statement run once more.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, cast
from uuid import UUID, uuid4

import pgvector
from sqlalchemy import Executable, Result

from ibex_db_core import validation
from ibex_db_core.errors import (
    ConflictError,
    ForeignKeyError,
    InvalidInputError,
    RuleViolationError,
    SerializationError,
)
from ibex_db_core.savepoints import note_rows
from ibex_db_core.types import JsonObject, VectorLike
from ibex_db_memory.content import content_hash
from ibex_db_memory.drafts import CheckedDraft, MemoryDraft, check_draft, check_embedding
from ibex_db_memory.models import Memory, MemoryCategory, MemorySource, MemoryStatus
from ibex_db_memory.models.standing import NEEDS_VECTOR
from ibex_db_memory.repositories.memory import sharded, statements
from ibex_db_memory.repositories.memory.finding import Finding
from ibex_db_memory.search.filters import Filters
from ibex_db_memory.search.lexical import corpora_for
from ibex_db_memory.search.plan import sizes_for
from ibex_db_memory.search.query import Hit
from ibex_db_memory.search.spaces import Space

# A statement that found neither its row nor the twin is tried again; each time
# another transaction has inserted and removed the twin within microseconds.
_TRIES = 20

# With vectors 250 rows a statement are as fast as 1,000, without 5 % slower; and 1,000 with vectors take the server
# 8 s in a vector index of 20,000, which on a busy machine is statement_timeout (30 s).
BATCH_SIZE = 250
_MAX_BATCH = 10_000

# From so many on, a search should not go by the scope's size of half a minute ago.
_MANY = 500

# BM25 compares with the whole scope: from a tenth more rows on, its counts of half a minute ago are stale.
_NOTICED = 10


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of one memory.

    Attributes:
        memory: the new row, or the one that says the same already.
        created: False for a duplicate: the same normalised content, agent and organization.
        near_duplicate: where near_duplicate_threshold was given, the most similar other memory at or above it.
    """

    memory: Memory
    created: bool
    near_duplicate: Hit | None = None


class Outcome(NamedTuple):
    """What became of one of many: the id of the row that says it, and whether it is new."""

    id: UUID
    created: bool


@dataclass(frozen=True, slots=True)
class RememberedMany:
    """What became of many memories.

    Attributes:
        outcomes: one for each draft, in the order given.
    """

    outcomes: Sequence[Outcome]

    @property
    def created(self) -> int:
        """How many are new."""
        return sum(outcome.created for outcome in self.outcomes)

    @property
    def duplicates(self) -> int:
        """How many were known already, or came twice."""
        return len(self.outcomes) - self.created


class Writing(Finding):
    """Remembering."""

    async def remember(
        self,
        *,
        agent_id: UUID,
        content: str,
        category: MemoryCategory | str,
        embedding: VectorLike | None = None,
        embedding_model: str | None = None,
        source: MemorySource | str = MemorySource.EXTRACTED,
        status: MemoryStatus | str = MemoryStatus.ACTIVE,
        session_id: UUID | None = None,
        confidence: Decimal | float | None = None,
        tags: Iterable[str] = (),
        metadata: JsonObject | None = None,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
        expires_at: datetime | None = None,
        id: UUID | None = None,  # noqa: A002 - the column's name
        near_duplicate_threshold: float | None = None,
    ) -> Kept:
        """Keep one statement, unless the agent keeps it already; one round trip where it is new, race-free.

        A duplicate is left as it is: its tags, confidence and vector do not
        change.  A twin that has expired counts as gone: it is soft-deleted and
        the statement is kept anew.

        Args:
            agent_id: whose memory it is.
            content: 1 to 8192 characters.
            category: what kind of thing it says.
            embedding: shape (384,), or the dimensions of the model that the organization moved to; float32, need
                not be normalised; None is found by no vector search.
            embedding_model: which model made the vector.
            source: how it came to be.
            status: ACTIVE, PENDING_REVIEW or ARCHIVED; only active memories have duplicates.
            session_id: where it was learned.
            confidence: in [0, 1]; None is 0.8.
            tags: each 1 to 64 characters when normalised.
            metadata: a JSON object.
            valid_from: since when it holds in the world; None is now.
            valid_until: until when, exclusive.
            expires_at: when it should be forgotten.
            id: made by the caller; None makes one.
            near_duplicate_threshold: also look for another memory of the agent at or above this cosine
                similarity, in [-1, 1], with a vector of the same model, and report it.  It is kept either way.

        Raises:
            InvalidInputError: which field, which value, which rule; nothing is kept.
            ForeignKeyError: no such agent or session in this organization.

        Example:
            >>> kept = await memories.remember(
            ...     agent_id=agent.id, content="Prefers tea over coffee.", category="preference", tags=["drinks"])
            >>> kept.created
            True
            >>> again = await memories.remember(
            ...     agent_id=agent.id, content="prefers TEA  over coffee.", category="preference")
            >>> again.created, again.memory.id == kept.memory.id
            (False, True)
        """
        draft = check_draft(
            {
                "agent_id": agent_id,
                "content": content,
                "category": category,
                "embedding": embedding,
                "embedding_model": embedding_model,
                "source": source,
                "status": status,
                "session_id": session_id,
                "confidence": confidence,
                "tags": tags,
                "metadata": {} if metadata is None else metadata,
                "valid_from": valid_from,
                "valid_until": valid_until,
                "expires_at": expires_at,
                "id": id,
            },
            uuid4(),
        )
        if near_duplicate_threshold is not None:
            validation.number("near_duplicate_threshold", near_duplicate_threshold, -1, 1)
            if embedding is None:
                raise InvalidInputError("embedding", None, "is required to look for near duplicates")
        memory, created = await self._remember_one(draft)
        near = None
        if near_duplicate_threshold is not None:
            near = await self._near_duplicate(
                memory, cast("pgvector.Vector", draft.values["embedding"]), embedding_model, near_duplicate_threshold
            )
        return Kept(memory, created, near)

    async def remember_many(
        self,
        drafts: Iterable[MemoryDraft | Mapping[str, object]] | AsyncIterable[MemoryDraft | Mapping[str, object]],
        *,
        batch_size: int = BATCH_SIZE,
        progress: Callable[[int], None] | None = None,
    ) -> RememberedMany:
        """Keep many statements, all or none, one statement a batch.

        Reads the drafts as it goes, so a generator of 100,000 is never in memory as a whole.

        A batch is written in one order, whatever the order of its drafts.  Two callers that keep the same contents
        in opposite orders, spread over several batches, may each wait for what the other has written: Postgres ends
        one with DeadlockError, and ``db.run()`` runs that one again.

        Args:
            drafts: MemoryDrafts or mappings of their fields.
            batch_size: rows of one statement, 1 to 10,000.
            progress: called after each batch with the number of drafts done so far.

        Raises:
            InvalidInputError: with ``index``, the position of the draft that is wrong; nothing is kept.
            ForeignKeyError: with ``index``: its agent or session is not in this organization.
            ConflictError: with ``index``: its id is that of another memory.

        Example:
            >>> done = await memories.remember_many(
            ...     {"agent_id": agent.id, "content": f"Room {n % 3} is booked.", "category": "episodic"}
            ...     for n in range(4))
            >>> done.created, done.duplicates
            (3, 1)
        """
        validation.integer("batch_size", batch_size, 1, _MAX_BATCH)
        outcomes: list[Outcome] = []
        await self._ready()
        batch: Sequence[CheckedDraft] = ()
        try:
            # A savepoint: whoever catches the error and goes on finds nothing half written.
            async with self._savepoint(), aclosing(_batches(drafts, batch_size)) as batches:
                async for batch in batches:
                    outcomes.extend(await self._remember_batch(batch, len(outcomes)))
                    if progress is not None:
                        progress(len(outcomes))
        except (ConflictError, ForeignKeyError) as exc:
            if (told := await self._pointed_out(exc, batch, len(outcomes))) is None:
                raise
            raise told from exc
        self._count_anew(sum(outcome.created for outcome in outcomes))
        return RememberedMany(outcomes)

    async def update(self, ident: UUID, **changes: object) -> Memory:
        """Change fields of a memory, and return it; a new content comes with its vector, or with None.

        Raises:
            InvalidInputError: no such field, a value that breaks its rule, a vector of another model than the
                organization's, or a content without word of its vector.
            NotFoundError: no such memory in this organization.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Has a cat.", category="factual")
            >>> (await memories.update(kept.memory.id, content="Has a dog.", embedding=None)).content
            'Has a dog.'
        """
        if "embedding" not in changes:
            return await super().update(ident, **changes)
        vector = check_embedding(cast("VectorLike | None", changes["embedding"]))
        space = await self._space_now(hold=True)
        if vector is not None:
            model = changes.get("embedding_model")
            space.check_written(vector, None if model is None else str(model))
        if space.id is not None:
            changes = {**changes, "embedding": None}
        memory = await super().update(ident, **changes)
        await self._put(space, memory.id, vector)
        return memory

    def _complete(self, values: dict[str, object]) -> dict[str, object]:
        """Keep content_hash in step with content in update(), and have the vector follow."""
        if "content_hash" in values:
            raise InvalidInputError("content_hash", values["content_hash"], "is made from content: leave it out")
        if "content" in values:
            if "embedding" not in values:
                raise InvalidInputError("embedding", "nothing", NEEDS_VECTOR)
            values["content_hash"] = content_hash(cast("str", values["content"]))
        return values

    async def _remember_one(self, draft: CheckedDraft) -> tuple[Memory, bool]:
        space = await self._space_of([draft])
        values = {"org_id": self._tenant, **draft.values}
        insert, tagged = statements.INSERT_ONE, values
        is_sharded = await self._is_sharded()
        if is_sharded:
            tagged = values if space.id is None else {**values, "embedding": None}
        elif space.id is not None:
            insert, tagged = statements.INSERT_BESIDE, {**values, "tags": list(draft.tags), **space.parameters}
        elif draft.tags:
            insert, tagged = statements.INSERT_TAGGED, {**values, "tags": list(draft.tags)}
        for _ in range(_TRIES):
            if rows := await self._inserted(insert, tagged):
                if is_sharded:
                    await sharded.insert_beside(self._insert, [draft], self._tenant, space)
                note_rows(self._session, rows, made=True)
                self._count_anew(1)
                return cast("Memory", rows[0][0]), True
            twin = (await self._execute(statements.TWIN_OF_ONE, values, populate_existing=True)).one_or_none()
            if twin is None:
                continue
            memory, expired = cast("tuple[Memory, bool]", tuple(twin))
            if not expired:
                return memory, False
            await self._execute(statements.RETIRE_ONE, values)
        raise _always_outrun()

    async def _space_of(self, batch: Sequence[CheckedDraft], start: int | None = None) -> Space:
        """Return where a batch's vectors go; an error names the draft, counted from ``start``."""
        vectors: list[tuple[pgvector.Vector, str | None]] = []
        places: list[int] = []
        for place, draft in enumerate(batch):
            if (vector := cast("pgvector.Vector | None", draft.values["embedding"])) is not None:
                vectors.append((vector, cast("str | None", draft.values["embedding_model"])))
                places.append(place)
        try:
            return await self._space_to_write(vectors)
        except InvalidInputError as exc:
            index = None if start is None or exc.index is None else start + places[exc.index]
            raise InvalidInputError(exc.field, exc.value, exc.rule, index=index) from exc

    async def _insert(
        self, statement: Executable, parameters: Mapping[str, object] | None = None
    ) -> Result[*tuple[Any, ...]]:
        try:
            return await self._execute(statement, parameters)
        except RuleViolationError as exc:
            self._raise_too_late(exc)
            raise

    async def _inserted(self, statement: Executable, parameters: dict[str, object]) -> Sequence[Any]:
        try:
            return await self._rows(statement, parameters)
        except RuleViolationError as exc:
            self._raise_too_late(exc)
            raise

    async def _remember_batch(self, batch: Sequence[CheckedDraft], start: int) -> Sequence[Outcome]:
        space = await self._space_of(batch, start)
        statement = statements.REMEMBER_MANY if space.id is None else statements.REMEMBER_MANY_BESIDE
        outcomes: dict[int, Outcome] = {}
        # Positions of drafts that say the same, in the order given.  The first of each is sent; the others
        # share what becomes of it, unless it has expired already: then it is gone for them, and the next is sent.
        alike: dict[object, list[int]] = {}
        for position, draft in enumerate(batch):
            alike.setdefault(draft.twin_key, []).append(position)
        outrun = 0
        while alike:
            # In the order of the unique index, so that two writers of the same contents do not deadlock.
            keys = sorted(alike, key=lambda key: batch[alike[key][0]].place)
            rows = [batch[alike[key][0]] for key in keys]
            key_of = {row.values["id"]: key for row, key in zip(rows, keys, strict=True)}
            unseen = False
            for wanted, found, created, expired in await self._kept(statement, rows, space):
                if found is None:
                    unseen = True
                    continue
                first, *others = alike.pop(key_of[wanted])
                outcomes[first] = Outcome(found, created)
                if expired and others:
                    alike[key_of[wanted]] = others
                    continue
                outcomes.update({other: Outcome(found, created=False) for other in others})
            outrun += unseen
            if outrun == _TRIES:
                raise _always_outrun()
        return [outcomes[position] for position in range(len(batch))]

    async def _kept(self, statement: Executable, rows: Sequence[CheckedDraft], space: Space) -> Sequence[Sequence[Any]]:
        """Run a batch's statement, or its steps where statements go through Citus; see statements.REMEMBER_MANY."""
        if await self._is_sharded():
            return await sharded.remember_many(self._insert, rows, self._tenant, space)
        parameters = {**statements.columns_of(rows, self._tenant, self._binary), **space.parameters}
        return (await self._insert(statement, parameters)).all()

    async def _pointed_out(
        self, exc: ConflictError | ForeignKeyError, batch: Sequence[CheckedDraft], start: int
    ) -> ConflictError | ForeignKeyError | None:
        """Return the error with the position and the value of the first draft that it may be about."""
        named = {
            name: [draft.values[name] for draft in batch if draft.values[name] is not None]
            for name in ("id", "agent_id", "session_id")
        }
        parameters = {"org_id": self._tenant, **{f"{name}s": values for name, values in named.items()}}
        rows = (await self._execute(statements.KNOWN, parameters)).all()
        known = {kind: {row.id: row for row in rows if row.kind == kind} for kind in ("memory", "agent", "session")}
        for index, draft in enumerate(batch, start):
            ident, agent, session = (draft.values[name] for name in ("id", "agent_id", "session_id"))
            if isinstance(exc, ConflictError):
                taken = known["memory"].get(ident)
                if taken is not None and draft.twin_key != (taken.agent_id, taken.twin_hash):
                    return _pointed(exc, index, "id", ident, "is that of another memory: leave it out, or give another")
            elif agent not in known["agent"]:
                return _pointed(exc, index, "agent_id", agent, "is no agent of this organization")
            elif session is not None and session not in known["session"]:
                return _pointed(exc, index, "session_id", session, "is no session of this organization")
        return None

    def _count_anew(self, created: int) -> None:
        """Forget how large the organization's scopes were, where so many new rows make a difference."""
        if not created:
            return
        bind = self._session.get_bind()
        if created >= _MANY:
            sizes_for(bind).forget(self._tenant)
        corpora_for(bind).forget(self._tenant, where=lambda corpus: created * _NOTICED >= corpus.rows)

    async def _near_duplicate(
        self, memory: Memory, embedding: pgvector.Vector, model: str | None, threshold: float
    ) -> Hit | None:
        filters = Filters.of(agent_id=memory.agent_id, embedding_model=model)
        filters = replace(filters, unnamed_model=model is None)
        hits = await self._nearest(embedding, filters, 2, exact=False)
        return next(
            (hit for hit in hits if hit.memory.id != memory.id and cast("float", hit.similarity) >= threshold), None
        )

    @property
    def _binary(self) -> bool:
        """Tell whether the session's connections have the binary vector codec: those of a Database do."""
        return statements.speaks_binary(cast("Any", self._session.get_bind()))


async def _batches(
    drafts: Iterable[MemoryDraft | Mapping[str, object]] | AsyncIterable[MemoryDraft | Mapping[str, object]], size: int
) -> AsyncGenerator[Sequence[CheckedDraft]]:
    batch: list[CheckedDraft] = []
    index = 0
    given: dict[object, object] = {}  # the caller's ids, and what each says; only those, to keep memory flat
    async with aclosing(_each(drafts)) as each:
        async for draft in each:
            try:
                made = uuid4()
                checked = check_draft(draft, made)
            except InvalidInputError as exc:
                raise InvalidInputError(exc.field, exc.value, exc.rule, index=index) from exc
            ident = checked.values["id"]
            if ident != made:
                says = hash(checked.twin_key) if checked.values["status"] is MemoryStatus.ACTIVE else index
                if given.setdefault(ident, says) != says:
                    raise InvalidInputError("id", ident, "is that of another draft", index=index)
            batch.append(checked)
            index += 1
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch


async def _each(
    drafts: Iterable[MemoryDraft | Mapping[str, object]] | AsyncIterable[MemoryDraft | Mapping[str, object]],
) -> AsyncGenerator[MemoryDraft | Mapping[str, object]]:
    if isinstance(drafts, (str, bytes)) or not isinstance(cast("object", drafts), (AsyncIterable, Iterable)):
        raise InvalidInputError("drafts", drafts, "must be drafts: a list, a generator or an asynchronous one")
    if isinstance(drafts, AsyncIterable):
        async for draft in drafts:
            yield draft
    else:
        for draft in drafts:
            yield draft


def _pointed(
    exc: ConflictError | ForeignKeyError, index: int, field: str, value: object, rule: str
) -> ConflictError | ForeignKeyError:
    told = type(exc)(
        f"item {index}: {field} {value} {rule}; {exc}",
        constraint=exc.constraint,
        table=exc.table,
        values={field: value},
        sqlstate=exc.sqlstate,
    )
    told.index = index
    return told


def _always_outrun() -> SerializationError:
    return SerializationError("another transaction kept inserting and removing the same content; run it again")
