"""docs/operations does what it says: every command and statement of a page is run as written, on a real server."""

import asyncio
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from runbook import FOLDER, Shell, blocks, commands, fits
from site_of_runbooks import Site

from ibex_db_core.embedded import EmbeddedPostgres, binaries
from ibex_db_core.embedded.account import Account

PAGES = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.md"))}

RUNNABLE = [name for name, page in PAGES.items() if any(b.language in {"console", "sql"} for b in blocks(page))]

NOT_RUN: dict[str, int] = {"chaos.md": 1, "citus.md": 2, "telemetry.md": 1}
"""Page to how many of its blocks nothing can run here; each says why, in the page."""

Servers = Callable[[int], Site]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Give the first server, or one more beside it: each is started when it is asked for."""
    del tmp_path_factory
    running: list[Site] = []

    def nth(number: int) -> Site:
        while len(running) <= number:
            running.append(Site.on(EmbeddedPostgres.throwaway().start()))
        return running[number]

    yield nth
    for site in running:
        site.server.stop()


@pytest.fixture
def shell(servers: Servers) -> Iterator[Shell]:
    """A terminal with the programs of the embedded Postgres and ours; no variable of whoever runs the tests."""
    account = Account.owning(Path("/nonexistent"))
    programs = binaries.find().readable_by(account).program("psql").parent
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("IBEX_", "PG"))}
    path = f"{Path(sys.executable).parent}:{programs}:{os.environ['PATH']}"
    # Not tmp_path: the server's account must get through.
    folder = Path(tempfile.mkdtemp(prefix="ibex-runbook-"))
    folder.chmod(0o711)
    yield Shell(
        folder, {**kept, "PATH": path, "COLUMNS": "200"}, account.user, account.group, password=servers(0).password
    )
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("page", RUNNABLE)
def test_the_page_does_what_it_says(page: str, shell: Shell, servers: Servers) -> None:
    name = f"ibex_{page.removesuffix('.md').replace('-', '_')}"
    shell.environment |= servers(0).database(name).variables(name) | {"SUPERUSER_URL": servers(0).superuser(name)}
    arranged = ARRANGED.get(page)
    undo = arranged(shell, servers, name) if arranged else None

    try:
        shell.follow(PAGES[page])
    finally:
        if undo is not None:
            undo()

    assert shell.ran + len(shell.not_run) > 0
    assert len(shell.not_run) == NOT_RUN.get(page, 0), shell.not_run


def _backup(shell: Shell, servers: Servers, name: str) -> None:
    shell.environment |= {"SOURCE": servers(0).superuser(name), "TARGET": servers(1).superuser("postgres")}


_LIVED = """
    UPDATE ibex_core.memories SET content = content || '!',
           content_hash = encode(sha256(convert_to(lower(content || '!'), 'UTF8')), 'hex')
     WHERE content = 'acme wants invoice 7 on paper.';
    INSERT INTO ibex_core.memory_relationships (org_id, source_memory_id, target_memory_id, relationship_type)
    SELECT a.org_id, a.id, b.id, 'derived_from' FROM ibex_core.memories a JOIN ibex_core.memories b USING (org_id)
     WHERE a.content = 'acme wants invoice 1 on paper.' AND b.content = 'acme wants invoice 2 on paper.';
