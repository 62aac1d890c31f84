"""What tests of the pool share: the pool itself, a listener that keeps it from lending, and turns of other tasks."""

import asyncio

from sqlalchemy import text

from ibex_db_core import Database
from ibex_db_core.lending import LendingPool

ONE = text("SELECT 1")


def hear(_connection: object) -> None:
    """Listen, so that nothing is lent."""


def pool_of(db: Database) -> LendingPool:
    pool = db.engine.pool
    assert isinstance(pool, LendingPool)
    return pool


async def turns(count: int = 3) -> None:
    """Let every other task go as far as it can without an answer of the server."""
    for _ in range(count):
        await asyncio.sleep(0)
