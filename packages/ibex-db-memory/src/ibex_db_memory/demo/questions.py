"""Questions: what is asked, in which scope, and which records answer it."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from ibex_db_core import validation
from ibex_db_memory.demo.lines import Line

__all__ = ["Answers", "Question", "Scope", "read_question"]

Scope = tuple[str, str]
"""An organization's name and an agent's."""

# An evidence entry of a question can name several memories at once.
_SEPARATORS = re.compile(r"[ ,;]+")


@dataclass(frozen=True, slots=True)
class Question:
    """One question, the scope that it is asked in, and the records that answer it.

    Attributes:
        agent: None asks all of the organization's.
        expected: positions in the corpus, ascending; empty where nobody says.
    """

    organization: str
    agent: str | None
    text: str
    expected: Sequence[int]


class Answers:
    """Where the memories are that questions name."""

    def __init__(self, records: Iterable[tuple[Scope, str | None]]) -> None:
        self._scope_of: list[Scope] = []
        self._keyed: defaultdict[str, list[int]] = defaultdict(list)
        for position, (scope, key) in enumerate(records):
            self._scope_of.append(scope)
            if key is not None:
                self._keyed[key].append(position)
        self.scopes = set(self._scope_of)
        self.organizations = {organization for organization, _ in self.scopes}

    def __len__(self) -> int:
        """Count the records."""
        return len(self._scope_of)

    def within(self, organization: str, agent: str | None, key: str) -> Sequence[int]:
        """Return the records of a scope that are called so."""
        scopes = ((position, self._scope_of[position]) for position in self._keyed.get(key, ()))
        return [position for position, scope in scopes if scope[0] == organization and agent in {None, scope[1]}]


def read_question(line: Line, default: str, answers: Answers) -> Question:
    """Read a question, and find the records that answer it.

    Args:
        line: where it stands.
        default: the organization of a line that names none.
        answers: the records.

    Raises:
        FileInputError: it asks nothing, or asks where there are no memories.
    """
    text = line.fields.get("question", line.fields.get("text"))
    text = line.checked(lambda: validation.text("question", text, shortest=1))
    organization = line.name("organization", default=default)
    named = line.fields.get("agent", line.fields.get("conversation"))
    agent = None if named is None else line.name("agent", "conversation", default="")
    if organization not in answers.organizations:
        raise line.refuse("organization", organization, "must be one that has memories")
    if agent is not None and (organization, agent) not in answers.scopes:
        raise line.refuse("agent", agent, f"must be one of {organization} that has memories")
    rows = _list(line, "expected")
    last = len(answers) - 1
    expected = {line.checked(lambda row=row: validation.integer("expected", row, 0, last)) for row in rows}  # type: ignore[misc]
    for entry in _list(line, "evidence"):
        for key in _SEPARATORS.split(str(entry)):
            expected.update(answers.within(organization, agent, key))
    return Question(organization, agent, text, sorted(expected))


def _list(line: Line, field: str) -> Sequence[object]:
    found = line.fields.get(field, [])
    if not isinstance(found, list):
        raise line.refuse(field, found, "must be a list")
    return cast("list[object]", found)
