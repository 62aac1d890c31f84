"""Tasks that are cancelled at any moment: a connection is never lent again with somebody's transaction on it."""

import asyncio
import random
from contextlib import suppress

from ledger import POOL, Account, Ledger
from sqlalchemy import text

TASKS = 300


async def _write_and_be_cancelled(ledger: Ledger, account: Account, after: float) -> None:
    """Be cancelled while waiting for a connection, in BEGIN, in a statement, in COMMIT, or not at all."""
    task = asyncio.create_task(ledger.write(account))
    await asyncio.sleep(after)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
        ledger.done["in time"] += 1


async def test_tasks_cancelled_in_every_phase_leave_no_transaction_and_no_connection_behind(ledger: Ledger) -> None:
    chance = random.Random(7)  # noqa: S311 - the same in each run

    async with asyncio.timeout(120):
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(ledger.write(chance.choice(ledger.accounts)) for _ in range(20)))
        together = asyncio.get_running_loop().time() - began  # on this machine, as busy as it is
        for _ in range(TASKS // 20):
            await asyncio.gather(
                *(
                    _write_and_be_cancelled(ledger, chance.choice(ledger.accounts), chance.uniform(0.0, together))
                    for _ in range(20)
                )
            )
        await ledger.healed()

    for account in ledger.accounts:
        async with ledger.db.tenant(account.org_id) as session:
            rows = (await session.execute(text("SELECT org_id, content FROM ibex_core.memories"))).all()
        assert {row.org_id for row in rows} <= {account.org_id}
        assert account.acknowledged <= {row.content for row in rows}
    # Both must have come to pass, or nothing was tried.
    assert 0 < ledger.done["in time"] < TASKS
    assert ledger.db.engine.pool.status().startswith(f"Pool size: {POOL.pool_size}")
