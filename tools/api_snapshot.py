"""The public API of the installed wheels, a line for each name: what services hold on to.

    uv run python tools/api_snapshot.py        writes tests/public_api/now.txt anew

Read from the sources as they are installed, so that it is the same on each Python: names, signatures, fields, what
classes stand on.  Said once for each public class, inherited from ours or not.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import griffe

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "public_api"
WHEELS = {"ibex-db-core": "ibex_db_core", "ibex-db-tenancy": "ibex_db_tenancy", "ibex-db-memory": "ibex_db_memory"}

_KIND = re.compile(r"^(class|async|property|overload) ")
_NAMED = re.compile(r"[\w.]*")

# What Python asks of a class says nothing to who uses it.
_SILENT = {"__repr__", "__str__", "__reduce__", "__hash__", "__eq__", "__init_subclass__", "__subclasshook__"}


def public_api() -> str:
    """Return all of it, sorted within each wheel."""
    loader = griffe.GriffeLoader()
    packages = {wheel: loader.load(package) for wheel, package in WHEELS.items()}
    front = loader.load("ibex_db")
    loader.resolve_aliases(implicit=True, external=False)
    parts: list[str] = []
    for wheel, package in packages.items():
        lines = {line for name in package.exports or () for line in _lines(package[str(name)], str(name))}
        for name, member in package["testing"].members.items():
            if not name.startswith("_") and not member.is_alias and (member.is_class or _is_fixture(member)):
                lines.update(_lines(member, f"testing.{name}"))
        if wheel == "ibex-db-core":  # what the front door has of its own
            lines.update(_lines(front["__version__"], "__version__"))
        parts.append("".join(f"{line}\n" for line in [f"# {wheel}", *sorted(lines, key=_name)]))
    return "\n".join(parts)


def _is_fixture(member: griffe.Object | griffe.Alias) -> bool:
    found = member.final_target if isinstance(member, griffe.Alias) else member
    return isinstance(found, griffe.Function) and any("fixture" in str(one.value) for one in found.decorators)


def _lines(member: griffe.Object | griffe.Alias, name: str) -> Iterator[str]:
    found = member.final_target if isinstance(member, griffe.Alias) else member
    if isinstance(found, griffe.Class):
        yield f"class {name}({', '.join(map(str, found.bases))})"
        for inner, one in found.all_members.items():
            if inner in _SILENT or (inner.startswith("_") and not inner.startswith("__")):
                continue
            if inner.startswith("__") and not one.is_function:
                continue
            yield from _lines(one, f"{name}.{inner}")
        for inner, overloads in found.overloads.items():
            yield from (_signature(one, f"{name}.{inner}", "overload ") for one in overloads)
    elif isinstance(found, griffe.Function):
        yield _signature(found, name, "async " if "async" in found.labels else "")
    elif isinstance(found, griffe.Attribute):
        property_ = "property " if "property" in found.labels else ""
        # Values are part of it where they are the point: members of enumerations, and constants.
        silent = (
            found.annotation is not None
            or property_
            or found.labels & {"class-attribute", "instance-attribute"} == {"instance-attribute"}
        )
        value = "" if silent else f" = {found.value}"
        yield f"{property_}{name}: {found.annotation or ''}{value}".replace(":  =", " =").removesuffix(": ")


def _signature(function: griffe.Function, name: str, kind: str) -> str:
    return f"{kind}{function.signature(name=name)}"


def _name(line: str) -> str:
    return _KIND.sub("", line)


def _named(line: str) -> list[str]:
    name: str = _NAMED.findall(_name(line))[0]
    return name.removeprefix("testing.").split(".")[:2]


def unacknowledged(released: str, now: str, fragments: str) -> list[str]:
    """Return the lines that came, went or changed since the release, and that no fragment of the changelog names.

    A fragment names ``Database.run`` where one of these words stands in backticks: Database, run.
    """
    changed = sorted(set(released.splitlines()) ^ set(now.splitlines()), key=_name)
    quoted = " ".join(re.findall(r"`([^`]+)`", fragments))
    words = set(re.findall(r"\w+", quoted))
    return [line for line in changed if not words & set(_named(line))]


if __name__ == "__main__":
    (FOLDER / "now.txt").write_text(public_api())
