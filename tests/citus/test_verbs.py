"""Every verb works on Citus, and each of its statements goes to one worker."""

import re
from collections.abc import Sequence

import pytest
from docstrings import run
from recorder import Record, Sent
from sqlalchemy import text
from workload import EXAMPLES, SCENES, world

from ibex_db import Database

# Work of the platform over all organizations, in an example of which one line is that.
_ACROSS = re.compile(r"ibex_core\.organization(s|_erasures)\b")


@pytest.mark.parametrize("title", [*EXAMPLES, *SCENES])
async def test_the_verb_works_and_asks_one_worker(db: Database, title: str) -> None:
    record = Record()
    async with world(db) as names:
        with record.listening():
            if title in SCENES:
                await SCENES[title](db, names)
            else:
                if ".importing." in title:  # as in tests/routing
                    await names["session"].execute(text("SELECT 1"))
                await run(EXAMPLES[title], names)
        await names["session"].rollback()
        org_ids = frozenset({names["org"].id})
        asked = {sent.sql: sent for sent in record.sent if sent.statement(org_ids).references}

        assert await _spread(db, names["org"].id, list(asked.values())) == []


async def _spread(db: Database, org_id: object, sent: Sequence[Sent]) -> list[str]:
    """Return the statements whose plan is not one task."""
    found: list[str] = []
    async with db.tenant(org_id) as session:  # type: ignore[arg-type]
        connection = await session.connection()
        for one in sent:
            rows = await connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {one.sql}", tuple(one.parameters))
            plan = "\n".join(str(row[0]) for row in rows)
            if set(re.findall(r"Task Count: (\d+)", plan)) != {"1"} or "INSERT ... SELECT" in plan:
                found.append(f"{one.sql}\n{plan}")
        await session.rollback()
    return found
