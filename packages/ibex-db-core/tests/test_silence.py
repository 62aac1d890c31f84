"""A network that goes silent: nothing is refused, nothing is closed, no answer comes.

statement_timeout is the server's, and does not help a client that the server's answer never reaches.
"""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from toys import Bot, BotRepository
from wire import Wire

from ibex_db_core import CommitUnknownError, ConnectionLostError, Database, EngineSettings, ScopedSession
from ibex_db_core.provisioning import SERVICE_LOGIN
from ibex_db_core.testing import TestDatabase

IMPATIENT = EngineSettings(pool_size=2, max_overflow=0, pool_timeout=1.0, statement_timeout=0.3, network_timeout=0.2)

# A hang is a failure; the limit is far from anything that a slow machine takes.  It is the test's own: the task of a
# fixture is over by then, and can be cancelled no more.
_NEVER = 60.0


@pytest.fixture
async def impatient(wire: Wire, toy_database: TestDatabase) -> AsyncIterator[Database]:
    """A Database through the wire, that waits half a second for an answer."""
    address = wire.address(toy_database.cluster.url(toy_database.name, user=SERVICE_LOGIN))
    async with Database(address, settings=IMPATIENT) as database:
        yield database


@pytest.mark.parametrize("statements_before", [0, 1])
async def test_silence_in_a_unit_of_work_is_a_lost_connection_and_nothing_was_kept(
    impatient: Database, wire: Wire, acme: UUID, statements_before: int
) -> None:
    async with asyncio.timeout(_NEVER):
        with pytest.raises(ConnectionLostError, match="did not answer in time"):
            async with impatient.tenant(acme) as session:
                bots = BotRepository(session)
                for number in range(statements_before):
                    await bots.add(Bot(slug=f"early-{number}"))
                wire.flowing.clear()
                await bots.add(Bot(slug="late"))

        wire.flowing.set()
        async with impatient.tenant(acme) as session:
            assert await BotRepository(session).count() == 0


async def test_silence_after_commit_was_sent_leaves_the_outcome_unknown(
    impatient: Database, wire: Wire, acme: UUID
) -> None:
    async with asyncio.timeout(_NEVER):
        with pytest.raises(CommitUnknownError, match="may or may not"):
            async with impatient.tenant(acme) as session:
                await BotRepository(session).add(Bot(slug="robin"))
                wire.flowing.clear()


async def test_the_pool_heals_when_the_network_comes_back(impatient: Database, wire: Wire, acme: UUID) -> None:
    async with asyncio.timeout(_NEVER):

        async def look() -> int:
            async with impatient.tenant(acme) as session:
                return await BotRepository(session).count()

        assert [*await asyncio.gather(look(), look())] == [0, 0]  # both connections of the pool are open
        wire.flowing.clear()
        lost = await asyncio.gather(look(), look(), return_exceptions=True)
        wire.flowing.set()

        assert [type(error) for error in lost] == [ConnectionLostError, ConnectionLostError]
        assert await asyncio.gather(*(look() for _ in range(6))) == [0] * 6


async def test_run_goes_on_where_the_silence_ends(impatient: Database, wire: Wire, acme: UUID) -> None:
    async with asyncio.timeout(_NEVER):
        tries = 0

        async def work(session: ScopedSession) -> int:
            nonlocal tries
            tries += 1
            if tries == 1:
                wire.flowing.clear()
                asyncio.get_running_loop().call_later(1.0, wire.flowing.set)
            return await BotRepository(session).count()

        assert await impatient.run(acme, work) == 0
        assert tries == 2
