"""What repositories send, with the values, and which verbs were called meanwhile."""

import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, cast
from uuid import UUID

import pytest
from arms import Loose, Statement
from sqlalchemy import Engine, event

import ibex_db
from ibex_db import Base, BaseRepository, Reembedding
from ibex_db_core.policies import tenant_tables

TENANT_TABLES = frozenset(
    table.name for table in tenant_tables(Base.metadata) if table.info["tenant_column"] == "org_id"
)
"""Those that a sharded engine distributes; organizations are on every node."""


@dataclass(frozen=True)
class Sent:
    """One statement, as it went to the driver."""

    sql: str
    parameters: Sequence[Any]

    def statement(self, org_ids: frozenset[UUID]) -> Statement:
        """Take it apart; a parameter is the organization's where its value is."""

        named = (isinstance(value, UUID) and UUID(bytes=value.bytes) in org_ids for value in self.parameters)
        return _taken_apart(self.sql, frozenset(number for number, is_org in enumerate(named, 1) if is_org))

    def loose(self, org_ids: frozenset[UUID]) -> Sequence[Loose]:
        """Return the references to tenant tables that it binds to no organization."""
        return self.statement(org_ids).loose


@dataclass
class Record:
    """What was sent, and the verbs that were called."""

    sent: list[Sent] = field(default_factory=list[Sent])
    verbs: set[str] = field(default_factory=set[str])

    @contextmanager
    def listening(self) -> Generator[None]:
        """Note what any engine of this process sends."""

        def note(_connection: object, _cursor: object, sql: str, parameters: Any, *_rest: object) -> None:
            # A list of executions; the rows of one INSERT come as one tuple.
            many = cast("list[tuple[Any, ...]]", parameters if isinstance(parameters, list) else [parameters])
            for one in many:
                self.sent.append(Sent(sql, tuple(one)))

        event.listen(Engine, "before_cursor_execute", note)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", note)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Note which verbs are called; they do what they do."""
        for cls, name, function in verbs():
            monkeypatch.setattr(cls, name, self._noted(f"{cls.__name__}.{name}", function))

    def _noted(self, verb: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.verbs.add(verb)
            return function(*args, **kwargs)

        return call


@functools.cache
def _taken_apart(sql: str, org_parameters: frozenset[int]) -> Statement:
    return Statement(sql, TENANT_TABLES, org_parameters.__contains__)


def verbs() -> Iterator[tuple[type, str, FunctionType]]:
    """Yield each public verb where it is written: of every repository, of what they are made of, and of a move."""
    public = [value for name in dir(ibex_db) if isinstance(value := getattr(ibex_db, name), type)]
    families = cast("list[type]", [found for found in public if issubclass(found, BaseRepository | Reembedding)])
    for cls in sorted({base for one in families for base in one.__mro__}, key=lambda cls: cls.__qualname__):
        if not cls.__module__.startswith("ibex_db_"):
            continue
        for name, member in cast("dict[str, object]", dict(vars(cls))).items():
            if not name.startswith("_") and inspect.isfunction(member):
                yield cls, name, member
