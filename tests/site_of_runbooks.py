"""What an operator has when a page of docs/operations begins: a server, a migrated database with rows, three logins."""

import asyncio
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from sqlalchemy import URL, make_url

from ibex_db import Agent, AgentRepository, Database, MemoryRepository, OrganizationRepository, SessionRepository
from ibex_db_core.embedded import EmbeddedPostgres
from ibex_db_core.provisioning import Cluster

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
MEMORIES = 12
OVERDUE = 5
"""Of acme's memories, how many have expired and were not swept."""

_TEMPLATE = "runbooks"
_LOGINS = {
    "IBEX_DATABASE_URL": "memory_service",
    "IBEX_PLATFORM_URL": "memory_platform",
    "IBEX_OWNER_URL": "memory_owner",
}


@dataclass(frozen=True)
class Site:
    """A server whose logins were made with the README's SQL.

    Attributes:
        admin: the superuser's address, over TCP.
        password: of every login.
    """

    server: EmbeddedPostgres
    admin: URL
    password: str

    @classmethod
    def on(cls, server: EmbeddedPostgres) -> "Site":
        """Migrate a database, make the logins, and fill it."""
        site = cls(server, make_url(server.url(tcp=True)), secrets.token_hex(8))
        asyncio.run(site._prepare())
        return site

    def database(self, name: str) -> "Site":
        """Make a copy of the database."""
        asyncio.run(self._cluster.create_database(name, template=_TEMPLATE))
        return self

    def empty(self, name: str) -> "Site":
        """Make a migrated database that nobody has written to; the roles are there."""
        asyncio.run(self._empty(name))
        return self

    def superuser(self, database: str) -> str:
        """Return the address of a database for the superuser."""
        return self.admin.set(database=database).render_as_string(hide_password=False)

    def variables(self, database: str) -> dict[str, str]:
        """Return the environment of somebody who may be each of the three."""
        return {name: self._login(database, login) for name, login in _LOGINS.items()}

    @property
    def _cluster(self) -> Cluster:
        return Cluster(self.admin)

    def _login(self, database: str, login: str) -> str:
        address = self.admin.set(username=login, password=self.password, database=database)
        return address.render_as_string(hide_password=False)

    def _open(self, database: str) -> Database:
        urls = self.variables(database)
        return Database(
            urls["IBEX_DATABASE_URL"], platform_url=urls["IBEX_PLATFORM_URL"], owner_url=self.superuser(database)
        )

    async def _prepare(self) -> None:
        await self._empty(_TEMPLATE)
        found = re.search(r"^```sql\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
        assert found, "the README makes the logins"
        admin = await asyncpg.connect(self.superuser(_TEMPLATE))
        await admin.execute(found[1].replace("'...'", f"'{self.password}'"))
        await admin.close()
        async with self._open(_TEMPLATE) as db:
            for slug in ("acme", "globex"):
                await _fill(db, slug)

    async def _empty(self, name: str) -> None:
        await self._cluster.create_database(name)
        async with self._open(name) as db:
            await db.upgrade()


async def _fill(db: Database, slug: str) -> None:
    now = datetime.now(UTC)
    async with db.platform(reason="runbooks: sign-up") as platform:
        org = await OrganizationRepository(platform).create(name=slug.title(), slug=slug)
    async with db.tenant(org.id) as session:
        agent = await AgentRepository(session).add(Agent(name="Support", slug="support"))
        memories, sessions = MemoryRepository(session), SessionRepository(session)
        for number in range(MEMORIES):
            await memories.remember(
                agent_id=agent.id,
                content=f"{slug} wants invoice {number} on paper.",
                category="preference",
                embedding=[float(number == place) for place in range(384)],
                tags=["invoice"],
                expires_at=now - timedelta(days=2) if number < OVERDUE else None,
            )
        run = await sessions.start(agent_id=agent.id)
        for step in range(3):
            await sessions.checkpoint(run.id, {"step": step})
