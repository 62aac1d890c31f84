"""Every verb works on Citus, and each of its statements goes to one worker."""

import re
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pgvector
import pytest
from docstrings import run
from recorder import Record, Sent
from sqlalchemy import text
from workload import EXAMPLES, SCENES, world

from ibex_db import Database

# Citus does these in two steps, both on the organization's worker: what the first part found goes by the coordinator.
IN_TWO_STEPS = (
    *("INSERT INTO ibex_core.memory_vectors AS v", "INSERT INTO ibex_core.directive_versions"),
    *("WITH gone AS", "WITH numbered AS"),
)


@pytest.mark.parametrize("title", [*EXAMPLES, *SCENES])
async def test_the_verb_works_as_a_service_calls_it(db: Database, title: str) -> None:
    """Where nobody listens, hot statements go to the driver as they are, on a connection that was lent."""
    async with world(db) as names:
        await _called(db, title, names)
        await names["session"].rollback()


@pytest.mark.parametrize("title", [*EXAMPLES, *SCENES])
async def test_the_verb_works_and_asks_one_worker(db: Database, title: str) -> None:
    record = Record()
    async with world(db) as names:
        with record.listening():
            await _called(db, title, names)
        await names["session"].rollback()
        org_id: UUID = names["org"].id
        asked = {sent.sql: sent for sent in record.sent if sent.statement(frozenset({org_id})).references}

        assert await _spread(db, org_id, list(asked.values())) == []


async def _called(db: Database, title: str, names: dict[str, Any]) -> None:
    if title in SCENES:
        await SCENES[title](db, names)
        return
    if ".importing." in title:  # as in tests/routing
        await names["session"].execute(text("SELECT 1"))
    await run(EXAMPLES[title], names)


async def _spread(db: Database, org_id: UUID, sent: Sequence[Sent]) -> list[str]:
    """Return the statements whose plan is not one task."""
    found: list[str] = []
    async with db.tenant(org_id) as session:
        connection = await session.connection()
        for one in sent:
            # Literals: of EXPLAIN with parameters Citus cannot tell the worker.
            pieces = re.split(r"\$(\d+)", one.sql)
            pieces[1::2] = [_literal(one.parameters[int(number) - 1]) for number in pieces[1::2]]
            sql = "".join(pieces)
            rows = await connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {sql}")
            plan = "\n".join(str(row[0]) for row in rows)
            counts = re.findall(r"Task Count: (\d+)", plan)
            steps = any(known in one.sql for known in IN_TWO_STEPS)
            if set(counts) != {"1"} or (len(counts) > 1 and not steps) or ("INSERT ... SELECT" in plan and not steps):
                found.append(f"tasks {counts} of {one.sql}\n{plan}")
        await session.rollback()
    return found


def _literal(value: object) -> str:
    return "NULL" if value is None else "'" + _text(value).replace("'", "''") + "'"


def _text(value: object) -> str:
    if isinstance(value, pgvector.Vector):
        return value.to_text()
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, (list, tuple)):
        return (
            "{"
            + ",".join(
                '"' + _text(one).replace("\\", "\\\\").replace('"', '\\"') + '"'
                for one in cast("Sequence[object]", value)
            )
            + "}"
        )
    return str(value)
