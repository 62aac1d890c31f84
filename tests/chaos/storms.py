"""What breaks: backends, the server, the network, locks, connections."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from death import kill_postmaster
from proxy import Proxy

from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN

_LOGINS = f"('{SERVICE_LOGIN}', '{PLATFORM_LOGIN}')"
_BACKENDS = f"SELECT pid FROM pg_stat_activity WHERE usename IN {_LOGINS}"

_LOST = (
    *(OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError),
    *(asyncpg.InterfaceError, asyncpg.InternalClientError),
)

# Nothing is recovered here that took longer to write.
_UP_AGAIN_SECONDS = 60.0


@dataclass
class Storm:
    """Faults, one after the other, each kind before any comes again.

    Attributes:
        patience: seconds after which a service gives an answer up: a stall is longer.
        hit: how often each; one that found nothing to break is not counted.
    """

    server: EmbeddedPostgres
    database: str
    network: Proxy
    patience: float
    lock_timeout: float
    chance: random.Random
    hit: Counter[str] = field(default_factory=Counter[str])

    @property
    def _every(self) -> Sequence[Callable[[], Awaitable[bool | None]]]:
        return (
            self.terminate_backends,
            self.kill_a_backend,
            self.kill_the_server,
            self.restart_the_server,
            self.cut_the_network,
            self.reset_the_network,
            self.break_off_an_answer,
            self.stall_the_network,
            self.hold_a_lock,
            self.refuse_connections,
        )

    @property
    def missed(self) -> list[str]:
        """Return the faults that have not come to pass yet."""
        return [_named(fault) for fault in self._every if not self.hit[_named(fault)]]

    async def rage(self, seconds: float) -> None:
        """Break things for so long, and each at least once."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        pause = seconds / (3 * len(self._every))
        while True:
            for fault in self.chance.sample(self._every, len(self._every)):
                await asyncio.sleep(self.chance.uniform(0.5, 1.5) * min(pause, 3.0))
                print(f"  {loop.time() - until + seconds:5.1f} s  {_named(fault)}")  # noqa: T201
                if await fault() is not False:
                    self.hit[_named(fault)] += 1
                if loop.time() > until and not self.missed:
                    return

    async def terminate_backends(self) -> bool:
        """End some of the services' backends."""
        ended = 0
        for row in await self._ask(_BACKENDS):
            if self.chance.random() < 0.5:
                [found] = await self._ask("SELECT pg_terminate_backend($1)", row["pid"])
                ended += bool(found[0])
        return ended > 0

    async def kill_a_backend(self) -> bool:
        """Kill one in the middle of its work: Postgres ends all the others, and recovers from its log."""
        for _ in range(200):
            if found := await self._ask(f"{_BACKENDS} AND state = 'active' LIMIT 1"):
                with suppress(ProcessLookupError):  # it may have ended on its own meanwhile
                    os.kill(found[0]["pid"], signal.SIGKILL)
                    return True
        return False

    async def kill_the_server(self) -> None:
        """Kill the postmaster, and start another."""
        folder = Path(str((await self._ask("SHOW data_directory"))[0][0]))
        await kill_postmaster(folder)
        await asyncio.to_thread(self.server.start)

    async def restart_the_server(self) -> None:
        """Stop it as a deployment does, and start it."""
        assert await asyncio.to_thread(self.server.stop_and_wait), "somebody else uses the server"
        await asyncio.to_thread(self.server.start)

    async def cut_the_network(self) -> None:
        """Close what goes through the proxy."""
        self.network.cut()

    async def reset_the_network(self) -> None:
        """Reset what goes through the proxy."""
        self.network.reset()

    async def break_off_an_answer(self) -> None:
        """Reset it in the middle of an answer."""
        self.network.answers_passed = self.chance.randint(1, 2000)

    async def stall_the_network(self) -> None:
        """Let nothing pass the proxy, for longer than a service waits."""
        self.network.stall()
        await asyncio.sleep(self.patience * 1.2)
        self.network.resume()

    async def hold_a_lock(self) -> None:
        """Hold the memories' table for longer than lock_timeout; once more where it was broken before it had it."""
        while True:
            admin = await self._admin()
            try:
                async with admin.transaction():
                    await admin.execute("LOCK TABLE ibex_core.memories IN EXCLUSIVE MODE")
                    await asyncio.sleep(self.lock_timeout * 1.5)
            except (asyncpg.DeadlockDetectedError, *_LOST):
                await asyncio.sleep(0.1)
            else:
                return
            finally:
                admin.terminate()

    async def refuse_connections(self) -> None:
        """Give the service's login fewer connections than it needs, and end those that it has."""
        await self._ask(f"ALTER ROLE {SERVICE_LOGIN} CONNECTION LIMIT 2")
        await self._ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IN {_LOGINS}")
        await asyncio.sleep(1.0)
        await self._ask(f"ALTER ROLE {SERVICE_LOGIN} CONNECTION LIMIT -1")

    async def _ask(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask as the superuser, again where the server just ends or recovers."""
        while True:
            admin = await self._admin()
            try:
                found: list[asyncpg.Record] = await admin.fetch(query, *arguments)
            except _LOST:
                await asyncio.sleep(0.1)
            else:
                return found
            finally:
                admin.terminate()

    async def _admin(self) -> asyncpg.Connection:
        """Connect as the superuser, who may have to wait for the server to recover from the fault before."""
        async with asyncio.timeout(_UP_AGAIN_SECONDS):
            while True:
                try:
                    return await asyncpg.connect(self.server.url(self.database))
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.1)


def _named(fault: Callable[[], Awaitable[bool | None]]) -> str:
    return fault.__name__.replace("_", " ")
