"""Filters: each alone and all together, against a model of the rows in plain Python."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ibex_db_core.database import Database
from ibex_db_core.provisioning import Cluster
from ibex_db_memory import MemoryRepository, SessionRepository
from ibex_db_tenancy import Agent, Organization

TAGS = ("drinks", "food", "work", "home")
CATEGORIES = ("factual", "preference", "behavioral", "episodic", "procedural")
SOURCES = ("extracted", "user_provided", "imported", "inferred")
STATUSES = ("active", "superseded", "merged", "archived", "pending_review")
MODELS = (None, "minilm")
DAY_ZERO = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 300


@dataclass(frozen=True)
class Row:
    """A memory, as a person would write it down."""

    id: UUID
    agent: int
    session: int | None
    category: str
    source: str
    status: str
    tags: frozenset[str]
    metadata: Mapping[str, object]
    confidence: float
    created_at: datetime
    model: str | None
    expired: bool
    deleted: bool
    similarity: float


@dataclass
class Data:
    """The rows, and where they are."""

    database: Database
    loop: asyncio.AbstractEventLoop
    org_id: UUID
    agents: list[UUID] = field(default_factory=list[UUID])
    sessions: list[UUID] = field(default_factory=list[UUID])
    rows: list[Row] = field(default_factory=list[Row])

    def search(self, **fields: Any) -> Sequence[tuple[UUID, float]]:
        async def run() -> Sequence[tuple[UUID, float]]:
            async with self.database.tenant(self.org_id) as session:
                hits = await MemoryRepository(session).search(embedding=QUERY, **fields)
                return [(hit.memory.id, hit.score) for hit in hits]

        return self.loop.run_until_complete(run())


QUERY = cast("list[float]", np.random.default_rng(0).standard_normal(384).astype(np.float32).tolist())


@pytest.fixture(scope="module")
def data(ibex_cluster: Cluster, ibex_template: str) -> Iterator[Data]:
    """Rows of every kind in one organization, and their vectors once more in another."""
    name = f"ibex_test_{uuid4().hex[:12]}"
    with asyncio.Runner() as runner:
        runner.run(ibex_cluster.create_database(name, template=ibex_template))
        database = ibex_cluster.database(name)
        yield runner.run(
            fill(database, ibex_cluster.url(name).render_as_string(hide_password=False), runner.get_loop())
        )
        runner.run(database.close())
        runner.run(ibex_cluster.drop_database(name))


async def fill(database: Database, owner_url: str, loop: asyncio.AbstractEventLoop) -> Data:
    rng = np.random.default_rng(1)
    orgs = [Organization(name=slug, slug=slug) for slug in ("acme", "globex")]
    async with database.platform(reason="test data") as session:
        session.add_all(orgs)
    data = Data(database, loop, orgs[0].id)
    vectors = rng.standard_normal((ROWS, 384)).astype(np.float32)
    similarities = vectors @ np.array(QUERY) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(QUERY)
    for org in orgs:
        async with database.tenant(org.id) as session:
            agents = [Agent(name=str(n), slug=f"agent-{n}") for n in range(3)]
            session.add_all(agents)
            await session.flush()
            runs = [await SessionRepository(session).start(agent_id=agents[0].id) for _ in range(2)]
            rows = [
                Row(
                    id=uuid4(),
                    agent=int(rng.integers(3)),
                    session=None if rng.random() < 0.4 else int(rng.integers(2)),
                    category=str(rng.choice(CATEGORIES)),
                    source=str(rng.choice(SOURCES)),
                    status="active" if rng.random() < 0.6 else str(rng.choice(STATUSES)),
                    tags=frozenset(str(tag) for tag in TAGS if rng.random() < 0.4),
                    metadata={"turn": int(rng.integers(3)), "said": {"by": ["her", "him"][int(rng.integers(2))]}},
                    confidence=int(rng.integers(11)) / 10,
                    created_at=DAY_ZERO + timedelta(days=int(rng.integers(30))),
                    model=MODELS[int(rng.integers(2))],
                    expired=bool(rng.random() < 0.2),
                    deleted=bool(rng.random() < 0.2),
                    similarity=float(similarities[at]),
                )
                for at in range(ROWS)
            ]
            await MemoryRepository(session).remember_many(
                {
                    "id": row.id,
                    "agent_id": agents[row.agent].id,
                    "session_id": None if row.session is None else runs[row.session].id,
                    "content": f"Number {at}.",
                    "embedding": vectors[at],
                    "expires_at": DAY_ZERO if row.expired else None,
                    "embedding_model": row.model,
                    # Superseded or merged is no status to begin with: the owner sets it below.
                    "status": "active" if row.status in {"superseded", "merged"} else row.status,
                    **{name: getattr(row, name) for name in ("category", "source", "confidence", "metadata")},
                    "tags": sorted(row.tags),
                }
                for at, row in enumerate(rows)
            )
            if org is orgs[0]:
                data.agents, data.sessions, data.rows = [a.id for a in agents], [r.id for r in runs], rows
    owner = await asyncpg.connect(owner_url)
    await owner.executemany(
        "UPDATE ibex_core.memories SET created_at = $2, deleted_at = $3, status = $4 WHERE id = $1",
        [(row.id, row.created_at, DAY_ZERO if row.deleted else None, row.status) for row in data.rows],
    )
    await owner.close()
    return data


RULES: Mapping[str, Callable[[Data, Row, Any], bool]] = {
    "agent_id": lambda data, row, wanted: data.agents[row.agent] in wanted,
    "session_id": lambda data, row, wanted: row.session is not None and data.sessions[row.session] == wanted,
    "categories": lambda _, row, wanted: row.category in wanted,
    "sources": lambda _, row, wanted: row.source in wanted,
    "statuses": lambda _, row, wanted: row.status in wanted,
    "tags_any": lambda _, row, wanted: bool(row.tags & {tag.strip().lower() for tag in wanted}),
    "tags_all": lambda _, row, wanted: row.tags >= {tag.strip().lower() for tag in wanted},
    "metadata": lambda _, row, wanted: all(row.metadata.get(key) == value for key, value in wanted.items()),
    "min_confidence": lambda _, row, wanted: row.confidence >= wanted,
    "min_similarity": lambda _, row, wanted: row.similarity >= wanted,
    "created_after": lambda _, row, wanted: row.created_at >= wanted,
    "created_before": lambda _, row, wanted: row.created_at < wanted,
    "embedding_model": lambda _, row, wanted: row.model == wanted,
}


def expected(data: Data, filters: Mapping[str, Any]) -> list[UUID]:
    """Say in plain Python what a search should return, best first."""
    found: Iterable[Row] = data.rows
    if "statuses" not in filters:
        found = [row for row in found if row.status == "active"]
    if not filters.get("include_expired"):
        found = [row for row in found if not row.expired]
    if not filters.get("include_deleted"):
        found = [row for row in found if not row.deleted]
    for name, rule in RULES.items():
        if name in filters:
            found = [row for row in found if rule(data, row, filters[name])]
    return [row.id for row in sorted(found, key=lambda row: -row.similarity)]


def some(values: Sequence[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3)


moments = st.integers(-1, 31).map(lambda day: DAY_ZERO + timedelta(days=day))
optional = {
    "agents": st.lists(st.integers(0, 2), min_size=1, max_size=3),
    "session": st.integers(0, 1),
    "categories": some(CATEGORIES),
    "sources": some(SOURCES),
    "statuses": some(STATUSES),
    "tags_any": some((*TAGS, " DRINKS ", "nowhere")),
    "tags_all": some((*TAGS, " DRINKS ")),
    "metadata": st.sampled_from([{}, {"turn": 1}, {"said": {"by": "her"}}, {"turn": 2, "said": {"by": "him"}}]),
    "min_confidence": st.integers(0, 10).map(lambda tenths: tenths / 10),
    "min_similarity": st.sampled_from([-1.0, -0.05, 0.0, 0.05, 1.0]),
    "created_after": moments,
    "created_before": moments,
    "include_expired": st.booleans(),
    "include_deleted": st.booleans(),
}
# A model is always named, for a mix of them is refused; the rest is as it comes.
filters = st.fixed_dictionaries({"embedding_model": st.just("minilm")}, optional=optional)


def given_as(data: Data, drawn: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(drawn)
    if "agents" in found:
        found["agent_id"] = [data.agents[number] for number in found.pop("agents")]
    if "session" in found:
        found["session_id"] = data.sessions[found.pop("session")]
    return found


@settings(max_examples=250, deadline=None)
@given(drawn=filters, limit=st.sampled_from([1, 3, 10, 1000]), exact=st.booleans())
def test_a_search_returns_what_matches_all_its_filters(
    data: Data, drawn: Mapping[str, Any], limit: int, *, exact: bool
) -> None:
    filters = given_as(data, drawn)
    wanted = expected(data, filters)
    hits = data.search(**filters, limit=limit, exact=exact)

    # min_similarity looks at the nearest ``limit``, which are the best of all that match.
    assert [ident for ident, _ in hits] == wanted[:limit]


@pytest.mark.parametrize("name", sorted(optional))
def test_each_filter_alone_does_what_it_says(data: Data, name: str) -> None:
    @settings(max_examples=12, deadline=None)
    @given(value=optional[name])
    def check(value: object) -> None:
        filters = given_as(data, {name: value, "embedding_model": "minilm"})
        wanted = expected(data, filters)

        assert [ident for ident, _ in data.search(**filters, limit=1000)] == wanted

    check()


def test_one_agent_needs_no_list(data: Data) -> None:
    alone = data.search(agent_id=data.agents[0], embedding_model="minilm")

    assert alone == data.search(agent_id=[data.agents[0]], embedding_model="minilm")
    assert alone == data.search(agent_id=iter([data.agents[0]] * 2), embedding_model="minilm")


def test_one_category_needs_no_list(data: Data) -> None:
    assert data.search(categories="factual", embedding_model="minilm") == data.search(
        categories=["factual"], embedding_model="minilm"
    )
