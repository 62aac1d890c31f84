"""The front door: `ibex_db` has every public name of every wheel, and nothing else."""

import importlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
from fresh import fresh

import ibex_db

WHEELS = {"ibex-db-core": "ibex_db_core", "ibex-db-tenancy": "ibex_db_tenancy", "ibex-db-memory": "ibex_db_memory"}
OPTIONAL = {wheel: package for wheel, package in WHEELS.items() if wheel != "ibex-db-core"}

TABLES = {
    "organizations",
    "users",
    "agents",
    "tokens",
    "directives",
    "directive_versions",
    "sessions",
    "checkpoints",
    "memories",
    "memory_versions",
    "memory_relationships",
    "embedding_spaces",
    "memory_tags",
    "memory_vectors",
    "erasure_receipts",
    "erasure_tombstones",
    "erasure_keys",
    "organization_erasures",
}


def _exported(package: str) -> list[str]:
    names: list[str] = importlib.import_module(package).__all__
    return names


def _declared() -> Mapping[str, tuple[str, ...]]:
    return ibex_db._ADDED_BY  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("package", WHEELS.values())
def test_the_front_door_has_every_name_of_the_wheel(package: str) -> None:
    room, front = importlib.import_module(package), vars(ibex_db)
    missing = [name for name in _exported(package) if front.get(name) is not getattr(room, name)]

    lines = "".join(f"\n    {name} as {name}," for name in missing)
    assert not missing, f"add to `from {package} import (` in ibex_db/__init__.py:{lines}"


@pytest.mark.parametrize("wheel", OPTIONAL)
def test_the_table_of_absent_names_is_the_wheels_own_list(wheel: str) -> None:
    exported, declared = _exported(OPTIONAL[wheel]), _declared()[wheel]

    lines = "".join(f'\n        "{name}",' for name in exported if name not in declared)
    assert not lines, f"add to _ADDED_BY[{wheel!r}] in ibex_db/__init__.py:{lines}"
    assert not set(declared) - set(exported), f"take from _ADDED_BY[{wheel!r}]: {set(declared) - set(exported)}"
    assert list(declared) == exported, f"put _ADDED_BY[{wheel!r}] in the order of {OPTIONAL[wheel]}.__all__"


def test_the_front_door_has_no_name_of_its_own() -> None:
    public = {
        name
        for name, value in vars(ibex_db).items()
        if not name.startswith("_") and name != "TYPE_CHECKING" and not isinstance(value, ModuleType)
    }

    assert public == {name for package in WHEELS.values() for name in _exported(package)}


def test_no_two_wheels_export_the_same_name() -> None:
    exported = [name for package in WHEELS.values() for name in _exported(package)]

    assert len(exported) == len(set(exported))


@pytest.mark.parametrize("package", WHEELS.values())
def test_all_is_true_and_without_repetition(package: str) -> None:
    exported = _exported(package)

    assert len(exported) == len(set(exported))
    assert [name for name in exported if not hasattr(importlib.import_module(package), name)] == []


def test_the_wheels_share_one_version() -> None:
    assert len({importlib.metadata.version(wheel) for wheel in WHEELS}) == 1


def test_the_version_is_the_installed_wheels() -> None:
    assert ibex_db.__version__ == importlib.metadata.version("ibex-db-core")
    assert "__version__" not in vars(ibex_db)  # read when it is asked for


def test_one_import_completes_the_metadata() -> None:
    printed = fresh("import ibex_db; print(*(t.name for t in ibex_db.Base.metadata.tables.values()))").stdout

    assert set(printed.split()) == TABLES


def test_every_table_has_a_mapped_model_behind_the_front_door() -> None:
    models = {
        value.__tablename__: value
        for value in vars(ibex_db).values()
        if isinstance(value, type) and issubclass(value, ibex_db.Base) and value is not ibex_db.Base
    }

    assert models.keys() == TABLES


@pytest.mark.parametrize("first", ["ibex_db", *WHEELS.values()])
def test_whichever_package_is_imported_first_the_names_are_the_same(first: str) -> None:
    fresh(
        f"import {first}\n"
        "import ibex_db, ibex_db_core, ibex_db_memory, ibex_db_tenancy\n"
        "from sqlalchemy.orm import configure_mappers\n"
        "configure_mappers()\n"
        "assert ibex_db.Memory is ibex_db_memory.Memory\n"
        "assert ibex_db.Agent is ibex_db_tenancy.Agent\n"
        "assert ibex_db.Base is ibex_db_core.Base\n"
    )


@pytest.mark.parametrize("package", OPTIONAL.values())
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import a_package_that_nobody_has", "ModuleNotFoundError: No module named 'a_package_that_nobody_has'"),
        ("raise RuntimeError('broken on purpose')", "RuntimeError: broken on purpose"),
    ],
)
def test_a_broken_wheel_is_not_taken_for_an_absent_one(tmp_path: Path, package: str, line: str, told: str) -> None:
    broken = tmp_path / package
    broken.mkdir()
    (broken / "__init__.py").write_text(line)

    done = fresh("import ibex_db", check=False, env={"PYTHONPATH": str(tmp_path)})

    assert done.returncode == 1
    assert told in done.stderr


def test_a_misspelt_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ibex_db' has no attribute 'Memroy'"):
        getattr(ibex_db, "Memroy")  # noqa: B009 - checkers refuse ibex_db.Memroy, as they should
