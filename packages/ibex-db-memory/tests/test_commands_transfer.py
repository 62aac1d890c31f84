"""`ibex-db export`, `import` and `import-from`, as a person and as a machine run them."""

import asyncio
import json
import os
import re
import stat
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from homes import Home
from sources import elsewhere
from typer.testing import CliRunner, Result

from ibex_db_core.cli.app import build
from ibex_db_core.database import Database
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN, Cluster
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import MemoryRepository
from ibex_db_tenancy import Organization


async def command(*words: str) -> Result:
    """Run a command in a thread, for it runs an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, build(), words)


async def answer(*words: str) -> Any:
    found = await command(*words, "--json")
    return json.loads(found.stdout)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, ibex_test_database: TestDatabase) -> None:
    """Have the commands find the test's database as they find a service's."""
    for name in [name for name in os.environ if name.startswith("IBEX_") or name in {"FORCE_COLOR", "TTY_COMPATIBLE"}]:
        monkeypatch.delenv(name)
    cluster, name = ibex_test_database.cluster, ibex_test_database.name
    for variable, login in (("IBEX_DATABASE_URL", SERVICE_LOGIN), ("IBEX_PLATFORM_URL", PLATFORM_LOGIN)):
        monkeypatch.setenv(variable, cluster.url(name, user=login).render_as_string(hide_password=False))


@pytest.fixture
async def ident(ibex_db: Database, home: Home) -> UUID:
    async with ibex_db.tenant(home.org_id) as session:
        kept = await MemoryRepository(session).remember(
            agent_id=home.agent_id, content="Likes tea.", category="factual", embedding=[1.0] * 384
        )
    return kept.memory.id


async def slug_of(database: Database, org_id: UUID) -> str:
    async with database.platform(reason="test") as session:
        return (await session.get_one(Organization, org_id)).slug


async def test_a_file_goes_out_and_comes_in_elsewhere(
    ibex_db: Database, home: Home, other_home: Home, ident: UUID, tmp_path: Path
) -> None:
    file = tmp_path / "acme.jsonl"

    out = await answer("export", "--org", str(home.org_id), "--output", str(file))
    come = await answer("import", str(file), "--org", await slug_of(ibex_db, other_home.org_id))
    again = await command("import", str(file), "--org", str(other_home.org_id))

    assert (out["file"], out["memories"], out["bytes"]) == (str(file), 1, file.stat().st_size)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["acme.jsonl"]  # noqa: PTH208 - the other way is for synchronous code
    assert (come["created"], come["known"]) == (1, 0)
    assert again.exit_code == 0
    assert re.search(r"known\s+1", again.stdout)
    async with ibex_db.tenant(other_home.org_id) as session:
        (memory,) = await MemoryRepository(session).find()
    assert (memory.content, memory.agent_id) == ("Likes tea.", other_home.agent_id)
    assert memory.id != ident


@pytest.mark.usefixtures("ident")
async def test_agents_are_mapped_and_chosen(
    ibex_db: Database, home: Home, other_home: Home, other_agent_id: UUID, tmp_path: Path
) -> None:
    file, none = tmp_path / "a.jsonl", tmp_path / "none.jsonl"
    org, other = str(home.org_id), str(other_home.org_id)

    await answer(
        "export", "--org", org, "-o", str(file), "--agent", "support", "--without-deleted", "--without-versions"
    )
    empty = await answer("export", "--org", org, "-o", str(none), "--agent", str(other_agent_id))
    moved = await answer("import", str(file), "--org", org, "--agent", "support=sales")
    unknown = await command("import", str(file), "--org", other, "--agent", "support=sales")
    bad = await command("import", str(file), "--org", other, "--agent", "support")

    assert (empty["memories"], moved["created"]) == (0, 1)
    assert (unknown.exit_code, bad.exit_code) == (3, 2)
    assert "is no agent of this organization" in unknown.stderr or "must be a UUID" in unknown.stderr
    async with ibex_db.tenant(home.org_id) as session:
        owners = {memory.agent_id for memory in await MemoryRepository(session).find()}
    assert owners == {home.agent_id, other_agent_id}


async def test_what_was_erased_is_refused_unless_asked_for(
    ibex_db: Database, home: Home, ident: UUID, tmp_path: Path
) -> None:
    file, org = tmp_path / "a.jsonl", str(home.org_id)
    await answer("export", "--org", org, "--output", str(file))
    async with ibex_db.tenant(home.org_id) as session:
        await MemoryRepository(session).erase(ident)

    assert (await answer("import", str(file), "--org", org))["erased"] == 1
    assert (await answer("import", str(file), "--org", org, "--include-erased"))["created"] == 1


async def test_a_file_that_is_there_is_kept_and_a_damaged_one_refused(home: Home, ident: UUID, tmp_path: Path) -> None:
    file, org = tmp_path / "a.jsonl", str(home.org_id)
    file.write_text("mine")

    kept = await command("export", "--org", org, "--output", str(file))
    assert (kept.exit_code, file.read_text()) == (2, "mine")
    damaged = await command("import", str(file), "--org", org)
    assert damaged.exit_code == 3
    assert "no export of ibex-db" in damaged.stderr
    replaced = await command("export", "--org", org, "--output", str(file), "--force")
    assert replaced.exit_code == 0
    assert str(ident) in file.read_text()


@pytest.mark.parametrize("org", ["nobody", "00000000-0000-0000-0000-000000000007"])
@pytest.mark.usefixtures("ident")
async def test_an_organization_that_is_not_there(home: Home, tmp_path: Path, org: str) -> None:
    file = tmp_path / "a.jsonl"
    await answer("export", "--org", str(home.org_id), "--output", str(file))

    found = await command("import", str(file), "--org", org)

    assert found.exit_code == 3


async def test_tables_of_other_libraries_come_in(ibex_cluster: Cluster, home: Home, ibex_db: Database) -> None:
    org = str(home.org_id)
    async with elsewhere(ibex_cluster, tables="mem0") as mem0, elsewhere(ibex_cluster, tables="langgraph") as langgraph:
        await mem0.connection.execute(
            """INSERT INTO mem0 VALUES (gen_random_uuid(), NULL, '{"data": "Likes tea.", "agent_id": "bot"}'),
               (gen_random_uuid(), NULL, '{"data": "Likes milk."}')"""
        )
        await langgraph.connection.execute(
            """INSERT INTO store (prefix, key, value) VALUES ('m.ada', 'k', '{"text": "Likes tea."}')"""
        )

        refused = await command("import-from", "mem0", mem0.dsn, "--org", org, "--agent", "bot=support")
        one = await answer(
            "import-from", "mem0", mem0.dsn, "--org", org, "--agent", "bot=support", "--other-agent", str(home.agent_id)
        )
        two = await answer("import-from", "langgraph", langgraph.dsn, "--org", org, "--agent", "m=support")
        nobody = await command("import-from", "langgraph", langgraph.dsn, "--org", org, "--agent", "m=nobody")

    assert (refused.exit_code, nobody.exit_code) == (3, 3)
    assert (one["created"], two["created"], two["duplicates"]) == (2, 0, 1)
    async with ibex_db.tenant(home.org_id) as session:
        assert await MemoryRepository(session).count() == 2
