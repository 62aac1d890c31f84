"""The front door without the wheels above core, whatever is installed beside it."""

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest

import ibex_db

ABSENT = ["ibex-db-tenancy", "ibex-db-memory"]
NAMES: Mapping[str, tuple[str, ...]] = ibex_db._ADDED_BY  # pyright: ignore[reportPrivateUsage]

# Hides packages as if their wheels were not installed (they may not be), then
# asks for names and says what came of it; under "" are the tables.
_HIDDEN = """
import importlib.abc, json, sys
hidden, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import ibex_db
told = {}
for name in names:
    try:
        getattr(ibex_db, name)
    except (ImportError, AttributeError) as exc:
        told[name] = f"{type(exc).__name__}: {exc}"
told[""] = sorted(table.name for table in ibex_db.Base.metadata.tables.values())
print(json.dumps(told))
"""


def _told(*names: str) -> dict[str, object]:
    packages = [wheel.replace("-", "_") for wheel in ABSENT]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", _HIDDEN, json.dumps(packages), json.dumps(names)],
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_core_alone_has_a_front_door_and_no_table() -> None:
    assert _told("Database", "BaseRepository", "IbexError") == {"": []}


@pytest.mark.parametrize("wheel", ABSENT)
def test_a_name_of_an_absent_wheel_names_the_wheel(wheel: str) -> None:
    told = _told(*NAMES[wheel])

    del told[""]
    assert told == {
        name: f"ImportError: ibex_db.{name} is in the {wheel} wheel: uv add {wheel}" for name in NAMES[wheel]
    }


def test_a_from_import_of_an_absent_name_names_the_wheel_too() -> None:
    code = _HIDDEN.replace("import ibex_db\n", "from ibex_db import Memory\n")

    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code, '["ibex_db_memory"]', "[]"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "ImportError: ibex_db.Memory is in the ibex-db-memory wheel: uv add ibex-db-memory" in done.stderr


def test_a_name_that_no_wheel_has_is_an_ordinary_attribute_error() -> None:
    assert _told("Memroy")["Memroy"] == "AttributeError: module 'ibex_db' has no attribute 'Memroy'"
