"""The demo from beginning to end: each chapter acts, checks, and is timed."""

import time
from collections.abc import Callable, Generator, Sequence, Sized
from contextlib import contextmanager

from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_memory.demo import scenes, searching, storing
from ibex_db_memory.demo.claim import Claim
from ibex_db_memory.demo.corpus import Corpus, builtin
from ibex_db_memory.demo.isolation import prove_isolation
from ibex_db_memory.demo.report import Chapter, OrganizationFacts, Report, SearchFacts
from ibex_db_memory.demo.storing import Stored
from ibex_db_memory.repositories import MemoryRepository
from ibex_db_tenancy.models import Organization

__all__ = ["Tell", "play"]

Tell = Callable[[str, int, int | None], None]
"""Told what goes on, how much of it is done, and how much there is (None: nobody knows)."""

# Hits, hot memories: what fits a screen.
_SHOWN = 5


async def play(db: Database, own: Corpus | None = None, *, tell: Tell) -> Report:
    """Play the demo on a database that need not be open yet, and report.

    Args:
        db: opened and migrated here.
        own: somebody's own corpus, beside the one in the wheel.
        tell: hears of the progress.
    """
    return await _Story(db, tell).play([builtin()] if own is None else [builtin(), own])


class _Story:
    def __init__(self, db: Database, tell: Tell) -> None:
        self.db = db
        self.tell = tell
        self.chapters: list[Chapter] = []
        self._started = self._chapter_started = time.perf_counter()

    def end(self, title: str, outcome: str, claims: Sequence[Claim] = ()) -> None:
        """Close a chapter: its time is what passed since the last one."""
        now = time.perf_counter()
        self.chapters.append(Chapter(title, outcome, round(now - self._chapter_started, 3), claims))
        self._chapter_started = now

    @contextmanager
    def doing(self, what: str) -> Generator[Callable[[int, int], None]]:
        """Tell what goes on; the function given tells how far it went."""
        self.tell(what, 0, None)
        yield lambda done, total: self.tell(what, done, total)

    async def play(self, corpora: Sequence[Corpus]) -> Report:
        server = await self.open()
        stored = [await self.store(corpus) for corpus in corpora]
        searches = [await self.search(corpus) for corpus in stored if corpus.corpus.questions]
        ours = stored[0]
        agent = ours.corpus.scopes[0]
        with self.doing("reading what is hot"):
            hot, claims = await scenes.hottest(self.db, ours, agent, limit=_SHOWN)
            self.end("Hot memories", f"what {agent[1]} should have at hand, scored in SQL", claims)
        with self.doing("changing a memory"):
            versions, claims = await scenes.history(self.db, ours, agent)
            self.end("Version history", f"{len(versions)} versions of one memory, append-only", claims)
        organizations = [facts for corpus in stored for facts in await self.organizations(corpus)]
        # Somebody's own organization, where there is one, against a neighbour; else ours against each other.
        intruder, owner = organizations[len(ours.organizations) if len(stored) > 1 else 0], organizations[1]
        proof = await self.prove(intruder, owner)
        return Report(
            server=server,
            organizations=organizations,
            chapters=self.chapters,
            searches=searches,
            hot_of=agent[1],
            hot=hot,
            history=versions,
            proof_of=(intruder.name, owner.name),
            proof=proof,
            platform_sessions=[],
            seconds=round(time.perf_counter() - self._started, 3),
        )

    async def open(self) -> str:
        with self.doing("starting the database, and migrating it"):
            await self.db.open()
            applied = await self.db.upgrade()
            async with self.db.migrator() as migrator:
                revisions = await migrator.current()
            async with self.db.platform(reason="read the server's version") as session:
                server = str(await session.scalar(_VERSION))
        pending = sum(not step.applied for step in revisions)
        self.end(
            "Database and schema",
            f"{server}; {len(applied)} revisions applied now",
            [
                Claim(
                    "The schema is at the newest revision of every installed wheel.",
                    holds=bool(revisions) and not pending,
                    evidence=f"{len(revisions) - pending} of {len(revisions)} revisions applied",
                )
            ],
        )
        return server

    async def store(self, corpus: Corpus) -> Stored:
        total = len(corpus.records)
        with self.doing(f"storing {total:,} memories") as told:
            made = await storing.find_or_make(self.db, corpus)
            first = await storing.store(self.db, made, progress=told)
            claims = await scenes.kept(self.db, first)
        self.end(
            f"Store {total:,} memories",
            f"{_count(made.organizations, 'organization')}, {_count(made.agents, 'agent')}, vectors included: "
            f"{first.created:,} created, {first.known:,} known",
            claims,
        )
        with self.doing(f"storing the same {total:,} again") as told:
            again = await storing.store(self.db, made, progress=told)
            claims = await scenes.duplicates(self.db, first, again)
        self.end("The same again", f"{again.created:,} created, {again.known:,} known", claims)
        return first

    async def search(self, stored: Stored) -> SearchFacts:
        corpus = stored.corpus
        with self.doing(f"asking {len(corpus.questions):,} questions") as told:
            found = await searching.ask(self.db, stored, progress=told)
        claims = list(found.claims(stored))
        if corpus.handmade:
            claims.append(found.expected_first())
        recall = "" if found.recall is None else f"; evidence recall@{searching.RECALL_AT} {found.recall:.3f}"
        self.end(
            f"Ask {len(corpus.questions):,} questions",
            f"{found.milliseconds:.1f} ms each in the median{recall}",
            claims,
        )
        return SearchFacts.of(corpus.name, found)

    async def organizations(self, stored: Stored) -> Sequence[OrganizationFacts]:
        facts: list[OrganizationFacts] = []
        for name, org_id in stored.organizations.items():
            async with self.db.tenant(org_id, read_only=True) as session:
                organization = await session.get_one(Organization, org_id)
                memories = await MemoryRepository(session).count()
            agents = [agent for owner, agent in stored.agents if owner == name]
            facts.append(OrganizationFacts(organization.name, organization.slug, org_id, agents, memories))
        return facts

    async def prove(self, intruder: OrganizationFacts, owner: OrganizationFacts) -> Sequence[Claim]:
        with self.doing("proving isolation"):
            proof = await prove_isolation(self.db, intruder.id, owner.id)
            reverse = await prove_isolation(self.db, owner.id, intruder.id)
        self.end(
            "Isolation",
            f"{len(proof)} roads from {intruder.name} to {owner.name}, and {len(reverse)} back",
            [*proof, *reverse],
        )
        return proof


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


_VERSION = text(
    """
    SELECT format('PostgreSQL %s, pgvector %s', split_part(current_setting('server_version'), ' ', 1), extversion)
    FROM pg_catalog.pg_extension WHERE extname = 'vector'
    """
)
