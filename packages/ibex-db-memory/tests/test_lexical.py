"""Searching by words: BM25 over the tenant's own rows, and nothing that a text could break."""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from alone import ALONE
from homes import Home
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_core.errors import InvalidInputError, TenantMissingError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import MemoryRepository
from ibex_db_memory.search import lexical

Sent = Callable[[], AbstractContextManager[list[str]]]

SENTENCE = "tea coffee cats dogs running ran the of window monday paint painted café 2023 foo.example/a?b=1&c e-mail"
WORDS = SENTENCE.split()


async def remembered(memories: MemoryRepository, agent_id: UUID, *contents: str, **fields: object) -> list[UUID]:
    done = await memories.remember_many(
        {"agent_id": agent_id, "content": content, "category": "factual", **fields} for content in contents
    )
    return [outcome.id for outcome in done.outcomes]


async def said(memories: MemoryRepository, words: str, **options: object) -> list[str]:
    hits = await memories.search(text=words, exact=True, **options)  # type: ignore[arg-type]
    return [hit.memory.content for hit in hits]


async def lexemes(session: ScopedSession, content: str) -> Counter[str]:
    rows = await session.execute(
        text("SELECT lexeme, cardinality(positions) FROM unnest(to_tsvector('english', :content))"),
        {"content": content},
    )
    return Counter({row.lexeme: row.cardinality for row in rows})


def bm25(query: Sequence[str], documents: Mapping[str, Counter[str]]) -> dict[str, float]:
    """Score as ibex_db_memory.search.lexical says, from contents and their lexemes alone."""
    mean = sum(len(name.encode()) for name in documents) / len(documents)
    found: dict[str, float] = {}
    for name, counts in documents.items():
        for word in query:
            if tf := min(counts[word], 4):
                df = sum(word in other for other in documents.values())
                idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
                damped = tf + lexical.K1 * (1 - lexical.B + lexical.B * len(name.encode()) / mean)
                found[name] = found.get(name, 0.0) + idf * tf * (lexical.K1 + 1) / damped
    return found


