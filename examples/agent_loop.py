"""A small agent: observe, remember, recall, give feedback, consolidate duplicates, forget. No model, no key."""

import asyncio
import re
import zlib
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory
from uuid import UUID

from ibex_db import (
    EMBEDDING_DIMENSIONS,
    Agent,
    AgentRepository,
    Database,
    MemoryCategory,
    MemoryRepository,
    Organization,
    Session,
    SessionRepository,
)

SAID = (
    "I prefer tea over coffee.",
    "My cat is called Miso.",
    "What do I prefer, tea or coffee?",
    "i prefer TEA over coffee.",
    "I really prefer tea over coffee.",
    "I am in Rome until noon.",
    "What is my cat called?",
)


def embed(text: str) -> list[float]:
    """Stand in for an embedding model: each word counts in one place. Equal words are near, meanings are not."""
    vector = [0.0] * EMBEDDING_DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % EMBEDDING_DIMENSIONS] += 1.0
    return vector


async def observe(memories: MemoryRepository, run: Session, said: str) -> None:
    """Remember a statement, unless it is known; one that is nearly known is merged into what has proved itself."""
    passing = "until noon" in said
    kept = await memories.remember(
        agent_id=run.agent_id,
        session_id=run.id,
        content=said,
        embedding=embed(said),
        category=MemoryCategory.EPISODIC if passing else MemoryCategory.PREFERENCE,
        expires_at=datetime.now(UTC) - timedelta(minutes=1) if passing else None,  # as if it were afternoon
        near_duplicate_threshold=0.9,
    )
    print(f"{'new' if kept.created else 'known':12}{kept.memory.content}")
    if kept.created and kept.near_duplicate is not None:
        older = await memories.merge(
            [kept.memory.id], into=kept.near_duplicate.memory.id, reason="said again in other words"
        )
        print(f"{'merged into':12}{older.content}")


async def answer(memories: MemoryRepository, run: Session, question: str) -> None:
    """Recall what may answer a question; what was of use rises."""
    hits = await memories.search(agent_id=run.agent_id, embedding=embed(question), text=question, limit=1)
    found = [hit.memory for hit in hits]
    ids = [memory.id for memory in found]
    await memories.record_retrieval(ids)
    print(f"{'asked':12}{question}")
    print(f"{'recalled':12}{', '.join(memory.content for memory in found) or 'nothing'}")
    await memories.record_injection(ids)  # a model would be given them here, and its user would judge:
    await memories.give_feedback(helpful=ids)


async def turn(db: Database, org_id: UUID, agent_id: UUID, said: str) -> None:
    """Take one turn of the conversation, in one transaction."""
    async with db.tenant(org_id) as session:
        sessions = SessionRepository(session)
        run = await sessions.get_or_start("conversation-1", agent_id=agent_id)
        await (answer if said.endswith("?") else observe)(MemoryRepository(session), run, said)
        run = await sessions.heartbeat(run.id, turns=1)
        await sessions.checkpoint(run.id, {"turns": run.turn_count})  # a crash would resume from here


async def main(db: Database) -> None:
    """Hold the conversation, then tidy up."""
    await db.upgrade()
    async with db.platform(reason="sign-up") as session:
        acme = Organization(name="Acme", slug="acme")
        session.add(acme)
    async with db.tenant(acme.id) as session:
        agent = await AgentRepository(session).add(Agent(name="Butler", slug="butler"))

    for said in SAID:
        await turn(db, acme.id, agent.id, said)

    async with db.tenant(acme.id) as session:
        memories, sessions = MemoryRepository(session), SessionRepository(session)
        print(f"{'forgotten':12}{await memories.expire_due()}")
        for hot in await memories.hot(agent.id):
            print(f"{'at hand':12}{hot.memory.content} (usefulness {hot.memory.usefulness_score})")
        run = await sessions.get_or_start("conversation-1", agent_id=agent.id)
        print(f"{'turns':12}{(await sessions.complete(run.id)).turn_count}")


async def throw_away() -> None:
    """Run on an embedded Postgres that is gone afterwards; Database.from_env() would keep its data."""
    with TemporaryDirectory(prefix="ibex-agent-loop-", ignore_cleanup_errors=True) as home:
        async with Database.embedded(home) as db:
            await main(db)


if __name__ == "__main__":
    asyncio.run(throw_away())
