"""Whatever a memory holds, it comes back from a file as it went."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from ibex_db_core.database import Database
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import MemoryRepository, content_hash
from ibex_db_memory.models import MemoryCategory, MemorySource, MemoryStatus, RelationshipType

TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
CONTENTS = TEXTS.filter(lambda text: bool(text.strip()) and any(not c.isspace() for c in text))
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
UNITS = st.integers(0, 1000).map(lambda n: Decimal(n) / 1000)
NUMBERS = st.integers(-(10**40), 10**40) | st.decimals(allow_nan=False, allow_infinity=False, places=30).map(str).map(
    Decimal
)
JSON = st.recursive(
    st.none() | st.booleans() | TEXTS | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FLOATS = st.lists(
    st.floats(-1e4, 1e4, width=32), min_size=384, max_size=384
).filter(lambda numbers: max(map(abs, numbers)) > 1e-3)  # fmt: skip
COUNTS = st.integers(0, 2**31 - 1)
ROWS = st.fixed_dictionaries(
    {
        "content": CONTENTS,
        "category": st.sampled_from(MemoryCategory),
        "source": st.sampled_from(MemorySource),
        "status": st.sampled_from(MemoryStatus),
        "confidence": UNITS,
        "usefulness_score": UNITS,
        "retrieval_count": COUNTS,
        "positive_feedback": COUNTS,
        "negative_feedback": COUNTS,
        "metadata": st.dictionaries(TEXTS, JSON, max_size=3),
        "embedding": st.none() | FLOATS,
        "embedding_model": st.none() | CONTENTS,
        **{name: st.none() | MOMENTS for name in ("last_retrieved_at", "last_injected_at", "expires_at", "deleted_at")},
        **dict.fromkeys(("valid_from", "created_at", "updated_at"), MOMENTS),
    }
)
TAGS = st.lists(st.text("abcxyzé", min_size=1, max_size=8), unique=True, max_size=3)
EDGES = st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(RelationshipType), UNITS, st.none() | TEXTS)


class Place:
    """A database in an event loop of its own, which hypothesis can come back to."""

    def __init__(self, test: TestDatabase) -> None:
        self.loop = asyncio.new_event_loop()
        self.database = test.connect()
        url = test.cluster.url(test.name).render_as_string(hide_password=False)
        self.owner: asyncpg.Connection = self.loop.run_until_complete(asyncpg.connect(url))

    def close(self) -> None:
        self.loop.run_until_complete(self.owner.close())
        self.loop.run_until_complete(self.database.close())
        self.loop.close()


@pytest.fixture
def place(ibex_test_database: TestDatabase) -> Iterator[Place]:
    found = Place(ibex_test_database)
    yield found
    found.close()


@dataclass(frozen=True)
class Past:
    """What an organization's memories have been through.

    Attributes:
        edges, pointers: with positions in rows, which wrap around.
    """

    rows: list[dict[str, Any]]
    tags: list[str]
    edges: list[tuple[int, int, RelationshipType, Decimal, str | None]]
    pointers: list[tuple[int, int, bool]]


PASTS = st.builds(
    Past,
    rows=st.lists(ROWS, min_size=1, max_size=6, unique_by=lambda row: content_hash(row["content"])),
    tags=TAGS,
    edges=st.lists(EDGES, max_size=4, unique_by=lambda edge: edge[:3]),
    pointers=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=4),
)


@given(past=PASTS, batch_size=st.integers(1, 7))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_out_and_in_and_out_is_the_same_file(place: Place, past: Past, batch_size: int) -> None:
    place.loop.run_until_complete(_round_trip(place, past, batch_size))


async def _round_trip(place: Place, past: Past, batch_size: int) -> None:
    org, agent = uuid4(), uuid4()
    await _settle(place.owner, org, agent)
    ids = [await _insert(place.owner, org, agent, row) for row in past.rows]
    await place.owner.execute(
        "INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag) SELECT $1, $2, unnest($3::text[])",
        org,
        ids[0],
        past.tags,
    )
    for source, target, kind, confidence, notes in past.edges:
        if source % len(ids) != target % len(ids):
            await place.owner.execute(
                "INSERT INTO ibex_core.memory_relationships (org_id, source_memory_id, target_memory_id,"
                " relationship_type, confidence, notes) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
                *(org, ids[source % len(ids)], ids[target % len(ids)], kind.value, confidence, notes),
            )
    # From a later one to an earlier one: no circle, for what is mended in a circle is touched.
    for one, other, merged in past.pointers:
        early, late = sorted((one % len(ids), other % len(ids)))
        if early != late:
            await place.owner.execute(
                f"UPDATE ibex_core.memories SET {'merged_into' if merged else 'superseded_by'} = $3,"
                " confidence = 1 - confidence WHERE org_id = $1 AND id = $2",
                *(org, ids[late], ids[early]),
            )

    first = await _exported(place.database, org)
    await place.owner.execute("DELETE FROM ibex_core.organizations WHERE id = $1", org)
    await _settle(place.owner, org, agent)
    async with place.database.tenant(org) as session:
        done = await MemoryRepository(session).import_(first, batch_size=batch_size)
    again = await _exported(place.database, org)

    assert (done.created, done.dropped_links, done.dropped_sessions) == (len(past.rows), 0, 0)
    assert again[1:-1] == first[1:-1]
    assert json.loads(again[-1])["counts"] == json.loads(first[-1])["counts"]


async def _settle(owner: asyncpg.Connection, org: UUID, agent: UUID) -> None:
    await owner.execute("INSERT INTO ibex_core.organizations (id, name, slug) VALUES ($1, 'A', $2)", org, str(org))
    await owner.execute("INSERT INTO ibex_core.agents (org_id, id, name, slug) VALUES ($1, $2, 'A', 'a')", org, agent)


async def _exported(database: Database, org: UUID) -> list[bytes]:
    async with database.tenant(org) as session:
        return [line async for line in MemoryRepository(session).export()]


def _as_json(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return "{" + ",".join(f"{json.dumps(key)}:{_as_json(item)}" for key, item in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_as_json, cast("list[object]", value))) + "]"
    return json.dumps(value)


async def _insert(owner: asyncpg.Connection, org: UUID, agent: UUID, row: dict[str, Any]) -> UUID:
    """By the superuser in plain SQL: what the library would not write itself must survive as well."""
    embedding = row["embedding"]
    values: dict[str, Any] = {
        **row,
        "org_id": org,
        "agent_id": agent,
        "id": uuid4(),
        "content_hash": content_hash(row["content"]),
        "metadata": _as_json(row["metadata"]),
        "embedding": None if embedding is None else str(list(map(repr, embedding))).replace("'", ""),
    }
    kinds = {"metadata": "::jsonb", "embedding": "::text::vector"}
    places = ", ".join(f"${at}{kinds.get(name, '')}" for at, name in enumerate(values, 1))
    plain = [value.value if isinstance(value, StrEnum) else value for value in values.values()]
    await owner.execute(f"INSERT INTO ibex_core.memories ({', '.join(values)}) VALUES ({places})", *plain)
    return cast("UUID", values["id"])
