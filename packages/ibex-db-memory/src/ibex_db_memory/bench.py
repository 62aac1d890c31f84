"""What the verbs cost on one database, measured on an organization that is gone afterwards.

All verbs are done in turn, round by round, and who begins changes: a busy moment of
the machine falls on all alike.  Compare the ratios; a time alone says little.
"""

import random
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_memory.drafts import MemoryDraft
from ibex_db_memory.models import EMBEDDING_DIMENSIONS, MemoryCategory
from ibex_db_memory.repositories import MemoryRepository
from ibex_db_tenancy.models import Agent, Organization
from ibex_db_tenancy.repositories import AgentRepository, OrganizationRepository

REASON = "ibex-db bench"
EMPTY = "an empty transaction"
"""BEGIN with the tenant, SELECT 1, COMMIT: what every other measure contains."""

# Vectors lie around so many topics, as those of sentences do; without topics, nearest neighbours are far and alike.
_TOPICS, _SPREAD, _NEAR = 40, 0.06, 0.03
_WORDS = (  # noqa: SIM905 - a list of sixty strings would fill a page
    "agent answers asks breakfast budget calendar coffee customer deadline delivery discount door email evening "
    "family flight garden holiday invoice jacket kitchen language lunch meeting morning music office order parcel "
    "passport password phone price project question refund report room schedule school shoes summer table tea ticket "
    "train travel umbrella vegetarian visit weather weekend window winter work"
).split()
_KEPT = 10

Vector = Sequence[float]
Tell = Callable[[str, int, int | None], None]
Verb = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class Measured:
    """What one verb took, whole: with its transaction, from the pool and back.

    Attributes:
        verb: what was done.
        p50_ms: the median, in milliseconds.
        p95_ms: what 95 of 100 rounds do not exceed.
        over_empty: the median over that of an empty transaction.
    """

    verb: str
    p50_ms: float
    p95_ms: float
    over_empty: float


@dataclass(frozen=True)
class Bench:
    """One run.

    Attributes:
        memories: how many the organization had.
        rounds: how often each verb was done.
        rows_per_second: of the remember_many that wrote the memories, into the live vector index.
        recall: share of the ten nearest, by a full scan, that the planned search returned; in [0, 1].
        plan: how the planned search was answered, and why.
        measured: by verb.
    """

    memories: int
    rounds: int
    rows_per_second: float
    recall: float
    plan: str
    measured: Sequence[Measured]


