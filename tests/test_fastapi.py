"""examples/fastapi_service.py over HTTP: a client, a socket, and a server that runs it."""

import asyncio
import importlib.util
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
import uvicorn

from ibex_db import Database, EngineSettings
from ibex_db_core.testing import TestDatabase
from ibex_db_memory.testing import MakeMemory
from ibex_db_tenancy.testing import MakeAgent, MakeOrganization, MakeToken, TestTenant

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "fastapi_service.py"
PAGE = ROOT / "docs" / "how-to" / "fastapi.md"


@pytest.fixture(scope="module")
def service() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastapi_service", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest_asyncio.fixture
async def address(service: ModuleType, ibex_db: Database) -> AsyncIterator[str]:
    """Run the service on a port of loopback, on this test's database."""
    service.app.dependency_overrides = {service.database: lambda: ibex_db}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # Without lifespan: it would open the database of IBEX_DATABASE_URL.
        server = uvicorn.Server(uvicorn.Config(service.app, log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        await serving


@pytest_asyncio.fixture
async def client(address: str, make_token: MakeToken) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the tenant's."""
    token = await make_token()
    async with httpx.AsyncClient(base_url=address, headers=bearer(token.plaintext), trust_env=False) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_page_quotes_the_example_and_its_test() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    written = EXAMPLE.read_text() + Path(__file__).read_text()

    assert len(blocks) >= 5
    assert [block for block in blocks if block not in written] == []


async def test_what_is_remembered_is_found(client: httpx.AsyncClient, make_agent: MakeAgent) -> None:
    agent = await make_agent()
    said = {"agent_id": str(agent.id), "content": "Prefers tea over coffee.", "tags": ["drinks"]}

    answer = await client.post("/memories", json=said)

    assert answer.status_code == 201
    found = (await client.get("/memories", params={"text": "tea"})).json()
    assert found == [answer.json()]
    assert (await client.get(f"/memories/{answer.json()['id']}")).json() == answer.json()


async def test_a_token_opens_its_own_organization_only(
    client: httpx.AsyncClient,
    tenant: TestTenant,
    make_memory: MakeMemory,
    make_organization: MakeOrganization,
    make_token: MakeToken,
) -> None:
    ours = await make_memory("Prefers tea over coffee.")
    globex = await make_organization(name="Globex")
    theirs = await make_token(org_id=globex.id)
    assert ours.org_id == tenant.id

    assert (await client.get(f"/memories/{ours.id}")).status_code == 200
    client.headers.update(bearer(theirs.plaintext))
    refused = await client.get(f"/memories/{ours.id}")

    assert refused.status_code == 404
    assert (await client.get("/memories", params={"text": "tea"})).json() == []


@pytest.mark.parametrize("sent", [{}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic Zm9vOmJhcg=="}])
async def test_no_token_and_a_false_one_are_refused_alike(address: str, sent: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=address, trust_env=False) as nobody:
        answer = await nobody.get("/memories", params={"text": "tea"}, headers=sent)

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json() == {"type": "about:blank", "title": "Invalid token", "status": 401}


async def test_refusals_are_problem_details(client: httpx.AsyncClient, make_agent: MakeAgent) -> None:
    shown = re.findall(r"^```json\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    agent = await make_agent()
    empty = await client.post("/memories", json={"agent_id": str(agent.id), "content": " "})
    absent = await client.get(f"/memories/{uuid4()}")
    stranger = await client.post("/memories", json={"agent_id": str(uuid4()), "content": "Prefers tea."})
    malformed = await client.post("/memories", json={"agent_id": "none"})

    answers = (empty, absent, stranger, malformed)
    assert [answer.status_code for answer in answers] == [422, 404, 422, 422]
    assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
    assert all(answer.json()["status"] == answer.status_code for answer in answers)
    assert empty.json() == json.loads(shown[0])
    assert "detail" not in stranger.json()  # what the server said of the row is for the log
    assert [error["field"] for error in malformed.json()["errors"]] == ["body.agent_id", "body.content"]


async def test_what_passes_is_told_to_be_tried_again(
    service: ModuleType, address: str, ibex_test_database: TestDatabase, make_token: MakeToken
) -> None:
    token = await make_token()
    one = EngineSettings(pool_size=1, max_overflow=0, pool_timeout=0.1)
    async with (
        httpx.AsyncClient(base_url=address, headers=bearer(token.plaintext), trust_env=False) as client,
        ibex_test_database.connect(one) as database,
        database.tenant(uuid4()),  # which takes the one connection
    ):
        service.app.dependency_overrides = {service.database: lambda: database}
        answer = await client.get("/memories", params={"text": "tea"})

    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["title"] == "Try again"
