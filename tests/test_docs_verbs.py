"""Every public verb of every repository has a place in the pages that people read."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import cast

import pytest

import ibex_db
from ibex_db import BaseRepository, Database, Reembedding, SteppedRepository

ROOT = Path(__file__).resolve().parent.parent
# A decision says what was thought once; nobody looks there for how to do a thing.
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "decisions" not in page.parts]
TOLD = "\n".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *PAGES])

# SteppedRepository changes how update() works, and adds no verb.
EVERYBODY = (BaseRepository, SteppedRepository)


def verbs() -> Iterator[tuple[str, str]]:
    """Yield class and name of each verb that a class has beside those that every repository has."""
    public = [value for name in dir(ibex_db) if isinstance(value := getattr(ibex_db, name), type)]
    for found in public:
        if found is SteppedRepository or not issubclass(found, BaseRepository | Database | Reembedding):
            continue
        members: list[tuple[str, object]] = inspect.getmembers_static(cast("type", found))
        for name, member in members:
            own = found is BaseRepository or not any(member is vars(base).get(name) for base in EVERYBODY)
            if not name.startswith("_") and own and isinstance(member, FunctionType | classmethod | staticmethod):
                yield found.__name__, name


def is_told(owner: str, verb: str, text: str) -> bool:
    """Tell whether a page calls a verb on what is named after its class: `agents.pause`, `AgentRepository(x).pause`."""
    noun = owner.removesuffix("Repository")
    named = {"Base": r"\w+", "Database": "db|Database"}.get(noun, rf"{_plural(noun)}|{owner}(?:\([^)]*\))?")
    return re.search(rf"\b(?:{named})\.{verb}\b", text) is not None


def _plural(noun: str) -> str:
    return "memories" if noun == "Memory" else "move" if noun == "Reembedding" else f"{noun.lower()}s"


@pytest.mark.parametrize(("owner", "verb"), list(verbs()))
def test_the_verb_has_a_place(owner: str, verb: str) -> None:
    assert is_told(owner, verb, TOLD), f"{owner}.{verb} is in no page under docs/: say there what it is for"


def test_every_class_is_asked() -> None:
    asked = {owner for owner, _ in verbs()}

    nouns = {"Agent", "Base", "Directive", "Erasure", "Memory", "Organization", "Session", "Token", "User"}
    assert asked == {f"{noun}Repository" for noun in nouns} | {"Database", "Reembedding"}


def test_what_only_sounds_like_the_verb_is_no_place() -> None:
    assert not is_told("AgentRepository", "pause", "No pause: `db.pause()`, `agents.unpause()`, `agents.pauses`.")
    assert is_told("AgentRepository", "pause", "await agents.pause(agent.id)")
    assert is_told("AgentRepository", "pause", "see `AgentRepository.pause`, AgentRepository(session).pause(ident)")
