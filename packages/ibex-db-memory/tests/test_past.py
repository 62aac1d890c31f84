"""Searching the past: what was known at a moment, judged as it was then."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from homes import Home
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import AsyncSession

from ibex_db_core.database import Database
from ibex_db_core.errors import InvalidInputError, TenantMissingError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import Hits, Memory, MemoryRepository, Reembedding
from ibex_db_memory.search import filters, past

Sent = Callable[[], AbstractContextManager[list[str]]]
Vector = Callable[[int], list[float]]
Do = Callable[[Callable[[MemoryRepository], Awaitable[object]]], Awaitable[datetime]]


@pytest.fixture
def do(ibex_db: Database, org_id: UUID) -> Do:
    """Do something in a transaction of its own, and return a moment after it."""

    async def run(work: Callable[[MemoryRepository], Awaitable[object]]) -> datetime:
        async with ibex_db.tenant(org_id) as session:
            await work(MemoryRepository(session))
        return await clock(ibex_db, org_id)

    return run


async def clock(database: Database, org_id: UUID) -> datetime:
    async with database.tenant(org_id) as session:
        now = await session.scalar(text("SELECT clock_timestamp()"))
    assert isinstance(now, datetime)
    return now


def said(hits: Hits) -> list[str]:
    return [hit.memory.content for hit in hits]


async def remembered(do: Do, agent_id: UUID, content: str, **fields: object) -> tuple[UUID, datetime]:
    """Return the id of a new memory, and a moment at which it was known."""
    found: list[UUID] = []

    async def remember(memories: MemoryRepository) -> None:
        values = {"agent_id": agent_id, "content": content, "category": "factual", **fields}
        found.append((await memories.remember_many([values])).outcomes[0].id)

    moment = await do(remember)
    return found[0], moment


async def test_a_memory_says_what_it_said_then_and_is_found_by_the_words_and_the_vector_of_then(
    do: Do, memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    ident, then = await remembered(do, agent_id, "Has a cat.", embedding=vector(1))
    await do(lambda m: m.update(ident, content="Has a dog.", embedding=vector(2), category="episodic", confidence=0.3))

    assert said(await memories.search(text="cat")) == []
    by_words = await memories.search(text="cat", as_of=then)
    assert said(by_words) == ["Has a cat."]
    by_vector = await memories.search(embedding=vector(1), as_of=then)
    assert by_vector[0].similarity == pytest.approx(1.0)
    both = await memories.search(embedding=vector(1), text="cat", as_of=then)
    assert [(hit.memory.id, hit.version_num, hit.memory.category) for hit in both] == [(ident, 1, "factual")]
    assert both[0].memory.content_hash == by_words[0].memory.content_hash
    assert said(await memories.search(text="dog", as_of=then)) == []

    now = await memories.search(text="dog", embedding=vector(2), as_of=datetime.now(UTC))
    assert [(hit.memory.content, hit.version_num) for hit in now] == [("Has a dog.", 2)]
    assert now[0].similarity == pytest.approx(1.0)


async def test_each_of_many_contents_has_its_own_vector(
    do: Do, memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    ident, moment = await remembered(do, agent_id, "Version 0.", embedding=vector(0), embedding_model="m0")
    moments = [moment]
    for n in range(1, 4):
        content = "Version 0." if n == 2 else f"Version {n}."

        async def change(memories: MemoryRepository, n: int = n, content: str = content) -> None:
            await memories.update(ident, content=content, embedding=vector(n), embedding_model=f"m{n}")

        moments.append(await do(change))
        # What changes no content replaces no vector.

        async def doubt(memories: MemoryRepository, n: int = n) -> None:
            await memories.update(ident, confidence=n / 10)

        moments.append(await do(doubt))

    for at, n in zip(moments, (0, 1, 1, 2, 2, 3, 3), strict=True):
        hits = await memories.search(embedding=vector(n), as_of=at, embedding_model=f"m{n}")
        assert hits[0].similarity == pytest.approx(1.0)
        assert hits[0].memory.embedding_model == f"m{n}"
        assert len(await memories.search(embedding=vector(n), as_of=at, embedding_model="m9")) == 0


async def test_a_vector_that_came_later_speaks_for_the_same_content_then(
    do: Do, memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    ident, then = await remembered(do, agent_id, "Has a cat.")
    await do(lambda m: m.update(ident, embedding=vector(1)))

    assert len(await memories.search(embedding=vector(1), as_of=then)) == 1


async def test_a_content_that_had_no_vector_then_is_found_by_words_only(
    do: Do, memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    ident, then = await remembered(do, agent_id, "Has a cat.")
    await do(lambda m: m.update(ident, content="Has a dog.", embedding=vector(1)))

    assert len(await memories.search(embedding=vector(1), as_of=then)) == 0
    hits = await memories.search(embedding=vector(1), text="cat", as_of=then)
    assert [hit.similarity for hit in hits] == [None]


async def test_a_vector_of_another_dimension_is_passed_over(
    do: Do, memories: MemoryRepository, agent_id: UUID, vector: Vector, owner: "asyncpg.Connection"
) -> None:
    ident, then = await remembered(do, agent_id, "Has a cat.", embedding=vector(1))
    await do(lambda m: m.update(ident, content="Has a dog.", embedding=vector(2)))
    await owner.execute("ALTER TABLE ibex_core.memory_versions DISABLE TRIGGER ALL")
    await owner.execute("UPDATE ibex_core.memory_versions SET replaced_embedding = '[1,2,3]' WHERE version_num = 2")

    assert len(await memories.search(embedding=vector(1), as_of=then)) == 0
    assert len(await memories.search(embedding=vector(1), text="cat", as_of=then)) == 1


async def test_what_was_superseded_merged_archived_or_forgotten_since_is_back(
    do: Do, memories: MemoryRepository, agent_id: UUID
) -> None:
    old, _ = await remembered(do, agent_id, "Lives in Rome.")
    twin, _ = await remembered(do, agent_id, "Rome is home.")
    kept_one, _ = await remembered(do, agent_id, "Rome it is.")
    filed, _ = await remembered(do, agent_id, "Rome was not built in a day.")
    gone, then = await remembered(do, agent_id, "Rome in May.")
    everything = sorted(said(await memories.search(text="Rome")))
    await do(lambda m: m.supersede(old, by={"agent_id": agent_id, "content": "Left Rome.", "category": "factual"}))
    await do(lambda m: m.merge([twin], into=kept_one))
    await do(lambda m: m.archive(filed))
    await do(lambda m: m.forget(gone))

    hits = await memories.search(text="Rome", as_of=then)
    assert sorted(said(hits)) == everything
    assert len(everything) == 5
    assert {hit.memory.status for hit in hits} == {"active"}
    assert [(m.superseded_by, m.merged_into, m.deleted_at) for m in (hit.memory for hit in hits)] == [(None,) * 3] * 5
    assert sorted(said(await memories.search(text="Rome"))) == ["Left Rome.", "Rome it is."]
    later = await memories.search(text="Rome", as_of=datetime.now(UTC), statuses=["superseded", "merged"])
    assert {(hit.memory.superseded_by is None, hit.memory.merged_into is None) for hit in later} == {
        (False, True),
        (True, False),
    }


async def test_what_came_later_is_not_there_and_what_was_erased_is_gone(
    do: Do, memories: MemoryRepository, agent_id: UUID
) -> None:
    erased, _ = await remembered(do, agent_id, "Tea, erased.")
    _, then = await remembered(do, agent_id, "Tea, early.")
    await remembered(do, agent_id, "Tea, late.")
    await do(lambda m: m.erase(erased))

    assert said(await memories.search(text="tea", as_of=then)) == ["Tea, early."]
    assert said(await memories.search(text="tea", as_of=then - timedelta(days=1))) == []


async def test_expiry_and_deletion_are_those_of_the_moment(
    do: Do, ibex_db: Database, org_id: UUID, memories: MemoryRepository, agent_id: UUID
) -> None:
    soon = await clock(ibex_db, org_id) + timedelta(minutes=5)
    _, then = await remembered(do, agent_id, "Tea until five.", expires_at=soon)
    gone, _ = await remembered(do, agent_id, "Tea, forgotten.")
    after = await do(lambda m: m.forget(gone))

    assert said(await memories.search(text="tea", as_of=then)) == ["Tea until five."]
    assert said(await memories.search(text="tea", as_of=soon)) == []
    assert said(await memories.search(text="tea", as_of=soon, include_expired=True)) == ["Tea until five."]
    hits = await memories.search(text="forgotten", as_of=after, include_deleted=True)
    assert [hit.memory.deleted_at is None for hit in hits] == [False]


async def test_validity_is_what_was_held_true_then(
    do: Do, memories: MemoryRepository, agent_id: UUID, owner: "asyncpg.Connection"
) -> None:
    """Two times: when it held in the world, and when that was known."""
    may, june, july = (datetime(2026, month, 1, tzinfo=UTC) for month in (5, 6, 7))
    ident, then = await remembered(do, agent_id, "Works in Oslo.", valid_from=may)
    await do(lambda m: m.update(ident, valid_until=june))

    assert said(await memories.search(text="Oslo", valid_at=july)) == []
    assert said(await memories.search(text="Oslo", valid_at=july, as_of=then)) == ["Works in Oslo."]
    hits = await memories.search(text="Oslo", valid_at=may, as_of=datetime.now(UTC))
    assert [(hit.memory.valid_from, hit.memory.valid_until) for hit in hits] == [(may, june)]
    assert said(await memories.search(text="Oslo", valid_at=june, as_of=datetime.now(UTC))) == []

    # Versions of before memory_0005 have none: then today's counts.
    await owner.execute("ALTER TABLE ibex_core.memory_versions DISABLE TRIGGER ALL")
    await owner.execute("UPDATE ibex_core.memory_versions SET valid_from = NULL, valid_until = NULL")
    assert said(await memories.search(text="Oslo", valid_at=july, as_of=then)) == []
    hits = await memories.search(text="Oslo", valid_at=may, as_of=then)
    assert [(hit.memory.valid_from, hit.memory.valid_until) for hit in hits] == [(may, june)]


async def test_tags_that_came_later_do_not_count(do: Do, memories: MemoryRepository, agent_id: UUID) -> None:
    ident, then = await remembered(do, agent_id, "Likes tea.", tags=["drinks"])
    after = await do(lambda m: m.tag(ident, "hot"))

    assert len(await memories.search(text="tea", tags_all=["drinks"], as_of=then)) == 1
    assert len(await memories.search(text="tea", tags_all=["drinks", "hot"], as_of=then)) == 0
    assert len(await memories.search(text="tea", tags_all=["drinks", "hot"], as_of=after)) == 1
    assert len(await memories.search(text="tea", tags_any=["hot"], as_of=then)) == 0


FILTERS: list[dict[str, object]] = [
    {},
    {"categories": ["factual"]},
    {"sources": ["inferred"]},
    {"statuses": ["active", "pending_review"]},
    {"tags_any": ["even", "third"]},
    {"tags_all": ["even", "third"]},
    {"metadata": {"n": 4}},
    {"min_confidence": 0.55},
    {"min_similarity": 0.05},
    {"valid_at": datetime(2026, 2, 10, tzinfo=UTC)},
    {"created_after": datetime(2020, 1, 1, tzinfo=UTC), "created_before": datetime(2100, 1, 1, tzinfo=UTC)},
    {"created_before": datetime(2020, 1, 1, tzinfo=UTC)},
    {"embedding_model": "m"},
    {"include_expired": True},
    {"include_deleted": True},
    {"categories": ["factual"], "tags_any": ["even"], "min_confidence": 0.5, "limit": 3},
]


@pytest.mark.parametrize("narrowed", FILTERS, ids=lambda narrowed: "+".join(narrowed) or "none")
async def test_this_moment_s_past_is_the_present(
    memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, vector: Vector, narrowed: dict[str, object]
) -> None:
    """Every filter, and the scores of every kind of search, to the last digits."""
    await fill(memories, agent_id, other_agent_id, vector)
    now = datetime.now(UTC)
    for query in (
        {"embedding": vector(3)},
        {"text": "tea cinnamon"},
        {"embedding": vector(3), "text": "tea cinnamon"},
        {"embedding": vector(3), "text": "tea 'cinnamon' \\ & !", "agent_id": agent_id, "explain": True},
    ):
        if "min_similarity" in narrowed and "embedding" not in query:
            continue
        present = await memories.search(**{"exact": True, **query, **narrowed})  # type: ignore[arg-type]
        recalled = await memories.search(**{**query, **narrowed}, as_of=now)  # type: ignore[arg-type]
        assert [hit.memory.id for hit in recalled] == [hit.memory.id for hit in present]
        for then, hit in zip(recalled, present, strict=True):
            assert then.score == pytest.approx(hit.score)
            assert then.similarity == pytest.approx(hit.similarity)
            assert then.lexical == pytest.approx(hit.lexical)
            assert (then.parts is None) == (hit.parts is None)
            if then.parts and hit.parts:
                assert (then.parts.vector_rank, then.parts.lexical_rank) == (
                    hit.parts.vector_rank,
                    hit.parts.lexical_rank,
                )
            loaded = {name: value for name, value in vars(hit.memory).items() if not name.startswith("_")}
            assert {name: vars(then.memory)[name] for name in loaded if name != "updated_at"} == {
                name: value for name, value in loaded.items() if name != "updated_at"
            }


async def fill(memories: MemoryRepository, agent_id: UUID, other_agent_id: UUID, vector: Vector) -> None:
    done = await memories.remember_many(
        {
            "agent_id": other_agent_id if n % 7 == 0 else agent_id,
            "content": f"Row {n}" + (" tea" if n % 2 == 0 else "") + (" cinnamon tea" if n % 5 == 0 else ""),
            "category": "factual" if n % 2 else "episodic",
            "source": "inferred" if n % 4 == 0 else "extracted",
            "status": "pending_review" if n % 9 == 0 else "active",
            "embedding": vector(n) if n % 6 else None,
            "embedding_model": "m" if n % 6 else None,
            "confidence": n / 60,
            "metadata": {"n": n},
            "tags": ["even"] * (n % 2 == 0) + ["third"] * (n % 3 == 0),
            "valid_from": datetime(2026, 1, 1 + n % 28, tzinfo=UTC),
            "valid_until": datetime(2026, 2, 1 + n % 28, tzinfo=UTC),
            "expires_at": datetime(2020, 1, 1, tzinfo=UTC) if n % 11 == 0 else None,
        }
        for n in range(60)
    )
    for outcome in done.outcomes[::13]:
        await memories.forget(outcome.id)


def test_every_filter_of_a_search_is_known_in_the_past() -> None:
    assert past.CONDITIONS.keys() == filters.CONDITIONS.keys()
    assert past.UNLESS.keys() == filters.UNLESS.keys()


async def test_one_round_trip(sent: Sent, memories: MemoryRepository, agent_id: UUID, vector: Vector) -> None:
    await memories.remember(agent_id=agent_id, content="Tea.", category="factual", embedding=vector(1), tags=["x"])

    with sent() as statements:
        await memories.search(embedding=vector(1), text="tea", as_of=datetime.now(UTC), tags_any=["x"])
    assert len(statements) == 1


async def test_the_past_leaves_what_the_session_holds_alone(
    do: Do, memories: MemoryRepository, session: ScopedSession, agent_id: UUID
) -> None:
    ident, then = await remembered(do, agent_id, "Has a cat.")
    await do(lambda m: m.update(ident, content="Has a dog.", embedding=None))

    hit = (await memories.search(text="cat", as_of=then))[0]
    assert inspect(hit.memory).detached
    assert hit.memory not in session
    hit.memory.content = "Has a bird."
    await session.flush()
    assert (await memories.get(ident)).content == "Has a dog."


async def test_ranks_and_parts_are_explained(
    do: Do, memories: MemoryRepository, agent_id: UUID, vector: Vector
) -> None:
    await remembered(do, agent_id, "Tea.", embedding=vector(1))
    _, then = await remembered(do, agent_id, "Coffee.", embedding=vector(2))

    by_vector = await memories.search(embedding=vector(2), as_of=then, explain=True)
    assert [hit.parts and (hit.parts.vector_rank, hit.parts.lexical_rank) for hit in by_vector] == [
        (1, None),
        (2, None),
    ]
    by_words = await memories.search(text="coffee", as_of=then, explain=True)
    assert [hit.parts and (hit.parts.vector_rank, hit.parts.lexical_rank) for hit in by_words] == [(None, 1)]
    assert by_words.plan.exact
    assert "what was known" in by_words.plan.reason


async def test_no_other_organizations_past_is_seen(
    ibex_db: Database, home: Home, other_home: Home, owner: "asyncpg.Connection", vector: Vector
) -> None:
    for place in (home, other_home):
        async with ibex_db.tenant(place.org_id) as session:
            memories = MemoryRepository(session)
            made = await memories.remember(
                agent_id=place.agent_id, content="Has a cat.", category="factual", embedding=vector(1)
            )
            ident = made.memory.id
        async with ibex_db.tenant(place.org_id) as session:
            await MemoryRepository(session).update(ident, content="Has a dog.", embedding=vector(2))
    # It would be caught: whom no policy binds sees both.
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memory_versions WHERE content = 'Has a cat.'") == 2
    first = await owner.fetchval("SELECT max(created_at) FROM ibex_core.memory_versions WHERE version_num = 1")
    second = await owner.fetchval(
        "SELECT created_at FROM ibex_core.memory_versions WHERE version_num = 2 AND org_id = $1", home.org_id
    )
    assert second < first, "the rival remembered after this one's change, so one moment tells them apart"

    async with ibex_db.tenant(home.org_id) as session:
        hits = await MemoryRepository(session).search(embedding=vector(1), text="cat dog", as_of=first)
        assert [(hit.memory.org_id, hit.memory.content) for hit in hits] == [(home.org_id, "Has a dog.")]
        only = await MemoryRepository(session).search(text="cat", as_of=first)
        assert said(only) == []


async def test_on_a_plain_session_the_tenant_is_set_first(
    ibex_db: Database, home: Home, do: Do, agent_id: UUID
) -> None:
    _, then = await remembered(do, agent_id, "Tea.")

    async with AsyncSession(ibex_db.engine) as plain:
        assert said(await MemoryRepository(plain, home.org_id).search(text="tea", as_of=then)) == ["Tea."]


async def test_bad_input_is_refused_before_sql(
    ibex_db: Database, memories: MemoryRepository, sent: Sent, vector: Vector
) -> None:
    with sent() as statements:
        with pytest.raises(InvalidInputError, match="as_of"):
            await memories.search(text="tea", as_of=datetime(2026, 1, 1))  # noqa: DTZ001 - naive is the point
        with pytest.raises(InvalidInputError, match="embedding"):
            await memories.search(as_of=datetime.now(UTC))
    assert statements == []
    async with ibex_db.platform(reason="look at the past of everybody") as platform:
        with pytest.raises(TenantMissingError):
            await MemoryRepository(platform).search(embedding=vector(1), as_of=datetime.now(UTC))


async def test_a_search_of_the_past_beside_writers_sees_one_moment(
    ibex_db: Database, org_id: UUID, do: Do, agent_id: UUID, vector: Vector
) -> None:
    """Writers change all of the rows while the past is read, again and again: it is the same each time."""
    idents: list[UUID] = []

    async def load(memories: MemoryRepository) -> None:
        done = await memories.remember_many(
            {"agent_id": agent_id, "content": f"Tea {n}.", "category": "factual", "embedding": vector(n)}
            for n in range(30)
        )
        idents.extend(outcome.id for outcome in done.outcomes)

    then = await do(load)

    async def write(turn: int) -> None:
        for n, ident in enumerate(idents):
            async with ibex_db.tenant(org_id) as session:
                await MemoryRepository(session).update(ident, content=f"Coffee {turn} {n}.", embedding=vector(99 + n))

    async def read() -> list[tuple[UUID, str, float]]:
        async with ibex_db.tenant(org_id) as session:
            hits = await MemoryRepository(session).search(embedding=vector(7), text="tea", as_of=then, limit=30)
            return [(hit.memory.id, hit.memory.content, round(hit.score, 9)) for hit in hits]

    before = await read()
    writers = asyncio.gather(write(1), write(2))
    during = [await read() for _ in range(10)]
    await writers
    assert [*during, await read()] == [before] * 11
    assert len(before) == 30


def test_memory_has_every_column_in_a_past_row() -> None:
    """A column that is added to memories is either as it is today, or as it was: never left out."""
    brought = {*past.NOW, *past.OVERLAID, "content_hash", "embedding", "search_vector"}

    assert brought == {column.name for column in Memory.__table__.columns}


async def test_after_a_move_to_another_model_the_past_is_searched_by_the_new_vectors(
    do: Do, ibex_db: Database, memories: MemoryRepository, *, org_id: UUID, agent_id: UUID, vector: Vector
) -> None:
    """What has changed since has no vector of the new model for what it said: the words find it."""
    same, _ = await remembered(do, agent_id, "Likes tea.", embedding=vector(1))
    changed, then = await remembered(do, agent_id, "Has a cat.", embedding=vector(2))
    await do(lambda m: m.update(changed, content="Has a dog.", embedding=vector(3)))

    async def embed(contents: list[str]) -> list[list[float]]:
        return [[1.0, *[float(content != "Likes tea.")] * 511] for content in contents]

    move = Reembedding(ibex_db, org_id)
    await move.fill(embed, embedding_model="large", dimensions=512)
    await move.cut_over()

    query = [1.0, *[0.0] * 511]
    hits = await memories.search(embedding=query, as_of=then)
    assert [(hit.memory.id, hit.version_num) for hit in hits] == [(same, 1)]
    assert hits[0].similarity == pytest.approx(1.0)
    both = await memories.search(embedding=query, text="cat", as_of=then)
    assert {hit.memory.content: hit.similarity is None for hit in both} == {"Likes tea.": False, "Has a cat.": True}
    with pytest.raises(InvalidInputError, match="512 dimensions"):
        await memories.search(embedding=vector(1), as_of=then)


async def test_the_past_moves_with_the_memories(
    do: Do, ibex_db: Database, memories: MemoryRepository, *, agent_id: UUID, other_home: Home, vector: Vector
) -> None:
    """An export holds what a version replaced, and a search of the past finds it where it was imported."""
    ident, then = await remembered(do, agent_id, "Has a cat.", embedding=vector(1), embedding_model="m")
    await do(lambda m: m.update(ident, content="Has a dog.", embedding=vector(2)))
    lines = [line async for line in memories.export()]

    async with ibex_db.tenant(other_home.org_id) as session:
        there = MemoryRepository(session)
        await there.import_(lines, agents={agent_id: other_home.agent_id})
        hits = await there.search(embedding=vector(1), as_of=then)
    assert [(hit.memory.content, hit.memory.embedding_model) for hit in hits] == [("Has a cat.", "m")]
    assert hits[0].similarity == pytest.approx(1.0)
