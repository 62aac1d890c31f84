"""Agents of an organization."""

from collections.abc import Sequence
from uuid import UUID

from ibex_db_core import validation
from ibex_db_tenancy.erasure import Erased
from ibex_db_tenancy.models import Agent
from ibex_db_tenancy.repositories.erasing import Erasing


class AgentRepository(Erasing[Agent]):
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

    async def erase(self, ident: UUID, *, reason: str | None = None, actor: UUID | None = None) -> Erased:
        """Erase an agent with its sessions, checkpoints, tokens and memories; return the receipt that is kept.

        Erased memories leave tombstones: import_() refuses them.

        Args:
            ident: the agent.
            reason: for the receipt.
            actor: who erases it, for the receipt.

        Example:
            >>> gone = await agents.erase(agent.id, reason="contract ended")
            >>> gone.subject_kind, gone["agents"]
            ('agent', 1)

        Raises:
            NotFoundError: no such agent in this organization.
        """
        return await super().erase(ident, reason=reason, actor=actor)
