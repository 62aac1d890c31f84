"""Agents of an organization."""

from collections.abc import Sequence
from typing import ClassVar
from uuid import UUID

from sqlalchemy import func, select, update

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_core.steps import SteppedRepository
from ibex_db_tenancy.erasure import Erased
from ibex_db_tenancy.models import Agent, AgentStatus, DirectiveVersion, DirectiveVersionStatus
from ibex_db_tenancy.repositories.erasing import Erasing


class AgentRepository(SteppedRepository[Agent], Erasing[Agent]):
    """Agents of one organization: ``agents = AgentRepository(session)``."""

    model = Agent
    steps: ClassVar = {
        AgentStatus.ACTIVE: {AgentStatus.PAUSED, AgentStatus.SUSPENDED, AgentStatus.ARCHIVED},
        AgentStatus.PAUSED: {AgentStatus.ACTIVE, AgentStatus.SUSPENDED, AgentStatus.ARCHIVED},
        AgentStatus.SUSPENDED: {AgentStatus.ACTIVE, AgentStatus.ARCHIVED},
        AgentStatus.ARCHIVED: set[AgentStatus](),
    }

    async def by_slug(self, slug: str) -> Agent | None:
        """Return the live agent with this slug, or None.

        Example:
            >>> bot = await agents.add(Agent(name="Billing", slug="billing"))
            >>> await agents.by_slug("billing") is bot
            True
        """
        wanted = validation.check(Agent, "slug", slug)
        statement = self._select().where(Agent.org_id == self._tenant, Agent.slug == wanted)
        return (await self._execute(statement)).scalars().one_or_none()

    async def following(self, directive_version_id: UUID) -> Sequence[Agent]:
        """Return the live agents that were assigned this directive version, by name.

        Example:
            >>> _ = await agents.assign_directive(agent.id, version.id)
            >>> [agent.slug for agent in await agents.following(version.id)]
            ['support']
        """
        wanted = validation.uuid("directive_version_id", directive_version_id)
        statement = self._select().where(Agent.active_directive_version_id == wanted).order_by(Agent.name, Agent.id)
        return (await self._execute(statement)).scalars().all()

    async def pause(self, ident: UUID) -> Agent:
        """Have an active agent rest; its tokens stay good, so that it may ask whether it is to go on.

        Example:
            >>> (await agents.pause(agent.id)).status.value
            'paused'

        Raises:
            IllegalTransitionError: the agent is not active.
            NotFoundError: no such agent in this organization.
        """
        return await self._step(ident, AgentStatus.PAUSED)

    async def resume(self, ident: UUID) -> Agent:
        """Have a paused or suspended agent work again.

        Example:
            >>> _ = await agents.pause(agent.id)
            >>> (await agents.resume(agent.id)).status.value
            'active'

        Raises:
            IllegalTransitionError: the agent is active already, or archived.
            NotFoundError: no such agent in this organization.
        """
        return await self._step(ident, AgentStatus.ACTIVE)

    async def suspend(self, ident: UUID) -> Agent:
        """Stop an active or paused agent; its tokens open nothing until it is resumed.

        Example:
            >>> (await agents.suspend(agent.id)).status.value
            'suspended'

        Raises:
            IllegalTransitionError: the agent is suspended already, or archived.
            NotFoundError: no such agent in this organization.
        """
        return await self._step(ident, AgentStatus.SUSPENDED)

    async def archive(self, ident: UUID) -> Agent:
        """Retire an agent for good; its memories stay, its tokens open nothing any more.

        Example:
            >>> (await agents.archive(agent.id)).status.value
            'archived'
            >>> await agents.resume(agent.id)
            Traceback (most recent call last):
            ibex_db_core.errors.IllegalTransitionError: agent ... is archived and cannot become active: ...

        Raises:
            IllegalTransitionError: the agent is archived already.
            NotFoundError: no such agent in this organization.
        """
        return await self._step(ident, AgentStatus.ARCHIVED)

    async def touch(self, ident: UUID) -> None:
        """Set last_active_at to now, by the database's clock; waits for nobody.

        Where another transaction holds the row, nothing is written: most likely
        it is touching the agent too.  An Agent that the session has loaded
        keeps what it had read.

        Example:
            >>> await agents.touch(agent.id)
            >>> await session.refresh(agent)
            >>> agent.last_active_at is not None
            True

        Raises:
            NotFoundError: no such agent in this organization.
        """
        ident = validation.uuid("id", ident)
        scope = (*self._scope(), Agent.id == ident)
        free = (
            select(Agent.org_id, Agent.id).where(*scope).with_for_update(key_share=True, skip_locked=True).cte("free")
        )
        touched = (
            update(Agent)
            # The organization by name: of the CTE's column a sharded engine learns nothing, and asks every shard.
            .where(*self._scope(), Agent.org_id == free.c.org_id, Agent.id == free.c.id)
            .values(last_active_at=func.now())
            .cte("touched")
        )
        if (await self._execute(select(Agent.id).where(*scope).add_cte(touched))).scalar_one_or_none() is None:
            raise NotFoundError(Agent.__name__, ident)

    async def assign_directive(self, ident: UUID, directive_version_id: UUID | None) -> Agent:
        """Have an agent follow a directive, through one of its versions; None: it follows none any more.

        What the agent is told then is DirectiveRepository.active_for's to say.

        Example:
            >>> assigned = await agents.assign_directive(agent.id, version.id)
            >>> assigned.active_directive_version_id == version.id
            True

        Raises:
            InvalidInputError: the version is revoked.
            NotFoundError: no such agent or directive version in this organization.
        """
        wanted = validation.check(Agent, "active_directive_version_id", directive_version_id)
        if directive_version_id is not None:
            version = select(DirectiveVersion.status).where(DirectiveVersion.id == wanted)
            if self.org_id is not None:
                version = version.where(DirectiveVersion.org_id == self.org_id)
            status = (await self._execute(version)).scalar_one_or_none()
            if status is None:
                raise NotFoundError(DirectiveVersion.__name__, directive_version_id)
            if status is DirectiveVersionStatus.REVOKED:
                raise InvalidInputError("directive_version_id", directive_version_id, "must not be revoked")
        return await self.update(ident, active_directive_version_id=wanted)

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
