"""What services do all day, each with a note in the organization's book of what it was told."""

import asyncio
import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID, uuid4

from books import Book
from sqlalchemy import text

from ibex_db import (
    Agent,
    AgentRepository,
    CommitUnknownError,
    Database,
    DatabaseError,
    ForeignKeyError,
    MemoryRepository,
    NotFoundError,
    OrganizationRepository,
    SessionRepository,
    StatementTimeoutError,
    TransientError,
)
from ibex_db_core.tenant import ScopedSession

T = TypeVar("T")

BATCH = 5
_SAMPLE = 10
_CANCELLED = 0.08  # of all tasks
_LONGEST_SECONDS = 0.08  # until a task is cancelled: about what the longest takes

_ROWS = text("SELECT org_id, content FROM ibex_core.memories ORDER BY created_at DESC LIMIT 200")
_SLOW = text("SELECT pg_sleep(10)")
_HURRY = text("SET LOCAL statement_timeout = '50ms'")

# What is told to whoever writes for an organization that is just being erased.
_GONE = (ForeignKeyError, NotFoundError)

# What is told to a service that is newer than its database.
_NO_FUNCTION = "42883"

DONE, REFUSED, UNKNOWN = "done", "refused", "unknown"


@dataclass
class Works:
    """Everything that writers and readers do, over several ways to the same database.

    Attributes:
        routes: name to a service's Database; each thing is done over one of them, by chance.
        wrong: what nobody may ever be shown, or be told.
        done: how often each thing came to pass; told: how often each error; retries: of db.run().
        older: the database is older than these services, because revisions are being taken back.
    """

    routes: Mapping[str, Database]
    chance: random.Random
    older: bool = False
    wrong: list[str] = field(default_factory=list[str])
    done: Counter[str] = field(default_factory=Counter[str])
    told: Counter[str] = field(default_factory=Counter[str])
    retries: int = 0

    async def sign_up(self) -> Book:
        """Make an organization with an agent and a run, however often it takes."""
        while True:
            db, slug = self._any(), f"chaos-{uuid4().hex[:12]}"
            try:
                async with db.platform(reason="chaos: sign-up") as platform:
                    org = await OrganizationRepository(platform).create(name="Chaos", slug=slug)
                async with db.tenant(org.id) as session:
                    agent = await AgentRepository(session).add(Agent(name="Robin", slug="robin"))
                    run = await SessionRepository(session).start(agent_id=agent.id)
            except (TransientError, CommitUnknownError, StatementTimeoutError) as error:
                self.told[type(error).__name__] += 1
                await asyncio.sleep(0.1)
            else:
                return Book(org.id, agent.id, run.id)

    async def any(self, book: Book) -> None:
        """Do one thing for an organization, by chance."""
        every: tuple[tuple[int, Callable[[Book], Awaitable[None]]], ...] = (
            (5, self.remember),
            (3, self.remember_many),
            (2, self.remember_briefly),
            (2, self.forget),
            (2, self.count_turn),
            (3, self.checkpoint),
            (4, self.look),
            (3, self.search),
            (2, self.retrieve),
            (1, self.dawdle),
        )
        [(_, work)] = self.chance.choices(every, [weight for weight, _ in every])
        await work(book)

    # -- writing

    async def remember(self, book: Book) -> None:
        """Keep a memory, in a transaction of its own or with db.run()."""
        content, ident = self._content(book), uuid4()

        async def work(session: ScopedSession) -> None:
            await self._keep(session, book, content, ident)

        outcome = await self._write("remember", book, work)
        if outcome == DONE:
            book.kept[content] = ident
        elif outcome == UNKNOWN:
            book.unknown.add(content)

    async def remember_briefly(self, book: Book) -> None:
        """Keep a memory that has expired already, for the sweeper."""
        content = self._content(book)
        expired = datetime.now(UTC) - timedelta(seconds=1)

        async def work(session: ScopedSession) -> None:
            await self._keep(session, book, content, uuid4(), expires_at=expired)

        outcome = await self._write("remember what expires", book, work)
        if outcome == DONE:
            book.fleeting.add(content)
        elif outcome == UNKNOWN:
            book.unknown.add(content)

    async def remember_many(self, book: Book) -> None:
        """Keep some memories, all or none."""
        idents = {self._content(book): uuid4() for _ in range(BATCH)}
        drafts = [self._draft(book, content, ident) for content, ident in idents.items()]

        async def work(session: ScopedSession) -> None:
            await MemoryRepository(session).remember_many(drafts, batch_size=2)

        outcome = await self._write("remember many", book, work)
        if outcome == DONE:
            book.kept |= idents
        elif outcome == UNKNOWN:
            book.unknown |= idents.keys()
            book.batches.append(frozenset(idents))

    async def forget(self, book: Book) -> None:
        """Forget a memory that is there; nobody else forgets the same."""
        if not book.kept:
            return
        content = self.chance.choice([*book.kept])
        ident = book.kept.pop(content)
        outcome = UNKNOWN
        try:
            outcome = await self._write("forget", book, lambda session: MemoryRepository(session).forget(ident))
        finally:
            match outcome:
                case "done":
                    book.forgotten.add(content)
                case "refused":
                    book.kept[content] = ident
                case _:
                    book.perhaps_forgotten.add(content)

    async def count_turn(self, book: Book) -> None:
        """Add one to a counter: whatever is done twice shows there."""

        async def work(session: ScopedSession) -> None:
            await SessionRepository(session).heartbeat(book.run_id, turns=1)

        outcome = await self._write("count a turn", book, work)
        if outcome == DONE:
            book.turns += 1
        elif outcome == UNKNOWN:
            book.turns_unknown += 1

    async def checkpoint(self, book: Book) -> None:
        """Save a state under the next number."""
        numbers: list[int] = []

        async def work(session: ScopedSession) -> None:
            saved = await SessionRepository(session).checkpoint(book.run_id, {"step": str(uuid4())})
            numbers.append(saved.sequence_number)

        if await self._write("checkpoint", book, work) == DONE:
            book.checkpoint = max(book.checkpoint, numbers[-1])

    async def retrieve(self, book: Book) -> None:
        """Count retrievals of many memories at once: rows that others count, too."""
        idents = [book.kept[one] for one in self._some(book)]

        async def work(session: ScopedSession) -> None:
            await MemoryRepository(session).record_retrieval(idents)

        await self._write("count retrievals", book, work)

    # -- reading

    async def look(self, book: Book) -> None:
        """Read what the policies alone let through, and look for what is known to be there."""
        sample = {content: book.kept[content] for content in self._some(book)}

        async def work(session: ScopedSession) -> None:
            rows = (await session.execute(_ROWS)).all()
            found = await MemoryRepository(session).get_many(list(sample.values()))
            self._own(book, [(row.org_id, row.content) for row in rows])
            self._own(book, [(memory.org_id, memory.content) for memory in found])
            there = {memory.content for memory in found}
            # One that is being forgotten meanwhile is in no book of kept ones any more.
            missed = [one for one in sample if one not in there and one in book.kept]
            if not (book.erased or book.perhaps_erased):
                self.wrong.extend(f"{book.org_id} misses {one}" for one in missed)

        await self._write("look", book, work)

    async def search(self, book: Book) -> None:
        """Search what is known to be there, by its own vector or by its words: it comes first."""
        by_words = self.chance.random() < 0.5
        if not book.kept:
            return
        content = self.chance.choice([*book.kept])
        ident, vector = book.kept[content], book.vectors[content]

        async def work(session: ScopedSession) -> None:
            memories = MemoryRepository(session)
            # The content ends in a word that nobody else says.
            hits = await (
                memories.search(text=content, limit=5) if by_words else memories.search(embedding=vector, limit=5)
            )
            self._own(book, [(hit.memory.org_id, hit.memory.content) for hit in hits])
            # One that is being forgotten meanwhile is in no book of kept ones any more.
            gone = book.erased or book.perhaps_erased or content not in book.kept
            if not gone and (not hits or hits[0].memory.id != ident):
                how = "its words" if by_words else "its own vector"
                self.wrong.append(f"{book.org_id} does not find {content} first by {how}")

        await self._write("search", book, work)

    async def dawdle(self, book: Book) -> None:
        """Take longer than statement_timeout, after a write: nothing of it may stay."""
        content = self._content(book)

        async def work(session: ScopedSession) -> None:
            await self._keep(session, book, content, uuid4())
            await session.execute(_HURRY)
            await session.execute(_SLOW)

        if await self._write("dawdle", book, work) == DONE:
            self.wrong.append("a statement outlived statement_timeout")

    # -- how

    async def _write(self, name: str, book: Book, work: Callable[[ScopedSession], Awaitable[None]]) -> str:
        """Do a unit of work over some route, perhaps cancelled in the middle; return what is known of it.

        Whatever is raised that services are not told to expect is wrong, and written down.
        """
        db, retried, older = self._any(), self.chance.random() < 0.5, self.older
        tries = 0

        async def once(session: ScopedSession) -> None:
            nonlocal tries
            tries += 1
            await work(session)

        async def alone() -> None:
            async with db.tenant(book.org_id) as session:
                await work(session)

        outcome = DONE
        try:
            await self._perhaps_cancelled(db.run(book.org_id, once) if retried else alone())
        except (CommitUnknownError, asyncio.CancelledError) as error:
            self.told[type(error).__name__] += 1
            outcome = UNKNOWN
            if (current := asyncio.current_task()) is not None and current.cancelling():
                raise  # the whole test is to end
        except (TransientError, StatementTimeoutError) as error:
            self.told[type(error).__name__] += 1
            outcome = REFUSED
        except _GONE as error:
            self.told[type(error).__name__] += 1
            outcome = REFUSED
            if not (book.erased or book.perhaps_erased):
                self.wrong.append(f"{name} for {book.org_id}, which is there: {error}")
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            missing = isinstance(error, DatabaseError) and error.sqlstate == _NO_FUNCTION
            # At the beginning or at the end: revisions are taken back, or brought again, in the middle.
            if missing and (older or self.older):
                self.told["DatabaseError: older than the service"] += 1
                outcome = REFUSED
            else:
                print(f"{name}:", *traceback.format_exception(error))  # noqa: T201 - whoever looks needs all of it
                self.wrong.append(f"{name}: {type(error).__name__}: {error}")
                outcome = UNKNOWN
        self.retries += max(0, tries - 1)
        self.done[name if outcome == DONE else f"{name}, {outcome}"] += 1
        return outcome

    async def _perhaps_cancelled(self, work: Coroutine[None, None, None]) -> None:
        if self.chance.random() >= _CANCELLED:
            await work
            return
        task = asyncio.create_task(work)
        await asyncio.sleep(self.chance.uniform(0.0, _LONGEST_SECONDS))
        task.cancel()
        await task

    def _own(self, book: Book, rows: list[tuple[UUID, str]]) -> None:
        for org_id, content in rows:
            if org_id != book.org_id or not content.startswith(str(book.org_id)):
                self.wrong.append(f"{book.org_id} was shown {content} of {org_id}")

    async def _keep(
        self, session: ScopedSession, book: Book, content: str, ident: UUID, expires_at: datetime | None = None
    ) -> None:
        await MemoryRepository(session).remember(
            agent_id=book.agent_id,
            content=content,
            category="factual",
            embedding=self._vector(book, content),
            id=ident,
            expires_at=expires_at,
        )

    def _draft(self, book: Book, content: str, ident: UUID) -> dict[str, object]:
        return {
            "agent_id": book.agent_id,
            "content": content,
            "category": "factual",
            "embedding": self._vector(book, content),
            "id": ident,
        }

    def _any(self) -> Database:
        return self.chance.choice([*self.routes.values()])

    def _some(self, book: Book) -> list[str]:
        return self.chance.sample([*book.kept], min(_SAMPLE, len(book.kept)))

    def _vector(self, book: Book, content: str) -> list[float]:
        """Return a content's vector: the same for each of its tries, and in the book."""
        if content not in book.vectors:
            book.vectors[content] = [self.chance.uniform(-1.0, 1.0) for _ in range(384)]
        return book.vectors[content]

    def _content(self, book: Book) -> str:
        return f"{book.org_id} ledger {uuid4()}"
