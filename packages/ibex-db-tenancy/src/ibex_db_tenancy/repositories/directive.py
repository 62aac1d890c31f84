"""Directives of an organization and their versions."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Select, select

from ibex_db_core import validation
from ibex_db_core.repository import BaseRepository
from ibex_db_tenancy.models import Directive, DirectiveVersion, DirectiveVersionStatus


class DirectiveRepository(BaseRepository[Directive]):
    """Directives of one organization, and their versions."""

    model = Directive

    async def by_name(self, name: str) -> Directive | None:
        """Return the live directive with this name, or None."""
        wanted = validation.check(Directive, "name", name)
        statement = self._select().where(Directive.org_id == self._tenant, Directive.name == wanted)
        return (await self._execute(statement)).scalars().one_or_none()

    async def active_version(self, directive_id: UUID) -> DirectiveVersion | None:
        """Return the one active version of a directive, or None."""
        active = DirectiveVersion.status == DirectiveVersionStatus.ACTIVE
        return (await self._execute(self._versions(directive_id).where(active))).scalars().one_or_none()

    async def history(self, directive_id: UUID) -> Sequence[DirectiveVersion]:
        """Return every version of a directive, oldest first."""
        statement = self._versions(directive_id).order_by(DirectiveVersion.version_number)
        return (await self._execute(statement)).scalars().all()

    def _versions(self, directive_id: UUID) -> Select[DirectiveVersion]:
        return select(DirectiveVersion).where(
            DirectiveVersion.org_id == self._tenant,
            DirectiveVersion.directive_id == validation.uuid("directive_id", directive_id),
        )
