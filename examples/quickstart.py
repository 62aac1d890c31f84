"""Two organizations in one database: what an agent of one remembers, the other never sees."""

import asyncio
import re
import zlib
from tempfile import TemporaryDirectory

from ibex_db import (
    EMBEDDING_DIMENSIONS,
    Agent,
    AgentRepository,
    Database,
    MemoryCategory,
    MemoryRepository,
    Organization,
)


def hash_embedding(text: str) -> list[float]:
    """Stand in for an embedding model: each word counts in one place. Equal words are near, meanings are not."""
    vector = [0.0] * EMBEDDING_DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % EMBEDDING_DIMENSIONS] += 1.0
    return vector


async def main(db: Database) -> None:
    """Sign up two organizations, remember, search."""
    await db.upgrade()  # the schema of every installed wheel; does nothing where it is there

    async with db.platform(reason="sign-up") as session:  # across organizations, and logged
        acme = Organization(name="Acme", slug="acme")
        rival = Organization(name="Globex", slug="globex")
        session.add_all([acme, rival])

    async with db.tenant(acme.id) as session:  # one transaction: commits here, or rolls back on an error
        agent = await AgentRepository(session).add(Agent(name="Support", slug="support"))
        memories = MemoryRepository(session)
        for said in ("Prefers tea over coffee.", "Likes short answers.", "prefers TEA  over coffee."):
            kept = await memories.remember(
                agent_id=agent.id,
                content=said,
                embedding=hash_embedding(said),
                category=MemoryCategory.PREFERENCE,
                tags=["profile"],
            )
            print(f"{'new' if kept.created else 'known':8}{kept.memory.content}")

        question = "tea or coffee?"
        for hit in await memories.search(agent_id=agent.id, embedding=hash_embedding(question), limit=2):
            print(f"{hit.similarity:<8.2f}{hit.memory.content}")

    async with db.tenant(rival.id) as session:
        print(f"{await MemoryRepository(session).count()} memories for the other organization")


async def throw_away() -> None:
    """Run on an embedded Postgres that is gone afterwards; Database.from_env() would keep its data."""
    with TemporaryDirectory(prefix="ibex-quickstart-", ignore_cleanup_errors=True) as home:
        async with Database.embedded(home) as db:
            await main(db)


if __name__ == "__main__":
    asyncio.run(throw_away())