@pytest.mark.parametrize("seed", range(8))
async def test_the_score_is_bm25(memories: MemoryRepository, agent_id: UUID, session: ScopedSession, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    contents = [" ".join(chance.choices(WORDS, k=chance.randint(1, 12))) + f" n{number}" for number in range(30)]
    query = " ".join(chance.choices(WORDS, k=4))
    await remembered(memories, agent_id, *contents)
    hits = await memories.search(text=query, limit=100, exact=True)

    documents = {content: await lexemes(session, content) for content in contents}
    expected = bm25(list(await lexemes(session, query)), documents)
    assert {hit.memory.content: hit.lexical for hit in hits} == pytest.approx(expected, abs=1e-8)
    assert [(-hit.score, hit.memory.id) for hit in hits] == sorted((-hit.score, hit.memory.id) for hit in hits)
    assert all(hit.score == hit.lexical and hit.similarity is None for hit in hits)


async def test_the_statistics_are_of_the_agents_that_are_named(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, session: ScopedSession
) -> None:
    mine = ["Tea at noon.", "Coffee at night.", "Cats and dogs."]
    await remembered(memories, agent_id, *mine)
    await remembered(memories, other_agent_id, *(f"Tea number {number}." for number in range(20)))
    (hit,) = await memories.search(text="tea", agent_id=agent_id, exact=True)

    documents = {content: await lexemes(session, content) for content in mine}
    assert hit.lexical == pytest.approx(bm25(["tea"], documents)["Tea at noon."], abs=1e-8)


async def test_a_word_said_more_than_four_times_counts_as_four(memories: MemoryRepository, agent_id: UUID) -> None:
    await remembered(memories, agent_id, "tea " * 4 + "abcd", "tea " * 4 + "tea.", "Coffee.")
    four, five = await memories.search(text="tea", exact=True)

    assert len(four.memory.content) == len(five.memory.content) == 20
    assert four.score == five.score


async def test_words_are_found_in_every_inflection(memories: MemoryRepository, agent_id: UUID) -> None:
    await remembered(memories, agent_id, "She paints on Mondays.", "He runs.")

    assert await said(memories, "painted monday") == ["She paints on Mondays."]


@pytest.mark.parametrize("words", ["the of and", "?!", "''", "&|!<->", "-"])
async def test_a_text_without_words_matches_nothing(memories: MemoryRepository, agent_id: UUID, words: str) -> None:
    await remembered(memories, agent_id, "The cat and the dog.")

    assert await said(memories, words) == []


@pytest.mark.parametrize(
    "words",
    [
        "cats & !dogs",
        "cats | (",
        "cats <-> ) :*",
        "'cats' \\ ''",
        "$$cats$$ %s :org_id",
        "cats'; DROP TABLE ibex_core.memories; --",
        "\\'cats\\\\",
        "cats:*A",
        "cats foo.example/a?b='1'&c=\\|d",
        "猫 cats кошки القطط 🐈",
    ],
)
async def test_operators_and_quotes_are_words_like_others(
    memories: MemoryRepository, agent_id: UUID, words: str
) -> None:
    await remembered(memories, agent_id, "A house of cats.", "Nothing else at home.")

    assert await said(memories, words) == ["A house of cats."]


@pytest.mark.parametrize(
    "content",
    [
        "Die Katze schläft.",
        "Она пьёт чай.",
        "彼女はお茶が好きです",
        "هي تحب الشاي",
        "नमस्ते दुनिया",
        "👩‍👩‍👧 familia",
        "O'Brien's e-mail: o.brien@example.org",
        "C:\\temp\\new 'quoted'",
        "a" * 3000,
        "e\u0301clair",
    ],
)
async def test_any_language_finds_itself(memories: MemoryRepository, agent_id: UUID, content: str) -> None:
    await remembered(memories, agent_id, content)
    found = await said(memories, content)

    # Postgres indexes no word of 2 kB.
    assert found == ([] if content.startswith("aaa") else [content])


async def test_a_long_text_is_searched_for_by_every_word(memories: MemoryRepository, agent_id: UUID) -> None:
    words = " ".join(f"w{number}" for number in range(900))[: lexical.MAX_TEXT_LENGTH]
    await remembered(memories, agent_id, "Only w700 here.", "And w3 here.")

    assert set(await said(memories, words)) == {"Only w700 here.", "And w3 here."}


@pytest.mark.parametrize("given", ["", "  \n", "a\x00b", "x" * 4097, 7, b"tea", ["tea"], "\ud800"])
async def test_a_bad_text_is_refused_before_any_sql(memories: MemoryRepository, sent: Sent, given: object) -> None:
    with sent() as statements, pytest.raises(InvalidInputError, match="text"):
        await memories.search(text=given)  # type: ignore[arg-type]

    assert statements == []


async def test_neither_vector_nor_text_is_refused(memories: MemoryRepository) -> None:
    with pytest.raises(InvalidInputError, match="embedding"):
        await memories.search()


async def test_min_similarity_needs_a_vector(memories: MemoryRepository) -> None:
    with pytest.raises(InvalidInputError, match="min_similarity"):
        await memories.search(text="tea", min_similarity=0.5)


async def test_a_platform_session_is_told_that_it_names_no_tenant(ibex_db: Database, home: Home) -> None:
    async with ibex_db.platform(reason="test") as session:
        with pytest.raises(TenantMissingError, match="names no tenant"):
            await MemoryRepository(session, home.org_id).search(text="tea")


async def test_filters_narrow_and_never_cost_a_hit(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID
) -> None:
    """The best by words are all filtered out; those that pass are still found, `limit` of them."""
    await remembered(memories, agent_id, *(f"Tea tea tea {number}" for number in range(300)))
    await remembered(memories, agent_id, *(f"Some tea and other things {n}" for n in range(12)), tags=["kept"])
    old = datetime.now(UTC) - timedelta(days=1)
    await remembered(memories, agent_id, "Tea that is over.", tags=["kept"], expires_at=old)
    await remembered(memories, agent_id, "Tea in doubt.", tags=["kept"], confidence=0.1)
    await remembered(memories, agent_id, "Tea set aside.", tags=["kept"], status="archived")
    await remembered(memories, other_agent_id, "Tea of somebody else.", tags=["kept"])
    found = await said(
        memories, "tea", agent_id=agent_id, tags_all=["kept"], min_confidence=0.5, categories=["factual"], limit=10
    )

    assert len(found) == 10
    assert all(content.startswith("Some tea") for content in found)


async def test_one_statement_asks(memories: MemoryRepository, agent_id: UUID, sent: Sent) -> None:
    await remembered(memories, agent_id, "Tea.")
    await memories.search(text="tea")
    with sent() as statements:
        hits = await memories.search(text="tea")

    assert len(hits) == 1
    assert len(statements) == 1


async def test_explain_tells_the_place(memories: MemoryRepository, agent_id: UUID) -> None:
    await remembered(memories, agent_id, "Tea.", "Tea, and many other things besides.")
    hits = await memories.search(text="tea", explain=True)

    assert [hit.parts and hit.parts.lexical_rank for hit in hits] == [1, 2]
    assert "words" in hits.plan.reason


async def test_the_words_follow_the_content_and_nothing_else(
    session: ScopedSession, memories: MemoryRepository, agent_id: UUID
) -> None:
    (ident,) = await remembered(memories, agent_id, "Tea.")
    await session.execute(text("UPDATE ibex_core.memories SET search_vector = 'coffee'::tsvector"))
    assert await said(memories, "coffee") == []

    await memories.update(ident, content="Coffee.", embedding=None)

    assert await said(memories, "coffee") == ["Coffee."]
    assert await said(memories, "tea") == []


@ALONE
async def test_counters_of_memories_whose_words_lie_out_of_line_stay_hot(
    ibex_db: Database, home: Home, vector: Callable[[int], list[float]]
) -> None:
    """A column generated anew would differ from the one stored out of line, and end HOT updates."""
    async with ibex_db.tenant(home.org_id) as session:
        memories = MemoryRepository(session)
        lengths = (5, 40, 100, 300, 900)
        done = await memories.remember_many(
            {
                "agent_id": home.agent_id,
                "content": " ".join(f"w{number}x{n}" for n in range(length)),
                "category": "factual",
                "embedding": vector(number),
            }
            for number, length in enumerate(lengths * 8)
        )
    ids = [outcome.id for outcome in done.outcomes]
    for at in range(0, len(ids), 10):
        async with ibex_db.tenant(home.org_id) as session:
            await MemoryRepository(session).record_retrieval(ids[at : at + 10])
            await session.execute(text("SELECT pg_stat_force_next_flush()"))

    async with ibex_db.tenant(home.org_id) as session:
        updates, hot = (
            await session.execute(
                text(
                    "SELECT sum(n_tup_upd), sum(n_tup_hot_upd) FROM pg_stat_user_tables "
                    "WHERE schemaname = 'ibex_core' AND relname LIKE 'memories\\_p%'"
                )
            )
        ).one()
    assert (updates, hot) == (len(ids), len(ids))


async def test_rule_20_the_index_of_words_is_used_in_one_partition_only(
    ibex_db: Database, home: Home, owner: "asyncpg.Connection"
) -> None:
    async with ibex_db.tenant(home.org_id) as session:
        await remembered(MemoryRepository(session), home.agent_id, *(f"Row {n} of word{n % 500}." for n in range(3000)))
    await owner.execute("ANALYZE ibex_core.memories")
    scans = (
        "SELECT indexrelname::text, idx_scan FROM pg_stat_user_indexes "
        "WHERE indexrelname LIKE 'memories\\_words\\_idx\\_p%' AND idx_scan > 0"
    )
    before = await owner.fetch(scans)
    async with ibex_db.tenant(home.org_id) as session:
        hits = await MemoryRepository(session).search(text="word77")
        await session.execute(text("SELECT pg_stat_force_next_flush()"))
    after = await owner.fetch(scans)

    assert len(hits) == 6
    assert before == []
    assert len(after) == 1
