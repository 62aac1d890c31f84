"""Telemetry of memories: how searches were answered, what was known already, and how good the index is."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from homes import Home
from listening import Ear
from sqlalchemy import event, text

from ibex_db_core import Database, Telemetry
from ibex_db_core.tenant import ScopedSession
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import MemoryRepository
from ibex_db_memory.search import plan

MakeVector = Callable[[int], list[float]]
ROWS = 400


@pytest.fixture
def ear() -> Ear:
    return Ear()


@asynccontextmanager
async def working(
    database: TestDatabase, ear: Ear, home: Home, *, recall_guard: float = 0.0
) -> AsyncGenerator[ScopedSession]:
    """A unit of work of a service that tells the ear everything."""
    telemetry = Telemetry(tracer_provider=ear.tracers, meter_provider=ear.meters, recall_guard=recall_guard)
    async with database.connect(telemetry=telemetry) as opened, opened.tenant(home.org_id) as session:
        yield session


@pytest.fixture
async def filled(ibex_db: Database, home: Home, vector: MakeVector) -> None:
    """Memories with vectors that have nothing in common, which an index that is not looked into hard does not find."""
    async with ibex_db.tenant(home.org_id) as session:
        await MemoryRepository(session).remember_many(
            {"agent_id": home.agent_id, "content": f"Fact {n}.", "category": "factual", "embedding": vector(n)}
            for n in range(ROWS)
        )


async def by_index(session: ScopedSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have searches go by the index, and have it look at as few vectors as it can."""
    monkeypatch.setattr(plan, "EXACT_UP_TO", 50)
    for setting in ("hnsw.ef_search = 10", "hnsw.iterative_scan = off", "enable_seqscan = off", "enable_sort = off"):
        await session.execute(text(f"SET LOCAL {setting}"))


async def test_a_search_tells_plan_mode_and_rows(
    ibex_test_database: TestDatabase, ear: Ear, home: Home, vector: MakeVector
) -> None:
    async with working(ibex_test_database, ear, home) as session:
        memories = MemoryRepository(session)
        await memories.remember(agent_id=home.agent_id, content="Has a cat.", category="factual", embedding=vector(1))
        await memories.search(embedding=vector(1), limit=3)
        await memories.search(text="cat")

    first, second = (span.attributes or {} for span in ear.spans if span.name == "search memories")
    assert (first["ibex.search.mode"], first["ibex.search.plan"]) == ("vector", "exact")
    assert (first["ibex.rows.asked"], first["db.response.returned_rows"]) == (3, 1)
    assert first["ibex.search.scope_rows"] == 1
    assert (second["ibex.search.mode"], second["ibex.rows.asked"]) == ("text", 10)
    asked = {str(point.labels["ibex.search.mode"]): point.total for point in ear.points("ibex.search.rows.asked")}
    assert asked == {"vector": 3, "text": 10}
    returned = {str(point.labels["ibex.search.mode"]): point.total for point in ear.points("ibex.search.rows.returned")}
    assert returned == {"vector": 1, "text": 1}
    assert sum(point.count for point in ear.points("ibex.search.duration")) == 2


async def test_remembering_tells_what_was_known(ibex_test_database: TestDatabase, ear: Ear, home: Home) -> None:
    async with working(ibex_test_database, ear, home) as session:
        memories = MemoryRepository(session)
        for content in ("Has a cat.", "has a  CAT."):
            await memories.remember(agent_id=home.agent_id, content=content, category="factual")
        await memories.remember_many(
            {"agent_id": home.agent_id, "content": content, "category": "factual"}
            for content in ("Has a cat.", "Has a dog.", "Has a dog.")
        )

    new, known = (span.attributes or {} for span in ear.spans if span.name == "remember memories")
    assert (new["ibex.dedup"], known["ibex.dedup"]) == ("created", "duplicate")
    many = ear.attributes("remember_many memories")
    assert (many["ibex.dedup.created"], many["ibex.dedup.duplicate"]) == (1, 2)
    counted = {str(point.labels["ibex.dedup"]): point.total for point in ear.points("ibex.memories.remembered")}
    assert counted == {"created": 2, "duplicate": 3}


@pytest.mark.usefixtures("filled")
async def test_the_recall_guard_sees_what_the_index_missed_and_leaves_the_answer_as_it_was(
    ibex_test_database: TestDatabase, ear: Ear, home: Home, vector: MakeVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(ibex_test_database, ear, home) as session:
        await by_index(session, monkeypatch)
        unguarded = await MemoryRepository(session).search(embedding=vector(ROWS), limit=10)
        truth = await MemoryRepository(session).search(embedding=vector(ROWS), limit=10, exact=True)
    assert ear.points("ibex.search.recall") == []
    missed = {hit.memory.id for hit in truth} - {hit.memory.id for hit in unguarded}
    assert missed, "the index found everything: this test shows nothing"

    async with working(ibex_test_database, ear, home, recall_guard=1.0) as session:
        await by_index(session, monkeypatch)
        hits = await MemoryRepository(session).search(embedding=vector(ROWS), limit=10)

    assert [hit.memory.id for hit in hits] == [hit.memory.id for hit in unguarded]
    assert not hits.plan.exact
    (told,) = ear.points("ibex.search.recall")
    assert (told.labels, told.count) == ({"ibex.search.mode": "vector"}, 1)
    assert told.total == pytest.approx(1 - len(missed) / len(truth))
    assert ear.attributes("ibex recall guard")["ibex.search.recall"] == pytest.approx(told.total)
    # The second look is no search of the service's.
    plans = [point for point in ear.points("ibex.search.duration") if point.labels["ibex.search.plan"] == "hnsw"]
    assert [point.count for point in plans] == [2]


@pytest.mark.usefixtures("filled")
async def test_a_recall_guard_that_fails_does_not_touch_the_transaction(
    ibex_test_database: TestDatabase, ear: Ear, home: Home, vector: MakeVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(_connection: object, _cursor: object, statement: str, parameters: object, *_rest: object) -> object:
        return (statement.replace("+ 0", "/ 0"), parameters) if "+ 0" in statement else (statement, parameters)

    async with working(ibex_test_database, ear, home, recall_guard=1.0) as session:
        await by_index(session, monkeypatch)
        memories = MemoryRepository(session)
        await memories.remember(agent_id=home.agent_id, content="Has a cat.", category="factual")
        event.listen(session.sync_session.get_bind(), "before_cursor_execute", spoil, retval=True)

        hits = await memories.search(embedding=vector(ROWS), limit=10)

        assert len(hits) == 10
        assert await memories.count() == ROWS + 1
    assert ear.attributes("ibex recall guard")["error.type"] == "DatabaseError"
    assert ear.attributes("ibex tenant")["ibex.outcome"] == "commit"
    assert ear.points("ibex.search.recall") == []


async def test_a_search_in_full_is_not_guarded(
    ibex_test_database: TestDatabase, ear: Ear, home: Home, vector: MakeVector
) -> None:
    async with working(ibex_test_database, ear, home, recall_guard=1.0) as session:
        await MemoryRepository(session).search(embedding=vector(1))

    assert "ibex recall guard" not in [span.name for span in ear.spans]
