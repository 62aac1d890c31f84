"""What surrounds the audit: the command, the page of codes, the judgement of versions."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from typer.testing import CliRunner

from ibex_db_core.cli.app import build
from ibex_db_core.doctor import CODES, Finding, Report, Severity
from ibex_db_core.doctor.versions import judge_server
from ibex_db_core.provisioning import Cluster

PAGE = Path(__file__).parents[1] / "docs" / "doctor.md"


@pytest.fixture
def address(ibex_cluster: Cluster, ibex_template: str) -> Iterator[str]:
    """The superuser's address of a migrated database."""
    name = f"ibex_doctor_{uuid4().hex[:12]}"
    asyncio.run(ibex_cluster.create_database(name, template=ibex_template))
    yield ibex_cluster.url(name).render_as_string(hide_password=False)
    asyncio.run(ibex_cluster.drop_database(name))


async def execute(address: str, sql: str) -> None:
    connection = await asyncpg.connect(address)
    await connection.execute(sql)
    await connection.close()


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build(), ["doctor", *words])
    return result.exit_code, result.stdout


def test_every_code_has_a_line_in_the_documentation() -> None:
    lines = re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE)

    assert [(code, Severity(severity)) for code, severity in lines] == list(CODES.items())


@pytest.mark.parametrize(
    ("version", "holes"), [(140020, 1), (150013, 2), (150014, 1), (160014, 0), (170005, 2), (180003, 1), (180004, 0)]
)
def test_a_server_with_known_holes_is_told(version: int, holes: int) -> None:
    assert len(list(judge_server(version))) == holes


def test_the_command_leaves_with_0_on_a_sound_database(address: str) -> None:
    code, told = invoke("--url", address)

    assert code == 0
    assert "Nothing found" in told


def test_the_command_leaves_with_1_and_says_what_mends(address: str) -> None:
    asyncio.run(execute(address, "ALTER TABLE ibex_core.users DISABLE ROW LEVEL SECURITY"))

    code, told = invoke("--url", address)

    assert code == 1
    for words in (
        "critical",
        "rls-disabled",
        "ibex_core.users",
        "ALTER TABLE ibex_core.users ENABLE ROW LEVEL SECURITY;",
    ):
        assert words in told


def test_the_command_tells_machines_the_same(address: str) -> None:
    asyncio.run(execute(address, "ALTER TABLE ibex_core.users DISABLE ROW LEVEL SECURITY"))

    code, told = invoke("--json", "--url", address)

    assert code == 1
    assert json.loads(told) == {
        "findings": [
            {
                "code": "rls-disabled",
                "severity": "critical",
                "object": "ibex_core.users",
                "risk": "policies are not applied: whoever may read the table reads every organization's rows",
                "remedy_sql": "ALTER TABLE ibex_core.users ENABLE ROW LEVEL SECURITY;",
            }
        ]
    }


def test_a_code_can_be_left_out(address: str) -> None:
    asyncio.run(execute(address, "CREATE PUBLICATION feed FOR TABLE ibex_core.users"))

    assert invoke("--url", address)[0] == 1
    assert invoke("--ignore", "publication", "--url", address)[0] == 0
    assert invoke("--ignore", "publikation", "--url", address)[0] == 2


def test_the_gravest_comes_first_and_codes_can_be_left_out() -> None:
    report = Report(
        (Finding("rls-disabled", Severity.CRITICAL, "t", "", ""), Finding("publication", Severity.LOW, "p", "", ""))
    )

    assert [finding.object for finding in report.without(frozenset({"rls-disabled"})).findings] == ["p"]
