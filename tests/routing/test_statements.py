"""Every statement that a repository sends names the organization in each arm: a sharded engine asks one node.

Seen as they are sent, over the examples of every verb and searches of every shape; and as they are written, for what
a module keeps ready.
"""

import asyncio
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import pytest
from arms import Loose, Statement
from docstrings import run
from recorder import TENANT_TABLES, Record, Sent, verbs
from sqlalchemy import Delete, Dialect, Insert, Select, TextClause, Update, text
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.orm import FromStatement
from workload import EXAMPLES, SCENES, world

from ibex_db import Database
from ibex_db_core.provisioning import Cluster

_DIALECT = cast("Dialect", cast("Any", dialect.dialect)())

# The demo tries to break out, and the doctor looks at every organization.
_NOT_REPOSITORIES = r"\.(migrations|doctor|demo)\b|__main__$"

_NEVER: Mapping[str, str] = {}
"""Verbs that no example and no scene calls, and why."""


@dataclass(frozen=True)
class Heard:
    """What one example or scene sent, and the organizations that there were."""

    sent: Sequence[Sent]
    org_ids: frozenset[UUID]


@dataclass(frozen=True)
class Everything:
    """What all of them sent, and the verbs that were called."""

    heard: Mapping[str, Heard]
    verbs: frozenset[str]


@pytest.fixture(scope="module")
def everything(ibex_cluster: Cluster, ibex_template: str) -> Iterator[Everything]:
    """Run all examples and scenes once, on one database."""
    name = f"ibex_routing_{uuid4().hex[:12]}"
    asyncio.run(ibex_cluster.create_database(name, template=ibex_template))
    with pytest.MonkeyPatch.context() as patch:
        yield asyncio.run(_hear(ibex_cluster, name, patch))
    asyncio.run(ibex_cluster.drop_database(name))


async def _hear(cluster: Cluster, name: str, patch: pytest.MonkeyPatch) -> Everything:
    heard: dict[str, Heard] = {}
    called: set[str] = set()
    owner = await asyncpg.connect(cluster.url(name).render_as_string(hide_password=False))
    async with cluster.database(name) as db:
        for title in (*EXAMPLES, *SCENES):
            record = Record()
            with patch.context() as watched, record.listening():
                record.watch(watched)
                async with world(db) as names:
                    await _play(title, db, names)
                    found = await owner.fetch("SELECT id FROM ibex_core.organizations")
                    ids = frozenset({names["org"].id, *(UUID(bytes=row["id"].bytes) for row in found)})
            heard[title] = Heard(record.sent, ids)
            called |= record.verbs
    await owner.close()
    return Everything(heard, frozenset(called))


async def _play(title: str, db: Database, names: dict[str, Any]) -> None:
    if title in SCENES:
        await SCENES[title](db, names)
        return
    if ".importing." in title:  # fills temporary tables by the driver itself, in the transaction that is open
        await names["session"].execute(text("SELECT 1"))
    await run(EXAMPLES[title], names)


@pytest.mark.parametrize("title", [*EXAMPLES, *SCENES])
def test_what_is_sent_names_the_organization_in_each_arm(title: str, everything: Everything) -> None:
    heard = everything.heard[title]

    assert {(str(loose), sent.sql) for sent in heard.sent for loose in sent.loose(heard.org_ids)} == set()


def test_every_verb_was_called(everything: Everything) -> None:
    there = {f"{cls.__name__}.{name}" for cls, name, _ in verbs()}

    assert there - everything.verbs == set(_NEVER)


def test_so_many_statements_were_looked_at(everything: Everything) -> None:
    # Were nothing heard, or nothing of tenants found in it, the tests above would say nothing.
    looked_at = {sent.sql: sent.statement(heard.org_ids) for heard in everything.heard.values() for sent in heard.sent}

    assert sum(statement.references > 0 for statement in looked_at.values()) > 200
    assert sum(statement.references for statement in looked_at.values()) > 500


def test_a_filter_that_is_forgotten_is_caught(everything: Everything) -> None:
    # Each statement once more, as if its organization were any other value: everything that it reads is loose then.
    for sent in {sent.sql: sent for heard in everything.heard.values() for sent in heard.sent}.values():
        statement = sent.statement(frozenset())
        assert len(statement.loose) == statement.references, sent.sql


# -- as they are written


def written() -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield where a module of ours keeps a statement ready, its SQL, and the names of its parameters."""
    for package in ("ibex_db_core", "ibex_db_tenancy", "ibex_db_memory"):
        top = importlib.import_module(package)
        for info in pkgutil.walk_packages(top.__path__, f"{package}."):
            if re.search(_NOT_REPOSITORIES, info.name):
                continue
            for name, value in vars(importlib.import_module(info.name)).items():
                for key, statement in _each(value):
                    compiled: Any = statement.compile(dialect=_DIALECT)
                    yield f"{info.name}.{name}{key}", str(compiled), cast("Sequence[str]", compiled.positiontup or ())


def _each(value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in cast("dict[object, object]", value).items():
            yield from ((f"[{key}]{rest}", statement) for rest, statement in _each(one))
    elif isinstance(value, (Select, TextClause, Insert, Update, Delete, FromStatement)):
        yield "", value


WRITTEN = {where: (sql, names) for where, sql, names in written()}


def _loose(where: str) -> Sequence[Loose]:
    sql, names = WRITTEN[where]
    return Statement(sql, TENANT_TABLES, lambda number: names[number - 1].startswith("org_id")).loose


@pytest.mark.parametrize("where", WRITTEN)
def test_what_is_kept_ready_names_the_organization_in_each_arm(where: str) -> None:
    assert _loose(where) == []


def test_what_is_kept_ready_is_found() -> None:
    assert any(where.startswith("ibex_db_memory.repositories.memory.statements.REMEMBER_MANY") for where in WRITTEN)
    assert len(WRITTEN) > 40
