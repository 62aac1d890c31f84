"""Telemetry that is off, or not installed: nothing is imported, and what needs it says so."""

import subprocess
import sys

import pytest

_USED = """
import sys
from uuid import uuid4
import ibex_db
from ibex_db import Database, EngineSettings, QueryTags, Redaction, Telemetry, redact, tagged
Telemetry(recall_guard=0.5)
redact("nothing")
settings = EngineSettings(query_tags=QueryTags(always={"application": "billing"}))
session = Database("postgresql://nobody@127.0.0.1:1/none", settings=settings).session_factory(uuid4())
assert session.sync_session.watch is None
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry"))
"""

# As if OpenTelemetry were not installed.
_HIDDEN = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
from ibex_db import ConfigurationError, Database, EngineSettings, QueryTags, Telemetry
try:
    ASKED
except ConfigurationError as exc:
    print(exc)
"""


def told(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - ours
    return done.stdout.strip()


def test_nothing_of_opentelemetry_is_imported_before_a_database_is_told_to() -> None:
    assert told(_USED) == ""


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("Database('postgresql://me@db/ibex', telemetry=Telemetry())", "telemetry"),
        (
            "Database('postgresql://me@db/i', settings=EngineSettings(query_tags=QueryTags(traceparent=True))).engine",
            "QueryTags(traceparent=True)",
        ),
    ],
)
def test_without_opentelemetry_the_error_says_what_to_install(asked: str, what: str) -> None:
    assert told(_HIDDEN.replace("ASKED", asked)) == (
        f"{what} needs OpenTelemetry's API, which is not installed: uv add 'ibex-db-core[otel]'"
    )
