"""docs/how-to does what it says: each page's examples are run, in order."""

import re
import zlib
from collections.abc import AsyncIterator
from doctest import DocTestParser
from pathlib import Path

import pytest
import pytest_asyncio
from docstrings import run

from ibex_db import (
    EMBEDDING_DIMENSIONS,
    Agent,
    AgentRepository,
    Database,
    DirectiveRepository,
    MemoryRepository,
    Organization,
    Reembedding,
    SessionRepository,
    TokenRepository,
    User,
    UserRepository,
)

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "how-to"
PAGES = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.md")) if path.name != "README.md"}


def embed(text: str) -> list[float]:
    """Stand in for a model: equal words are near."""
    vector = [0.0] * EMBEDDING_DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % EMBEDDING_DIMENSIONS] += 1.0
    return vector


# Pages about the command line or a configuration have nothing to run here.
RUNNABLE = [page for page, written in PAGES.items() if "```pycon" in written]


@pytest.mark.parametrize("page", RUNNABLE)
async def test_the_page_does_what_it_says(page: str, names: dict[str, object]) -> None:
    blocks = "\n".join(re.findall(r"^```pycon\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL))
    test = DocTestParser().get_doctest(blocks, {}, page, page, 0)

    assert test.examples
    await run(test, names)


def test_most_pages_run() -> None:
    assert len(RUNNABLE) >= 8


def test_every_page_is_in_the_index() -> None:
    listed = set(re.findall(r"\]\(([a-z_-]+\.md)\)", (FOLDER / "README.md").read_text()))

    assert listed == PAGES.keys()


@pytest_asyncio.fixture
async def names(ibex_db: Database) -> AsyncIterator[dict[str, object]]:
    async with ibex_db.platform(reason="sign-up") as platform:
        org = Organization(name="Acme", slug="acme")
        platform.add(org)
    async with ibex_db.tenant(org.id) as session:
        agents, users = AgentRepository(session), UserRepository(session)
        agent = await agents.add(Agent(name="Support", slug="support"))
        user = await users.add(User(email="ann@acme.example", name="Ann"))
        memories, sessions = MemoryRepository(session), SessionRepository(session)
        yield {
            "agent": agent,
            "agents": agents,
            "user": user,
            "users": users,
            "directives": DirectiveRepository(session),
            "tokens": TokenRepository(session),
            "memories": memories,
            "sessions": sessions,
            "embed": embed,
            "session": session,
            "db": ibex_db,
            "org": org,
            "Reembedding": Reembedding,
        }
        await session.rollback()
