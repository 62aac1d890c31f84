"""Tools that other people wrote look at the migrated database and at the migrations' SQL: `nox -s judges`.

pgrls lints the row-level security, and compares it with the snapshot beside this file; squawk reads the migrations.
A change that is meant: IBEX_UPDATE_SNAPSHOT=1 nox -s judges, and the snapshot's diff is read in review.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from ibex_db_core.cli.app import build
from ibex_db_core.provisioning import Cluster
from ibex_db_core.testing import TestDatabase

HERE = Path(__file__).parent
SNAPSHOT = HERE / "snapshot.json"

# What squawk says of single statements, and why it may stay: a rule is not switched off for their sake.
EXCEPTIONS = {
    (
        "ban-drop-generated-expression",
        "ALTER TABLE ibex_core.memories ALTER COLUMN search_vector DROP EXPRESSION;",
    ): "The same revision makes a trigger that fills the column in with the same words, so readers see no difference.",
    (
        "require-concurrent-index-creation",
        "CREATE INDEX memories_search_vector_idx ON ibex_core.memories USING gin (search_vector) WITH (fastupdate = off);",  # noqa: E501 - as it stands in the script
    ): "memories is partitioned, and Postgres builds no index of a partitioned table concurrently.",
    (
        "require-concurrent-index-deletion",
        "DROP INDEX IF EXISTS ibex_core.memories_search_vector_idx;",
    ): "Postgres drops no index of a partitioned table concurrently; to drop takes a moment.",
    (
        "ban-drop-constraint",
        "ALTER TABLE ibex_core.embedding_spaces DROP CONSTRAINT embedding_spaces_space_status_known;",
    ): "The same revision puts it back, with one status more.",
    (
        "constraint-missing-not-valid",
        "ALTER TABLE ibex_core.embedding_spaces VALIDATE CONSTRAINT embedding_spaces_space_status_known;",
    ): "At most two rows an organization, and none of those that never moved: it is read in a moment.",
}

# What `migrations.online` builds and drops: the script is for an empty database.  A live one has it done concurrently,
# each partition by itself: test_live_migrations.py and test_live_upgrade.py see to that.
_BUILT = (
    "memories_words_idx ON ibex_core.memories USING gin (ibex_core.memories_word_keys(org_id, search_vector)) WITH (fastupdate = off)",  # noqa: E501 - as it stands in the script
    "memories_created_at_idx ON ibex_core.memories (org_id, created_at, id)",
    "memories_by_agent_idx ON ibex_core.memories (org_id, agent_id) WHERE agent_id IS NOT NULL",
    "memories_newest_idx ON ibex_core.memories (org_id, created_at, id) WHERE created_at >= '-infinity'",
    "sessions_by_agent_idx ON ibex_core.sessions (org_id, agent_id) WHERE agent_id IS NOT NULL",
    "memory_tags_by_tag_idx ON ibex_core.memory_tags (org_id, tag) WHERE tag IS NOT NULL",
    "memory_relationships_by_target_idx ON ibex_core.memory_relationships (org_id, target_memory_id, relationship_type) WHERE target_memory_id IS NOT NULL",  # noqa: E501 - as it stands in the script
)
_DROPPED = (
    "memories_agent_id_idx",
    "memories_created_at_idx",
    "sessions_agent_id_idx",
    "memory_tags_tag_idx",
    "memory_relationships_target_idx",
)
_ONLINE = [
    *(("require-concurrent-index-creation", f"CREATE INDEX {index};") for index in _BUILT),
    *(("require-concurrent-index-deletion", f"DROP INDEX IF EXISTS ibex_core.{index};") for index in _DROPPED),
]


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")
    if found is None:
        pytest.skip(f"{name} is not installed: nox -s judges brings it")
    return found


def _run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - a program that pyproject.toml names
        [_program(program), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def address(ibex_test_database: TestDatabase, ibex_cluster: Cluster) -> str:
    """The migrated database, for libpq."""
    return ibex_cluster.url(ibex_test_database.name).render_as_string(hide_password=False)


def _snapshot(address: str, file: Path) -> None:
    """Write what pgrls sees, but for the server's own roles and what no policy depends on.

    Columns, indexes and foreign keys are the models' matter, and `ibex-db check` compares them.
    """
    config = HERE / "pgrls.toml"
    done = _run("pgrls", "snapshot", "--config", config, "--database-url", address, "--output", file)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(file.read_text())
    for table in seen["tables"]:
        table.update(column_details=[], indexes=[], foreign_keys=[])
    seen["roles"] = [role for role in seen["roles"] if role["name"] in _ROLES]
    seen.update(role_memberships=[], bypassrls_roles=[])
    file.write_text(json.dumps(seen, indent=1) + "\n")


_ROLES = {"ibex_owner", "ibex_app", "ibex_platform", "ibex_search"}


async def test_pgrls_finds_nothing_but_what_is_listed_with_its_reason(address: str) -> None:
    done = _run("pgrls", "lint", "--config", HERE / "pgrls.toml", "--database-url", address)

    assert done.returncode == 0, done.stdout + done.stderr


async def test_pgrls_sees_the_same_walls_as_when_they_were_last_approved(address: str, tmp_path: Path) -> None:
    _snapshot(address, tmp_path / "now.json")
    if "IBEX_UPDATE_SNAPSHOT" in os.environ:
        shutil.copy(tmp_path / "now.json", SNAPSHOT)

    done = _run("pgrls", "diff", "--fail-on", "safe", SNAPSHOT, tmp_path / "now.json")

    assert done.returncode == 0, done.stdout + done.stderr


async def test_pgrls_would_find_a_policy_that_opens_a_table(address: str, tmp_path: Path) -> None:
    """A judge that finds nothing is worth what it finds when there is something."""
    await _break(address, "CREATE POLICY open ON ibex_core.users FOR SELECT TO ibex_app USING (true)")

    lint = _run("pgrls", "lint", "--config", HERE / "pgrls.toml", "--database-url", address)
    _snapshot(address, tmp_path / "now.json")
    diff = _run("pgrls", "diff", "--fail-on", "safe", SNAPSHOT, tmp_path / "now.json")

    assert (lint.returncode, diff.returncode) == (1, 1)
    assert "ibex_core.users.open" in lint.stdout
    assert "ibex_core.users.open" in diff.stdout


async def test_pgrls_would_find_a_view_that_reads_with_its_owners_rights(address: str) -> None:
    """The diff is silent about a view that is new; the lint is not."""
    await _break(address, "CREATE VIEW ibex_core.everybody AS SELECT * FROM ibex_core.users")

    lint = _run("pgrls", "lint", "--config", HERE / "pgrls.toml", "--database-url", address)

    assert lint.returncode == 1
    assert "ibex_core.everybody" in lint.stdout


async def _break(address: str, sql: str) -> None:
    connection = await asyncpg.connect(address)
    await connection.execute(sql)
    await connection.close()


def _judged(sql: str, file: Path) -> Sequence[tuple[str, str]]:
    """Return each of squawk's findings: the rule, and the first line of the statement."""
    file.write_text(sql)
    done = _run("squawk", "--config", HERE / "squawk.toml", "--reporter", "json", file)
    lines = sql.splitlines()
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    return [(str(found["rule_name"]), lines[int(found["line"])].strip()) for found in findings]


def test_squawk_finds_nothing_in_the_migrations_but_what_is_listed_with_its_reason(tmp_path: Path) -> None:
    sql = CliRunner().invoke(build(), ["upgrade", "--sql"])
    assert sql.exit_code == 0

    assert sorted(_judged(sql.stdout, tmp_path / "upgrade.sql")) == sorted([*EXCEPTIONS, *_ONLINE])


def test_squawk_would_find_a_migration_that_stops_a_live_service(tmp_path: Path) -> None:
    sql = "ALTER TABLE ibex_core.users ADD COLUMN phone text NOT NULL;\nCREATE INDEX slow ON ibex_core.users (phone);\n"

    rules = {rule for rule, _ in _judged(sql, tmp_path / "stops.sql")}

    assert rules >= {"adding-required-field", "require-concurrent-index-creation"}
