"""`ibex-db bench`: what it tells, and that nothing but a receipt is left of it."""

import asyncio
import json
import os

import pytest
from homes import Home
from typer.testing import CliRunner

from ibex_db_core.cli.app import build
from ibex_db_core.database import Database
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import MemoryRepository
from ibex_db_memory.bench import EMPTY, REASON, measure
from ibex_db_tenancy import OrganizationRepository


async def left(db: Database) -> tuple[int, int, list[str | None]]:
    """Return how many organizations there are, how many were erased, and why."""
    async with db.platform(reason="test") as platform:
        organizations = OrganizationRepository(platform)
        receipts = await organizations.erasures()
        return await organizations.count(include_deleted=True), len(receipts), [kept.reason for kept in receipts]


async def test_every_verb_is_measured_and_the_organization_is_erased(ibex_db: Database, home: Home) -> None:
    found = await measure(ibex_db, memories=100, rounds=2)

    assert found.recall == 1.0  # so few are scanned
    assert found.plan.startswith("full scan")
    assert found.measured[0].verb == EMPTY
    assert found.measured[0].over_empty == 1.0
    assert all(0 < verb.p50_ms <= verb.p95_ms for verb in found.measured)
    assert await left(ibex_db) == (1, 1, [REASON])
    async with ibex_db.tenant(home.org_id) as session:
        assert await MemoryRepository(session).count() == 0


async def test_where_it_breaks_off_the_organization_is_erased_too(ibex_db: Database) -> None:
    def tell(what: str, _done: int, _of: int | None) -> None:
        if what == "measuring":
            raise KeyError(what)

    with pytest.raises(KeyError, match="measuring"):
        await measure(ibex_db, memories=100, rounds=2, tell=tell)

    assert await left(ibex_db) == (0, 1, [REASON])


@pytest.mark.usefixtures("ibex_db")
async def test_the_command_says_it_to_people_and_to_machines(
    monkeypatch: pytest.MonkeyPatch, ibex_test_database: TestDatabase
) -> None:
    for name in [name for name in os.environ if name.startswith("IBEX_")]:
        monkeypatch.delenv(name)
    cluster, name = ibex_test_database.cluster, ibex_test_database.name
    for variable, login in (("IBEX_DATABASE_URL", SERVICE_LOGIN), ("IBEX_PLATFORM_URL", PLATFORM_LOGIN)):
        monkeypatch.setenv(variable, cluster.url(name, user=login).render_as_string(hide_password=False))

    words = ("bench", "--memories", "100", "--rounds", "10")
    said = await asyncio.to_thread(CliRunner().invoke, build(), words)
    facts = json.loads((await asyncio.to_thread(CliRunner().invoke, build(), (*words, "--json"))).stdout)

    assert said.exit_code == 0
    assert "recall@10 1.000" in said.stdout
    assert "search by both" in said.stdout
    assert "cross-tenant" not in said.stderr
    assert (facts["memories"], facts["rounds"], facts["recall"]) == (100, 10, 1.0)
    assert {"verb", "p50_ms", "p95_ms", "over_empty"} == set(facts["measured"][0])
    assert name in facts["where"]
