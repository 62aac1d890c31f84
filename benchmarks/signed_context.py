"""What signed tenants cost: the same units of work on databases that are alike, without signing and with it.

    uv run python benchmarks/signed_context.py [--rounds 400] [--memories 2000] [--verbs get,search] [--url SERVER]

Three services take turns, in an order that is drawn anew for each round, so
that whatever else the machine does falls on all of them alike:

- ``unsigned``: no key, signing off: what everybody has by default;
- ``keyed``: the service signs, the database does not ask: what the client's half costs;
- ``signed``: the database asks.

Each round is one whole unit of work, BEGIN to COMMIT: ``async with
db.tenant(org): ...`` with one verb in it.  Printed for each verb: the medians,
and the median of the rounds' own ratios with its 95 % interval (bootstrap).
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import numpy as np

from ibex_db import Agent, AgentRepository, Database, EngineSettings, MemoryRepository, Organization
from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import Cluster
from ibex_db_core.signing import SigningKey

ARMS = ("unsigned", "keyed", "signed")
NAMES = {arm: f"signed_context_{arm}" for arm in ARMS}
WORDS = [
    "tea",
    "coffee",
    "morning",
    "train",
    "window",
    "garden",
    "letter",
    "river",
    "lamp",
    "stone",
    "winter",
    "bread",
    "music",
    "paper",
    "road",
]

Work = Callable[[MemoryRepository, int], Awaitable[object]]


class Corpus:
    """One organization's memories, and the questions that are asked of them."""

    def __init__(self, rows: int) -> None:
        drawn = np.random.default_rng(1)
        self.vectors = [list(map(float, row)) for row in drawn.standard_normal((rows, 384)).astype("float32")]
        chosen = random.Random(1)
        self.texts = [f"{number} {' '.join(chosen.choices(WORDS, k=9))}" for number in range(rows)]
        self.org_id = self.agent_id = UUID(int=0)
        self.ids: list[UUID] = []

    async def load(self, db: Database) -> None:
        """Write them."""
        async with db.platform(reason="benchmark: set-up") as session:
            organization = Organization(name="Acme", slug="acme")
            session.add(organization)
        self.org_id = organization.id
        async with db.tenant(self.org_id) as session:
            self.agent_id = (await AgentRepository(session).add(Agent(name="Robin", slug="robin"))).id
            done = await MemoryRepository(session).remember_many(
                [
                    {"agent_id": self.agent_id, "content": text, "category": "factual", "embedding": vector}
                    for text, vector in zip(self.texts, self.vectors, strict=True)
                ]
            )
            self.ids = [one.id for one in done.outcomes]

    def verbs(self) -> dict[str, Work]:
        """Return what a round does."""

        async def get(memories: MemoryRepository, turn: int) -> object:
            return await memories.get(self.ids[turn % len(self.ids)])

        async def remember(memories: MemoryRepository, turn: int) -> object:
            return await memories.remember(
                agent_id=self.agent_id,
                content=f"{uuid4()} {self.texts[turn % len(self.texts)]}",
                category="factual",
                embedding=self.vectors[turn % len(self.vectors)],
            )

        async def remember_many(memories: MemoryRepository, turn: int) -> object:
            return await memories.remember_many(
                [
                    {
                        "agent_id": self.agent_id,
                        "content": f"{uuid4()} {self.texts[(turn + at) % len(self.texts)]}",
                        "category": "factual",
                    }
                    for at in range(100)
                ]
            )

        async def search(memories: MemoryRepository, turn: int) -> object:
            vector = self.vectors[turn * 7 % len(self.vectors)]
            return await memories.search(agent_id=self.agent_id, embedding=vector, limit=10)

        async def hybrid(memories: MemoryRepository, turn: int) -> object:
            vector, words = self.vectors[turn * 7 % len(self.vectors)], WORDS[turn % len(WORDS)]
            return await memories.search(agent_id=self.agent_id, text=f"{words} letter", embedding=vector, limit=10)

        return {"get": get, "search": search, "hybrid": hybrid, "remember": remember, "remember_many": remember_many}


