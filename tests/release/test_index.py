"""From an empty index to a service that runs: what another team does on its first day with the library.

Its own session, `nox -s index`: it builds, publishes and installs for real.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples" / "fastapi_service.py"
WHEELS = ("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory")
SECONDS = 60.0
ANY_WORD = {"UV_PUBLISH_TOKEN": "anything"}  # the test's index asks for none

# Two organizations, and a token of each: what a deployment does once.
SIGN_UP = """
import asyncio
from ibex_db import Agent, AgentRepository, Database, Organization, TokenKind, TokenRepository

async def main():
    async with Database.from_env() as db:
        await db.upgrade()
        for slug in ("acme", "globex"):
            async with db.platform(reason="sign-up") as session:
                org = Organization(name=slug.title(), slug=slug)
                session.add(org)
            async with db.tenant(org.id) as session:
                agent = await AgentRepository(session).add(Agent(name="Support", slug="support"))
                issued = await TokenRepository(session).issue(name="Service", kind=TokenKind.SERVICE)
            print(issued.plaintext, agent.id)

asyncio.run(main())
"""


def _environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what would lead back to the source tree."""
    ours = ("IBEX_", "VIRTUAL_ENV", "UV_PROJECT", "UV_PUBLISH", "UV_PYTHON", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def _run(
    *command: str | Path, at: Path, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(  # noqa: S603 - our own words
        list(map(str, command)), cwd=at, env=_environment(**(env or {})), capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@contextmanager
def _serving(*command: str | Path, at: Path, url: str, env: Mapping[str, str] | None = None) -> Generator[None]:
    """Run a server until the block is left, once it answers."""
    with (at / "log").open("w+") as log:
        server = subprocess.Popen(  # noqa: S603 - our own words
            list(map(str, command)), cwd=at, env=_environment(**(env or {})), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + SECONDS
            while True:
                try:
                    httpx.get(url, trust_env=False)
                    break
                except httpx.TransportError:
                    assert server.poll() is None, (at / "log").read_text()
                    assert time.monotonic() < end, (at / "log").read_text()
                    time.sleep(0.1)
            yield
        finally:
            server.terminate()
            server.wait(SECONDS)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not of tmp_path: only its owner may enter that, and root's embedded server becomes another user.
    with TemporaryDirectory(prefix="ibex-release-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def dist(folder: Path) -> Path:
    """Give the built wheels and sdists: the nox session's, or our own."""
    if given := os.environ.get("IBEX_DIST"):
        return Path(given)
    _run("uv", "build", "--quiet", "--all-packages", "--out-dir", folder / "dist", at=ROOT)
    return folder / "dist"


@pytest.fixture(scope="module")
def index(folder: Path) -> Iterator[str]:
    """Run an index without anything in it, and give the address of its simple pages."""
    packages = folder / "packages"
    packages.mkdir()
    address = f"http://127.0.0.1:{_free_port()}"
    options = ("--interface", "127.0.0.1", "--port", address.rpartition(":")[2], "--disable-fallback")
    # Anybody may upload here: it is on loopback, and gone with the test.
    program = (sys.executable, "-m", "pypiserver", "run", *options, "--authenticate", ".", "--passwords", ".")
    with _serving(*program, packages, at=folder, url=address):
        assert "ibex" not in httpx.get(f"{address}/simple/", trust_env=False).text
        yield f"{address}/simple/"


def _publish(
    dist: Path, index: str, *, check: bool = True, credentials: Mapping[str, str] = ANY_WORD
) -> subprocess.CompletedProcess[str]:
    env = {"IBEX_INDEX_URL": index, **credentials}
    return _run(sys.executable, ROOT / "tools" / "publish.py", dist, at=ROOT, env=env, check=check)


@pytest.fixture(scope="module")
def published(dist: Path, index: str) -> str:
    assert "is published: 6 files" in _publish(dist, index).stdout
    return index


@pytest.fixture(scope="module")
def service(folder: Path, published: str) -> Path:
    """Make a project as its team would, with the library from that index and everything else from uv's own."""
    at = folder / "support"
    _run("uv", "init", "--quiet", "--app", "--vcs", "none", "--python", sys.executable, at, at=folder)
    # In two commands: uv takes everything that it adds with --index from there, and fastapi is not there.
    _run("uv", "add", "--quiet", "--index", f"ibex={published}", "ibex-db-memory", "ibex-db-core[embedded]", at=at)
    _run("uv", "add", "--quiet", "fastapi", "uvicorn", at=at)
    return at


def test_the_index_holds_wheels_and_sdists_of_all_three(published: str) -> None:
    for wheel in WHEELS:
        page = httpx.get(f"{published}{wheel}/", trust_env=False).text

        assert len(re.findall(r"\.whl</a>", page)) == 1
        assert len(re.findall(r"\.tar\.gz</a>", page)) == 1


def test_who_has_no_credentials_is_told_which(dist: Path, published: str, tmp_path: Path) -> None:
    newer = tmp_path / "dist"
    newer.mkdir()
    for file in dist.glob("ibex_db_*"):
        shutil.copy(file, newer / file.name.replace("-0.", "-9.", 1))

    done = _publish(newer, published, check=False, credentials={})

    assert done.returncode == 1
    assert "no credentials: set UV_PUBLISH_TOKEN" in done.stderr
    assert "rusted publishing" not in done.stderr


def test_the_same_bytes_again_are_a_success_and_leave_the_index_as_it_is(dist: Path, published: str) -> None:
    before = httpx.get(f"{published}ibex-db-core/", trust_env=False).text

    again = _publish(dist, published, check=False)

    assert again.returncode == 0, again.stderr
    assert "is on the index already, the same bytes: nothing was uploaded" in again.stdout
    assert "Uploading" not in again.stderr
    assert httpx.get(f"{published}ibex-db-core/", trust_env=False).text == before


@pytest.mark.parametrize("kind", ["ibex_db_core-*.whl", "ibex_db_memory-*.tar.gz"])  # sent first, and last
def test_a_published_version_is_never_overwritten(dist: Path, published: str, tmp_path: Path, kind: str) -> None:
    changed = tmp_path / "dist"
    shutil.copytree(dist, changed)
    file = next(changed.glob(kind))
    file.write_bytes(file.read_bytes() + b"\0")  # another file of the same name
    page = f"{published}{file.name.split('-')[0].replace('_', '-')}/"
    before = httpx.get(page, trust_env=False).text

    other = _publish(changed, published, check=False)

    assert other.returncode == 1
    assert "A published version is never overwritten" in other.stderr
    assert httpx.get(page, trust_env=False).text == before


def test_an_upload_that_broke_off_is_taken_up(dist: Path, folder: Path, published: str) -> None:
    (lacking,) = (folder / "packages").glob("ibex_db_memory-*.tar.gz")
    before = lacking.read_bytes()
    lacking.unlink()

    again = _publish(dist, published)

    assert "is published: 1 files; 5 were there already" in again.stdout
    assert lacking.read_bytes() == before


def test_a_service_gets_the_three_wheels_from_the_index(service: Path, published: str) -> None:
    lock = (service / "uv.lock").read_text()

    for wheel in WHEELS:
        (entry,) = re.findall(rf'name = "{wheel}"\nversion = "[^"]+"\nsource = (.*)', lock)
        assert published.rstrip("/") in entry


def test_two_organizations_use_the_service_by_token(service: Path, folder: Path) -> None:
    shutil.copy(EXAMPLE, service / "service.py")
    env = {"IBEX_HOME": str(folder / "home")}
    printed = _run("uv", "run", "--quiet", "python", "-c", dedent(SIGN_UP), at=service, env=env).stdout
    (acme, agent), (globex, _) = (line.split() for line in printed.splitlines())
    address = f"http://127.0.0.1:{(port := _free_port())}"
    program = ("uv", "run", "--quiet", "uvicorn", "service:app", "--port", str(port))

    with (
        _serving(*program, at=service, url=f"{address}/docs", env=env),
        httpx.Client(base_url=address, trust_env=False, timeout=SECONDS) as client,
    ):
        client.headers["Authorization"] = f"Bearer {acme}"
        stored = client.post("/memories", json={"agent_id": agent, "content": "Prefers tea over coffee."})
        ours = client.get("/memories", params={"text": "tea"})
        client.headers["Authorization"] = f"Bearer {globex}"
        theirs = client.get("/memories", params={"text": "tea"})
        stolen = client.get(f"/memories/{stored.json()['id']}")
        client.headers["Authorization"] = f"Bearer {globex[:-1]}"
        refused = client.get("/memories", params={"text": "tea"})

    assert stored.status_code == 201
    assert ours.json() == [stored.json()]
    assert theirs.json() == []
    assert stolen.status_code == 404
    assert refused.status_code == 401
