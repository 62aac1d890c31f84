"""The fixtures, in runs of pytest as a service has them: pytest-asyncio in both modes, anyio, xdist."""

import os
import re
from pathlib import Path
from textwrap import dedent

import pytest
from quick import parametrize

from ibex_db_core.provisioning import Cluster
from ibex_db_core.testing import URL_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "how-to" / "test-a-service.md"
EXAMPLE = ROOT / "examples" / "fastapi_service.py"

pytest_plugins = ["pytester"]

ASYNCIO = "import pytest\npytestmark = pytest.mark.asyncio\n"
ANYIO = """
import pytest
pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""
# pytest-asyncio warns where this is not set.
SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")
AUTO = (*SCOPE, "-o", "asyncio_mode=auto")
STRICT = (*SCOPE, "-o", "asyncio_mode=strict")
LOOPS = {
    "asyncio, auto": ("", AUTO),
    "asyncio, strict": (ASYNCIO, STRICT),
    "anyio, beside asyncio": (ANYIO, STRICT),
    "anyio, alone": (ANYIO, ("-p", "no:asyncio")),
}
_QUICK = {"asyncio, auto", "anyio, alone"}
SERVICE = """
from ibex_db import AgentRepository, MemoryRepository, OrganizationRepository, TokenKind, UserRole

NAMES = set()

async def test_a_tenant_has_a_session_of_its_own(ibex_db, tenant):
    agents = AgentRepository(tenant.session)
    assert await agents.count() == 0
    assert tenant.id == tenant.organization.id
    NAMES.add(ibex_db.engine.url.database)

async def test_what_is_made_is_seen_by_the_service(ibex_db, tenant, make_memory, make_agent):
    agent = await make_agent(name="Support")
    first = await make_memory("Prefers tea over coffee.", agent_id=agent.id, tags=["drinks"])
    second, third = await make_memory(), await make_memory()
    assert second.agent_id == third.agent_id != agent.id
    async with ibex_db.tenant(tenant.id) as session:
        assert await MemoryRepository(session).count() == 3
    assert (await MemoryRepository(tenant.session).get(first.id)).content == "Prefers tea over coffee."
    NAMES.add(ibex_db.engine.url.database)

async def test_another_organization_sees_nothing(ibex_db, make_organization, make_memory, make_session, make_user):
    globex = await make_organization(name="Globex")
    await make_memory()
    await make_session(external_id="run-1")
    user = await make_user(role=UserRole.ADMIN)
    theirs = await make_memory(org_id=globex.id)
    async with ibex_db.tenant(globex.id) as session:
        assert [memory.id for memory in await MemoryRepository(session).find()] == [theirs.id]

async def test_a_token_speaks_for_its_organization(ibex_db, tenant, make_token, make_user):
    service = await make_token(permissions=0b11)
    assert (await ibex_db.authenticate(service.plaintext)).org_id == tenant.id
    user = await make_user()
    assert ibex_db.engine.url.database not in NAMES  # each test has a database of its own
    personal = await make_token(user_id=user.id)
    assert (await ibex_db.authenticate(personal.plaintext)).kind is TokenKind.PERSONAL
"""


@pytest.fixture
def service(pytester: pytest.Pytester, ibex_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Give a service's folder, and this run's server: to start one for each would take most of the time."""
    monkeypatch.setenv(URL_VARIABLE, ibex_cluster.admin.render_as_string(hide_password=False))
    return pytester


def _run(service: pytest.Pytester, *options: str) -> pytest.RunResult:
    return service.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *options, timeout=120)


def test_the_pages_tests_run_as_written(service: pytest.Pytester) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    anyio = [block for block in blocks if "anyio" in block]
    service.makepyfile(**{f"test_{number}": block for number, block in enumerate(blocks) if block not in anyio})

    service.path.joinpath("service.py").write_text(EXAMPLE.read_text())

    _run(service, *AUTO).assert_outcomes(passed=3)

    for path in service.path.glob("test_*.py"):
        path.unlink()
    service.makepyfile(*anyio)
    _run(service, *STRICT).assert_outcomes(passed=1)


@parametrize("loop", LOOPS, quick=_QUICK)
def test_the_fixtures_work_in_the_tests_own_loop(service: pytest.Pytester, loop: str) -> None:
    head, options = LOOPS[loop]
    service.makepyfile(head + SERVICE)

    _run(service, *options).assert_outcomes(passed=4)


def test_processes_share_a_server_and_nothing_else(service: pytest.Pytester) -> None:
    service.makepyfile(test_one=SERVICE, test_two=SERVICE)

    _run(service, *AUTO, "-n", "2").assert_outcomes(passed=8)


def test_a_tests_mistake_is_told_and_its_database_dropped(service: pytest.Pytester) -> None:
    service.makepyfile(
        dedent("""
        from ibex_db import Agent, AgentRepository, ConflictError

        async def test_a_refused_row(tenant, make_agent):
            await make_agent(slug="support")
            await AgentRepository(tenant.session).add(Agent(name="Support", slug="support"))
        """)
    )

    done = _run(service, *AUTO)

    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*ConflictError*"])


def test_another_loop_than_asyncios_is_refused_in_words(service: pytest.Pytester) -> None:
    service.makepyfile(
        dedent("""
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "trio"

        def test_it(anyio_backend, ibex_db):
            pass
        """)
    )

    done = _run(service, *STRICT)

    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*runs on asyncio, and this test on trio*"])


def test_a_test_that_two_plugins_want_is_refused_in_words(service: pytest.Pytester) -> None:
    service.makepyfile(ANYIO + "async def test_it(ibex_db):\n    pass\n")

    done = _run(service, *AUTO)

    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*pytest-asyncio's auto mode runs it*"])


def test_a_test_without_a_loop_is_told_what_to_install(service: pytest.Pytester) -> None:
    service.makepyfile("def test_it(ibex_db):\n    pass\n")

    done = _run(service, "-p", "no:asyncio")

    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*install ibex-db-core?testing?*"])


def test_without_an_address_the_server_is_embedded_and_thrown_away(
    service: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(URL_VARIABLE)
    service.makepyfile(
        dedent("""
        async def test_it(ibex_db, ibex_cluster, tenant):
            print("at", ibex_cluster.admin.query["host"])
        """)
    )

    done = _run(service, "-s", *AUTO)

    done.assert_outcomes(passed=1)
    (folder,) = (line.split("at ")[1].strip() for line in done.outlines if "at /" in line)
    assert not os.path.exists(folder)  # noqa: PTH110 - as the server wrote it