async def timed(db: Database, corpus: Corpus, work: Work, turn: int) -> float:
    """Return the milliseconds of one unit of work."""
    started = time.perf_counter()
    async with db.tenant(corpus.org_id) as session:
        await work(MemoryRepository(session), turn)
    return (time.perf_counter() - started) * 1000


async def compare(services: dict[str, Database], corpus: Corpus, work: Work, rounds: int) -> dict[str, list[float]]:
    """Run one verb in every service, in turn."""
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn in range(rounds):
        for arm in random.sample(ARMS, len(ARMS)):
            times[arm].append(await timed(services[arm], corpus, work, turn))
    warm = rounds // 10
    return {arm: found[warm:] for arm, found in times.items()}


def ratio(times: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of the rounds' ratios, and its 95 % interval."""
    ratios = [one / other for one, other in zip(times, base, strict=True)]
    drawn = random.Random(1)
    middles = sorted(statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(1000))
    return statistics.median(ratios), middles[25], middles[974]


@asynccontextmanager
async def twins(cluster: Cluster, corpus: Corpus) -> AsyncGenerator[dict[str, Database]]:
    """Make three databases that are alike, and a service for each."""
    key = SigningKey.new()
    one = EngineSettings(pool_size=1, max_overflow=0)
    await cluster.create_logins()
    first, *others = NAMES.values()
    for name in (first, *others):
        await cluster.drop_database(name)
    await cluster.create_database(first)
    async with cluster.database(first) as db:
        await db.upgrade()
        await corpus.load(db)
    # The same statistics for all, or the plans differ for reasons that are not signing.
    owner = await asyncpg.connect(cluster.url(first).render_as_string(hide_password=False))
    await owner.execute("VACUUM (ANALYZE)")
    await owner.close()
    for name in others:
        await cluster.create_database(name, template=first)
    async with (
        cluster.database(NAMES["unsigned"], settings=one) as unsigned,
        cluster.database(NAMES["keyed"], settings=one, signing_key=key) as keyed,
        cluster.database(NAMES["signed"], settings=one, signing_key=key) as signed,
    ):
        async with signed.migrator() as migrator:
            await migrator.sign(key)
        yield {"unsigned": unsigned, "keyed": keyed, "signed": signed}
    for name in (first, *others):
        await cluster.drop_database(name)


async def measure(
    cluster: Cluster, *, rounds: int, memories: int, verbs: Sequence[str]
) -> dict[str, dict[str, object]]:
    """Return, for each verb, the medians in milliseconds and the ratios to unsigned."""
    corpus = Corpus(memories)
    found: dict[str, dict[str, object]] = {}
    async with twins(cluster, corpus) as services:
        for verb, work in corpus.verbs().items():
            if verbs and verb not in verbs:
                continue
            # A batch is forty times as long as a get, and grows the tables.
            times = await compare(services, corpus, work, rounds if verb != "remember_many" else rounds // 4)
            found[verb] = {
                "milliseconds": {arm: round(statistics.median(times[arm]), 3) for arm in ARMS},
                **{arm: [round(part, 3) for part in ratio(times[arm], times["unsigned"])] for arm in ARMS[1:]},
            }
    return found


def main() -> None:
    """Measure, and print a table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--memories", type=int, default=2000)
    parser.add_argument("--verbs", default="", help="only these: get, search, hybrid, remember, remember_many")
    parser.add_argument("--url", help="a server, as its superuser; else an embedded, throwaway one")
    asked = parser.parse_args()

    def run(cluster: Cluster) -> dict[str, dict[str, object]]:
        verbs = [verb for verb in str(asked.verbs).split(",") if verb]
        return asyncio.run(measure(cluster, rounds=asked.rounds, memories=asked.memories, verbs=verbs))

    if asked.url:
        found = run(Cluster.at(asked.url))
    else:
        with EmbeddedPostgres.throwaway() as server:
            found = run(Cluster.of(server))
    for verb, facts in found.items():
        print(f"{verb:14}", facts["milliseconds"], *(f"{arm} {facts[arm]}" for arm in ARMS[1:]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
