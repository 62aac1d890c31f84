"""Storing a corpus: again, at once, after an interruption, and with the ages that it brings."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from ibex_db_core.database import Database
from ibex_db_memory import MemoryRepository
from ibex_db_memory.demo import scenes, storing
from ibex_db_memory.demo.corpus import Corpus, builtin
from ibex_db_memory.demo.searching import ask
from ibex_db_memory.demo.storing import find_or_make, store
from ibex_db_tenancy import Organization, OrganizationRepository


def part(corpus: Corpus, count: int) -> Corpus:
    return replace(corpus, records=corpus.records[:count], vectors=corpus.vectors[:count], questions=())


async def test_a_corpus_is_created_once_and_known_ever_after(ibex_db: Database) -> None:
    """The same organizations, agents and ids."""
    corpus = builtin()
    first = await store(ibex_db, await find_or_make(ibex_db, corpus))
    again = await store(ibex_db, await find_or_make(ibex_db, corpus))

    assert (first.created, first.known) == (205, 0)
    assert (again.created, again.known) == (0, 205)
    assert (again.organizations, again.agents, again.ids) == (first.organizations, first.agents, first.ids)
    assert all(claim.holds for claim in await scenes.kept(ibex_db, first))
    assert all(claim.holds for claim in await scenes.duplicates(ibex_db, first, again))


async def test_an_interrupted_run_is_completed_by_the_next(ibex_db: Database) -> None:
    """What was stored is known, the rest is created."""
    corpus = builtin()
    await store(ibex_db, await find_or_make(ibex_db, part(corpus, 60)))

    whole = await store(ibex_db, await find_or_make(ibex_db, corpus))

    assert (whole.created, whole.known) == (145, 60)
    assert all(claim.holds for claim in await scenes.kept(ibex_db, whole))


async def test_many_store_at_once(ibex_db: Database) -> None:
    """Each memory is created by one of them, and known to the others."""
    corpus = builtin()

    async def run() -> storing.Stored:
        stored = await store(ibex_db, await find_or_make(ibex_db, corpus))
        await scenes.history(ibex_db, stored, corpus.scopes[0])
        return stored

    found = await asyncio.gather(*(run() for _ in range(4)))

    assert sum(stored.created for stored in found) == 205
    assert all(stored.ids == found[0].ids for stored in found)
    versions, claims = await scenes.history(ibex_db, found[0], corpus.scopes[0])
    assert [version.operation for version in versions] == ["created", "updated", "reverted"]
    assert all(claim.holds for claim in claims)


async def test_memories_have_the_age_and_the_uses_of_the_corpus(ibex_db: Database) -> None:
    """Made as long ago as the line says; a second run changes nothing about it."""
    corpus = builtin()
    stored = await store(ibex_db, await find_or_make(ibex_db, corpus))
    await store(ibex_db, stored)

    async with ibex_db.tenant(stored.organizations["northwind-clinic"]) as session:
        found = await MemoryRepository(session).get(stored.ids[0])

    record = corpus.records[0]
    assert record.age_days is not None
    assert found.retrieval_count == record.retrievals > 0
    assert abs(datetime.now(UTC) - timedelta(days=record.age_days) - found.created_at) < timedelta(minutes=5)
    assert found.last_retrieved_at is not None
    assert found.created_at < found.last_retrieved_at < datetime.now(UTC)


async def test_an_organization_that_was_deleted_comes_back(ibex_db: Database) -> None:
    """Its slug is taken for good, so a new one could not be made."""
    corpus = part(builtin(), 1)
    before = await find_or_make(ibex_db, corpus)
    (org_id,) = before.organizations.values()
    async with ibex_db.platform(reason="test") as session:
        await OrganizationRepository(session).delete(org_id)

    after = await find_or_make(ibex_db, corpus)

    assert after.organizations == before.organizations
    async with ibex_db.tenant(org_id) as session:
        assert (await session.get_one(Organization, org_id)).deleted_at is None


async def test_nobody_elses_organization_is_touched(ibex_db: Database) -> None:
    """A real one may have the name that the corpus uses."""
    async with ibex_db.platform(reason="test") as session:
        theirs = Organization(name="Northwind", slug="northwind-clinic")
        session.add(theirs)

    stored = await find_or_make(ibex_db, builtin())

    assert theirs.id not in stored.organizations.values()


async def test_twins_in_a_file_are_one_memory_and_both_are_evidence(ibex_db: Database) -> None:
    """A corpus may say a thing twice."""
    corpus = builtin()
    twin = replace(corpus.records[1], draft={**corpus.records[1].draft, "content": corpus.records[0].draft["content"]})
    question = replace(corpus.questions[0], expected=(0, 1))
    corpus = replace(corpus, records=[corpus.records[0], twin, *corpus.records[2:]], questions=[question])

    stored = await store(ibex_db, await find_or_make(ibex_db, corpus))
    (answer,) = (await ask(ibex_db, stored)).answers

    assert (stored.created, stored.known) == (204, 1)
    assert stored.ids[0] == stored.ids[1]
    assert all(claim.holds for claim in await scenes.kept(ibex_db, stored))
    assert answer.recall in {0.0, 1.0}


async def test_questions_are_answered_and_judged(ibex_db: Database) -> None:
    """As the wheel's corpus promises."""
    stored = await store(ibex_db, await find_or_make(ibex_db, builtin()))

    found = await ask(ibex_db, stored)

    assert all(claim.holds for claim in (*found.claims(stored), found.expected_first()))
    assert found.tempted >= 10
    assert len(found.samples(5)) == 5
    assert {answer.organization for answer in found.samples(5)} == set(stored.organizations)


async def test_answers_that_miss_are_told(ibex_db: Database) -> None:
    """Memories without the vectors that the file says: the comparison outside of Postgres notices."""
    corpus = builtin()
    stored = await store(ibex_db, await find_or_make(ibex_db, replace(corpus, vectors=corpus.vectors[::-1])))

    found = await ask(ibex_db, replace(stored, corpus=corpus))

    nearest = found.claims(stored)[1]
    assert not nearest.holds
    assert not found.expected_first().holds
