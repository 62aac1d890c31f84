"""Everything that repositories can be asked: the example of every verb, and searches of every shape."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import Any
from uuid import UUID

import pytest
from docstrings import examples
from furnished import furnish

import ibex_db_memory
from ibex_db import (
    Database,
    HotWeights,
    InvalidInputError,
    Kept,
    Memory,
    MemoryRepository,
    Organization,
    OrganizationRepository,
    Reembedding,
    SessionRepository,
)
from ibex_db_core.sharding import is_sharded

EXAMPLES = {
    example.name: example
    for package in ("ibex_db_core.repository", "ibex_db_core.steps", "ibex_db_tenancy", "ibex_db_memory")
    for example in examples(package)
} | {
    example.name: example
    for example in examples("ibex_db_core.database")
    if example.name.endswith(("Database.authenticate", "Database.position"))
}

VECTOR = [1.0, *[0.0] * 383]
WIDE = [1.0, *[0.0] * 767]
_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def world(db: Database) -> AsyncGenerator[dict[str, Any]]:
    """Give what the examples use without saying where it comes from; it is gone afterwards."""
    async with db.platform(reason="an example begins") as platform:
        org = await OrganizationRepository(platform).add(Organization(name="Acme", slug="acme"))
    try:
        async with db.tenant(org.id) as session:
            yield {
                **vars(ibex_db_memory),
                **await furnish(session),
                "timedelta": timedelta,
                "db": db,
                "org": org,
                "memories": MemoryRepository(session),
                "sessions": SessionRepository(session),
            }
            await session.rollback()
    finally:
        async with db.platform(reason="an example ends") as platform:
            organizations = OrganizationRepository(platform)
            for left in await organizations.find(limit=1000, include_deleted=True):
                await organizations.erase(left.id)


def _filters(agent_id: UUID, session_id: UUID) -> Sequence[Mapping[str, Any]]:
    """Return none, each, and all at once."""
    each: dict[str, Any] = {
        "agent_id": agent_id,
        "session_id": session_id,
        "categories": ["factual"],
        "sources": ["extracted"],
        "statuses": ["active"],
        "tags_any": ["home"],
        "tags_all": ["home"],
        "metadata": {},
        "min_confidence": 0.1,
        "created_after": _LONG_AGO,
        "created_before": datetime.now(UTC) + timedelta(days=1),
        "include_expired": True,
        "include_deleted": True,
    }
    return [{}, *({name: value} for name, value in each.items()), each]


async def _wide(contents: list[str]) -> list[list[float]]:
    return [WIDE for _ in contents]


async def _narrow(contents: list[str]) -> list[list[float]]:
    return [VECTOR for _ in contents]


async def _odd(contents: list[str]) -> list[list[float]]:
    return [[1.0, 0.0, 0.0] for _ in contents]


async def _searches(db: Database, names: Mapping[str, Any], vector: Sequence[float]) -> None:
    """Search by vector, words and both, now and in the past, with each filter, by index and without."""
    org_id, agent_id = names["org"].id, names["agent"].id
    async with db.tenant(org_id) as session:
        run = await SessionRepository(session).get_or_start(agent_id=agent_id, external_id="searches")
        memories = MemoryRepository(session)
        await memories.remember(
            agent_id=agent_id, content=f"Lives in Oslo {len(vector)}.", category="factual", embedding=vector,
            session_id=run.id, tags=["home"],
        )  # fmt: skip
        await session.commit()
        # Where vectors lie beside, Citus does not see that judging words by vector stays on one worker.
        together = not is_sharded(db.engine) or len(vector) == len(VECTOR)
        legs: Sequence[Mapping[str, Any]] = [
            {"embedding": vector},
            {"text": "Oslo"},
            {"embedding": vector, "text": "Oslo"},
        ]
        for filters, leg, as_of in product(_filters(agent_id, run.id), legs, (None, datetime.now(UTC))):
            past: dict[str, Any] = {} if as_of is None else {"as_of": as_of}
            if not together and len(leg) > 1 and as_of is None:
                with pytest.raises(InvalidInputError, match="ask for one of the two"):
                    await memories.search(**leg, **filters)
                continue
            found = await memories.search(**leg, **filters, **past)
            # Forgotten memories are found too, where they are asked for.
            assert f"Lives in Oslo {len(vector)}." in {hit.memory.content for hit in found}, (filters, leg, as_of)
        assert await memories.search(embedding=vector, exact=True, explain=True)
        assert await memories.search(text="Oslo", explain=True, rank=HotWeights())
        worded: Sequence[dict[str, Any]] = [{}, {"text": "Oslo"}] if together else [{}]
        for words in worded:
            assert await memories.search(embedding=vector, min_similarity=0.5, rank=HotWeights(), **words)
        assert await memories.find_similar(vector, threshold=0.5)
        assert await memories.hot(agent_id=agent_id, explain=True)


async def searches_at_home(db: Database, names: Mapping[str, Any]) -> None:
    """Vectors lie in the memories."""
    await _searches(db, names, VECTOR)


async def searches_beside(db: Database, names: Mapping[str, Any]) -> None:
    """Vectors lie beside the memories: of dimensions with an index."""
    await _moved(db, names, _wide, 768)
    await _searches(db, names, WIDE)
    await _written(db, names, WIDE)


async def searches_beside_without_index(db: Database, names: Mapping[str, Any]) -> None:
    """Vectors lie beside the memories: of dimensions without an index."""
    await _moved(db, names, _odd, 3)
    await _searches(db, names, [1.0, 0.0, 0.0])


async def _moved(db: Database, names: Mapping[str, Any], embed: Any, dimensions: int) -> Reembedding:
    async with db.tenant(names["org"].id) as session:
        await MemoryRepository(session).remember(
            agent_id=names["agent"].id, content="From before.", category="episodic", embedding=VECTOR
        )
        await MemoryRepository(session).forget(
            (await MemoryRepository(session).remember(
                agent_id=names["agent"].id, content="Gone before.", category="episodic", embedding=VECTOR
            )).memory.id
        )  # fmt: skip
    move = Reembedding(db, names["org"].id)
    assert await move.fill(embed, embedding_model="other", dimensions=dimensions) == 2
    await move.cut_over()
    async with db.tenant(names["org"].id) as session:
        for memory in await MemoryRepository(session).find(Memory.content == "From before."):
            await MemoryRepository(session).forget(memory.id)
    return move


async def _written(db: Database, names: Mapping[str, Any], vector: Sequence[float]) -> None:
    """Write, change, export, import and move back where vectors lie beside the memories."""
    org_id, agent_id = names["org"].id, names["agent"].id
    async with db.tenant(org_id) as session:
        memories = MemoryRepository(session)
        many = await memories.remember_many(
            {"agent_id": agent_id, "content": f"Room {n} is booked.", "category": "episodic", "embedding": vector,
             "tags": ["rooms"]}
            for n in range(3)
        )  # fmt: skip
        first = many.outcomes[0].id
        await memories.update(first, content="Room 0 is free.", embedding=vector)
        assert len(await memories.embeddings([first])) == 1
        lines = [line async for line in memories.export()]
        await memories.erase(first)
        assert (await memories.import_(lines, include_erased=True)).created == 1
        assert len(await memories.embeddings([first])) == 1
    move = Reembedding(db, org_id)
    await move.fill(_narrow, embedding_model=None, dimensions=384)
    await move.roll_back()
    await move.fill(_wide, embedding_model="other", dimensions=768)
    await move.roll_back()  # and forth again
    await move.finish()
    assert (await move.status()).lacking == 0


async def twins_that_expired(db: Database, names: Mapping[str, Any]) -> None:
    """Remember, one by one and many, what an expired memory says."""
    gone = datetime.now(UTC) - timedelta(minutes=1)
    async with db.tenant(names["org"].id) as session:
        memories = MemoryRepository(session)
        agent_id = names["agent"].id

        async def keep(content: str, **more: Any) -> Kept:
            return await memories.remember(agent_id=agent_id, content=content, category="episodic", **more)

        expired = await keep("Is away.", expires_at=gone)
        kept = await keep("Is away.", tags=["away"])
        assert kept.created
        assert kept.memory.id != expired.memory.id
        await keep("Is back.", expires_at=gone)
        drafts = [{"agent_id": agent_id, "content": said, "category": "episodic"} for said in ("Is back.", "Is away.")]
        assert (await memories.remember_many(drafts)).created == 1
        near = await keep("Is near.", embedding=VECTOR, near_duplicate_threshold=0.5)
        assert near.near_duplicate is None


async def an_import_from_a_file(db: Database, names: Mapping[str, Any]) -> None:
    """Export memories that stand to each other, forget them for good, and bring them in again."""
    async with db.tenant(names["org"].id) as session:
        memories = MemoryRepository(session)
        draft: dict[str, Any] = {"agent_id": names["agent"].id, "category": "factual", "embedding": VECTOR}
        old = (await memories.remember(**draft, content="Lives in Rome.", tags=["home"])).memory
        new = await memories.supersede(old.id, by={**draft, "content": "Lives in Oslo."}, reason="moved")
        lines = [line async for line in memories.export()]
        for ident in (old.id, new.id):
            await memories.erase(ident)
        assert (await memories.import_(lines)).erased == 2
        done = await memories.import_(lines, include_erased=True)
        assert (done.created, done.relationships) == (2, 1)
        assert (await memories.current(old.id)).id == new.id


async def walks(db: Database, names: Mapping[str, Any]) -> None:
    """Walk in every direction, by every edge and by some."""
    async with db.tenant(names["org"].id) as session:
        memories = MemoryRepository(session)
        drafts = [{"agent_id": names["agent"].id, "content": f"Step {n}.", "category": "procedural"} for n in range(4)]
        ids = [outcome.id for outcome in (await memories.remember_many(drafts)).outcomes]
        for source, target in pairwise(ids):
            await memories.relate(source, target, "derived_from")
        for direction, types in product(("out", "in", "both"), (None, ["derived_from"])):
            found = await memories.neighbors(ids[1], depth=3, direction=direction, types=types)
            assert len(found) == {"out": 2, "in": 1, "both": 3}[direction]


SCENES: Mapping[str, Callable[[Database, Mapping[str, Any]], Awaitable[None]]] = {
    scene.__name__: scene
    for scene in (
        searches_at_home,
        searches_beside,
        searches_beside_without_index,
        twins_that_expired,
        an_import_from_a_file,
        walks,
    )
}