"""
"""What gives a version that is not the first, and a relationship."""


def _move(shell: Shell, servers: Servers, name: str) -> None:
    _lives(servers(0), name)
    elsewhere = servers(1).empty(name)
    for file, site in (("source.env", servers(0)), ("target.env", elsewhere)):
        lines = (f"export {variable}='{value}'\n" for variable, value in site.variables(name).items())
        (shell.folder / file).write_text("".join(lines))
    for variable in servers(0).variables(name):
        del shell.environment[variable]


def _lives(site: Site, name: str) -> None:
    asyncio.run(_run(site.superuser(name), _LIVED))


async def _run(url: str, script: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(script)
    finally:
        await connection.close()


def _replicas(shell: Shell, servers: Servers, name: str) -> Callable[[], None]:
    """Give the new machine a folder and a port; what runs there at the end is stopped."""
    assert shell.user is not None or os.geteuid() != 0
    data = shell.folder / "standby" / "data"
    data.parent.mkdir(mode=0o711)
    if shell.user is not None and shell.group is not None:
        os.chown(data.parent, shell.user, shell.group)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    primary = servers(0)
    replicator = primary.admin.set(username="replicator", password=primary.password, database=None)
    # The service and the owner, but on the standby.
    there = replace(primary, admin=primary.admin.set(port=port)).variables(name)
    shell.environment |= {
        "PRIMARY": replicator.render_as_string(hide_password=False),
        "STANDBY": there["IBEX_DATABASE_URL"],
        "STANDBY_OWNER": there["IBEX_OWNER_URL"],
        "PGDATA": str(data),
        "PGPORT": str(port),
    }

    def stop() -> None:
        shell.run("pg_ctl --mode=immediate --wait stop", as_server=True)

    return stop


ARRANGED: dict[str, Callable[[Shell, Servers, str], Callable[[], None] | None]] = {
    "backup-and-restore.md": _backup,
    "move-one-organization.md": _move,
    "replicas.md": _replicas,
}


def test_a_drill_goes_to_the_same_server_by_an_address_over_the_socket(shell: Shell, servers: Servers) -> None:
    name = "ibex_backup_socket"
    source, target = servers(0).database(name).server, servers(1).server
    shell.environment |= {"SOURCE": source.url(name), "TARGET": target.url("postgres")}

    shell.follow(PAGES["backup-and-restore.md"])

    assert "?host=" in shell.environment["TARGET"]
    assert "?host=" in shell.environment["DRILL"]


# What a move could lose or change without losing a memory.
_LOSSES = {
    "a version": "DELETE FROM ibex_core.memory_versions WHERE version_num = 2",
    "a version's validity": "UPDATE ibex_core.memory_versions SET valid_until = now() WHERE version_num = 2",
    "a tag": """DELETE FROM ibex_core.memory_tags t USING ibex_core.memories m
         WHERE m.id = t.memory_id AND m.content LIKE 'acme%1 on%'""",
    "another tag": "UPDATE ibex_core.memory_tags SET tag = 'bill'",
    "a relationship": "DELETE FROM ibex_core.memory_relationships",
    "a relationship's kind": "UPDATE ibex_core.memory_relationships SET relationship_type = 'contradicts'",
    "validity": "UPDATE ibex_core.memories SET valid_until = 'infinity'",
    "expiry": "UPDATE ibex_core.memories SET expires_at = NULL WHERE content LIKE '%1%'",
    "a counter": "UPDATE ibex_core.memories SET retrieval_count = 1 WHERE content LIKE '%1 on%'",
    "the agent": """
        INSERT INTO ibex_core.agents (org_id, name, slug) SELECT id, 'Other', 'other' FROM ibex_core.organizations;
        UPDATE ibex_core.memories m SET agent_id = a.id FROM ibex_core.agents a
         WHERE a.org_id = m.org_id AND a.slug = 'other'""",
    "a number of a vector": "UPDATE ibex_core.memories SET embedding = embedding + embedding WHERE content ~ '1 on'",
}


async def test_the_hash_of_a_move_tells_of_whatever_is_lost(servers: Servers) -> None:
    query = re.search(r'HASHED="\n(.*?)"\n', PAGES["move-one-organization.md"], re.DOTALL)
    assert query
    hashed = query[1].replace("> ", "")
    site, name = await asyncio.to_thread(servers, 0), "ibex_hashed"
    await asyncio.to_thread(site.database, name)
    await _run(site.superuser(name), _LIVED)
    connection = await asyncpg.connect(site.superuser(name))
    whole = await connection.fetch(hashed)

    unseen: list[str] = []
    for lost, statements in _LOSSES.items():
        transaction = connection.transaction()
        await transaction.start()
        # Past the triggers: what a faulty import left out has no history of its own.
        await connection.execute(f"SET LOCAL session_replication_role = replica; {statements}")
        if await connection.fetch(hashed) == whole:
            unseen.append(lost)
        await transaction.rollback()
    again = await connection.fetch(hashed)
    await connection.close()

    assert again == whole
    assert unseen == []


def test_every_page_is_in_the_index() -> None:
    listed = set(re.findall(r"\]\(([a-z_-]+\.md)\)", PAGES["README.md"]))

    assert listed == PAGES.keys() - {"README.md"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[page])

    assert [target for target in targets if not (FOLDER / target).exists()] == []


# -- the reader itself


PAGE = """
```console
$ export NAME=world
$ echo "hello $NAME"
hello world
```

<!-- leaves with 3 -->
```console
$ echo one
> echo two
one
...
$ exit 3
```

<!-- not run: there is no such program -->
```console
$ never-heard-of
```

```python title="a.py"
print("from a file")
```

```console
$ python a.py
```
"""


@pytest.fixture
def reader(tmp_path: Path) -> Shell:
    return Shell(tmp_path, {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})


def test_a_page_is_followed_from_top_to_bottom(reader: Shell) -> None:
    reader.follow(PAGE)

    assert (reader.ran, reader.not_run) == (5, ["there is no such program"])
    typed = [command.line for command in commands(next(blocks(PAGE)).text)]
    assert typed == ["export NAME=world", 'echo "hello $NAME"']


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("hello world", "printed"),
        ("leaves with 3", "not 0"),
        ("<!-- not run: there is no such program -->\n", "left with 127"),
        ("from a file", "printed"),
    ],
)
def test_a_page_that_is_wrong_is_found(reader: Shell, wrong: str, told: str) -> None:
    replaced = {"hello world": "hello moon", "leaves with 3": "leaves with 0", "from a file": 'from") or exit(1) #'}
    page = PAGE.replace(wrong, replaced.get(wrong, ""), 1)
    told = "left with 1" if wrong == "from a file" else told

    with pytest.raises(AssertionError, match=told):
        reader.follow(page)


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("a\nb\n", "a\nb", True),
        ("a  \nb\n", "a\nb", True),
        ("in 3.2 s\n", "in ... s", True),
        ("a\nx\ny\nz", "a\n...\nz", True),
        ("in 3.2 m\n", "in ... s", False),
        ("a\nb\nc", "a\nb", False),
    ],
)
def test_what_is_printed_fits_what_is_shown(printed: str, shown: str, *, same: bool) -> None:
    assert fits(printed, shown) is same