async def measure(
    db: Database, *, memories: int, rounds: int, seed: int = 7, tell: Tell = lambda _what, _done, _of: None
) -> Bench:
    """Fill an organization, do each verb so many times, and erase the organization, whatever happens.

    Args:
        db: open; its login may cross the walls (``db.platform()``).
        memories: to fill it with, 100 or more.
        rounds: of each verb, 1 or more.
        seed: of vectors and words.
        tell: called with what is done, how much of it, of how much.

    Raises:
        IbexError: as the verbs do; the organization is erased all the same.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    topics = [_vector(draw) for _ in range(_TOPICS)]
    async with _organization(db) as (org_id, agent_id):
        began = time.perf_counter()
        async with db.tenant(org_id) as session:
            await MemoryRepository(session).remember_many(
                _drafts(agent_id, memories, topics, draw), progress=lambda done: tell("writing", done, memories)
            )
        wrote = time.perf_counter() - began
        queries = [_near(draw.choice(topics), draw, _NEAR + _SPREAD) for _ in range(rounds)]
        recall, plan = await _recall(db, org_id, agent_id, queries[:20])
        verbs = await _verbs(db, org_id, agent_id, queries, draw)
        times = await _in_turn(verbs, rounds, lambda done: tell("measuring", done, rounds))
    floor = statistics.median(times[EMPTY])
    measured = [_measured(name, times[name], floor) for name in times]
    return Bench(memories, rounds, memories / wrote, recall, plan, measured)


def _measured(verb: str, seconds: Sequence[float], floor: float) -> Measured:
    median = statistics.median(seconds)
    slow = sorted(seconds)[min(len(seconds) - 1, round(0.95 * len(seconds)))]
    return Measured(verb, median * 1000, slow * 1000, median / floor)


@asynccontextmanager
async def _organization(db: Database) -> AsyncGenerator[tuple[UUID, UUID]]:
    """Give an organization with one agent; erased afterwards, which leaves a receipt."""
    org = Organization(name="Benchmark", slug=f"ibex-bench-{uuid4().hex[:12]}")
    async with db.platform(reason=REASON) as platform:
        platform.add(org)
    try:
        async with db.tenant(org.id) as session:
            agent = await AgentRepository(session).add(Agent(name="Benchmark", slug="benchmark"))
        yield org.id, agent.id
    finally:
        async with db.platform(reason=REASON) as platform:
            await OrganizationRepository(platform).erase(org.id, reason=REASON)


async def _verbs(
    db: Database, org_id: UUID, agent_id: UUID, queries: Sequence[Vector], draw: random.Random
) -> Mapping[str, Verb]:
    async with db.tenant(org_id, read_only=True) as session:
        some = [memory.id for memory in (await MemoryRepository(session).list(limit=100)).items]
    questions = [_sentence(draw, 4) for _ in queries]

    async def empty(_number: int) -> None:
        async with db.tenant(org_id) as session:
            await session.execute(text("SELECT 1"))

    async def get(number: int) -> None:
        async with db.tenant(org_id) as session:
            await MemoryRepository(session).get(some[number % len(some)])

    async def remember(number: int) -> None:
        async with db.tenant(org_id) as session:
            await MemoryRepository(session).remember(
                agent_id=agent_id,
                content=f"{_sentence(draw, 10)} {uuid4()}",
                category=MemoryCategory.FACTUAL,
                embedding=queries[number],
            )

    async def by_vector(number: int) -> None:
        async with db.tenant(org_id) as session:
            await MemoryRepository(session).search(agent_id=agent_id, embedding=queries[number], limit=_KEPT)

    async def by_words(number: int) -> None:
        async with db.tenant(org_id) as session:
            await MemoryRepository(session).search(agent_id=agent_id, text=questions[number], limit=_KEPT)

    async def by_both(number: int) -> None:
        async with db.tenant(org_id) as session:
            await MemoryRepository(session).search(
                agent_id=agent_id, embedding=queries[number], text=questions[number], limit=_KEPT
            )

    async def hot(_number: int) -> None:
        async with db.tenant(org_id) as session:
            await MemoryRepository(session).hot(agent_id, limit=_KEPT)

    async def record(number: int) -> None:
        first = number * _KEPT % max(1, len(some) - _KEPT)
        async with db.tenant(org_id) as session:
            await MemoryRepository(session).record_retrieval(some[first : first + _KEPT])

    return {
        EMPTY: empty,
        "get": get,
        "remember": remember,
        "search by vector": by_vector,
        "search by words": by_words,
        "search by both": by_both,
        "hot": hot,
        f"record_retrieval of {_KEPT}": record,
    }


async def _in_turn(verbs: Mapping[str, Verb], rounds: int, step: Callable[[int], None]) -> Mapping[str, list[float]]:
    """Time each verb in each round; the first round comes once before, untimed, and builds every statement."""
    names = list(verbs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            began = time.perf_counter()
            await verbs[name](max(number, 0))
            if number >= 0:
                times[name].append(time.perf_counter() - began)
        step(number + 1)
    return times


async def _recall(db: Database, org_id: UUID, agent_id: UUID, queries: Sequence[Vector]) -> tuple[float, str]:
    shares: list[float] = []
    plan = ""
    async with db.tenant(org_id, read_only=True) as session:
        memories = MemoryRepository(session)
        for query in queries:
            planned = await memories.search(agent_id=agent_id, embedding=query, limit=_KEPT)
            exact = await memories.search(agent_id=agent_id, embedding=query, limit=_KEPT, exact=True)
            true = {hit.memory.id for hit in exact}
            shares.append(len(true & {hit.memory.id for hit in planned}) / len(true))
            plan = f"{'full scan' if planned.plan.exact else 'vector index'}: {planned.plan.reason}"
    return statistics.fmean(shares), plan


def _drafts(agent_id: UUID, count: int, topics: Sequence[Vector], draw: random.Random) -> Iterator[MemoryDraft]:
    for number in range(count):
        yield MemoryDraft(
            agent_id=agent_id,
            content=f"{_sentence(draw, 10)} {number}",
            category=MemoryCategory.FACTUAL,
            embedding=_near(topics[number % len(topics)], draw, _SPREAD),
        )


def _sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(_WORDS, k=words))


def _vector(draw: random.Random) -> Vector:
    numbers = [draw.gauss(0.0, 1.0) for _ in range(EMBEDDING_DIMENSIONS)]
    length = sum(number * number for number in numbers) ** 0.5
    return [number / length for number in numbers]


def _near(middle: Vector, draw: random.Random, spread: float) -> Vector:
    return [number + draw.gauss(0.0, spread) for number in middle]
