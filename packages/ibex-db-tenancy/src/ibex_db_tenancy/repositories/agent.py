"""Agents of an organization."""

from collections.abc import Sequence
from uuid import UUID

from ibex_db_core import validation
from ibex_db_core.repository import BaseRepository
from ibex_db_tenancy.models import Agent


class AgentRepository(BaseRepository[Agent]):
    """Agents of one organization."""

    model = Agent

    async def by_slug(self, slug: str) -> Agent | None:
        """Return the live agent with this slug, or None."""
        wanted = validation.check(Agent, "slug", slug)
        statement = self._select().where(Agent.org_id == self._tenant, Agent.slug == wanted)
        return (await self._execute(statement)).scalars().one_or_none()

    async def following(self, directive_version_id: UUID) -> Sequence[Agent]:
        """Return the live agents that follow this directive version, by name."""
        wanted = validation.uuid("directive_version_id", directive_version_id)
        statement = self._select().where(Agent.active_directive_version_id == wanted).order_by(Agent.name, Agent.id)
        return (await self._execute(statement)).scalars().all()
