"""docs/operations/telemetry.md says what is so: its output is the example's, its tables are what is told."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from listening import Ear

from ibex_db import Agent, AgentRepository, Database, MemoryRepository, NotFoundError, Organization, Telemetry
from ibex_db_core.telemetry.instruments import METRICS
from ibex_db_core.testing import TestDatabase

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "operations" / "telemetry.md").read_text()
NAMED = set(re.findall(r"`((?:db|ibex|error|server)\.[a-z_.]+)`", PAGE))


def test_the_example_prints_what_the_page_shows() -> None:
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, str(ROOT / "examples" / "telemetry.py")], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout in re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_names_every_metric() -> None:
    assert METRICS.keys() - NAMED == set()


async def test_the_page_names_every_attribute_of_a_days_work(ibex_test_database: TestDatabase) -> None:
    ear = Ear()
    telemetry = Telemetry(tracer_provider=ear.tracers, meter_provider=ear.meters)
    async with ibex_test_database.connect(telemetry=telemetry) as db:
        await work(db)

    spans = {name for span in ear.spans for name in span.attributes or {}}
    events = {name for span in ear.spans for event in span.events for name in event.attributes or {}}
    labels = {name for metric in METRICS for point in ear.points(metric) for name in point.labels}
    assert len(spans) > 15
    assert (spans | events | labels) - NAMED == set()


async def work(db: Database) -> None:
    async with db.platform(reason="sign-up") as session:
        org = Organization(name="Acme", slug="acme")
        session.add(org)
    async with db.tenant(org.id) as session:
        agent = await AgentRepository(session).add(Agent(name="Support", slug="support"))
        memories = MemoryRepository(session)
        vector = [1.0] + [0.0] * 383
        for _ in range(2):
            await memories.remember(
                agent_id=agent.id, content="Has a cat.", category="factual", embedding=vector,
                near_duplicate_threshold=0.5,
            )  # fmt: skip
        await memories.remember_many([{"agent_id": agent.id, "content": "Has a dog.", "category": "factual"}])
        await memories.search(text="cat", embedding=vector)
        await memories.search(embedding=vector)
        with pytest.raises(NotFoundError):
            await memories.get(agent.id)
    await db.run(org.id, lambda inner: MemoryRepository(inner).count())
