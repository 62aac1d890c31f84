"""Directives of an organization and their versions."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast
from uuid import UUID, uuid4

from sqlalchemy import ARRAY, ColumnElement, Select, Table, Uuid, and_, case, func, literal, or_, select
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_core.repository import BaseRepository
from ibex_db_core.savepoints import note_rows
from ibex_db_core.steps import SteppedRepository, illegal
from ibex_db_tenancy.models import Agent, Directive, DirectiveVersion, DirectiveVersionStatus
from ibex_db_tenancy.models.directive import VERSION_STEPS, content_hash

_Status = DirectiveVersionStatus


class _VersionRepository(SteppedRepository[DirectiveVersion]):
    """Versions of live directives; their verbs are DirectiveRepository's, for most concern the whole directive."""

    model = DirectiveVersion
    steps: ClassVar = VERSION_STEPS

    async def step(self, ident: UUID, to: DirectiveVersionStatus, **values: object) -> DirectiveVersion:
        return await self._step(ident, to, values)

    def _scope(self, *, include_deleted: bool = False) -> Sequence[ColumnElement[bool]]:
        live = select(Directive.id).where(
            Directive.org_id == DirectiveVersion.org_id,
            Directive.id == DirectiveVersion.directive_id,
            Directive.deleted_at.is_(None),
        )
        return [*super()._scope(include_deleted=include_deleted), live.exists()]


class DirectiveRepository(BaseRepository[Directive]):
    """Directives of one organization, and their versions: ``directives = DirectiveRepository(session)``.

    A version goes from draft to review to active, and is deprecated when
    another one of its directive is activated.  Every verb that numbers or
    activates locks the directive first, so they take turns: no number twice,
    never two active.
    """

    model = Directive

    def __init__(self, session: AsyncSession, org_id: UUID | None = None) -> None:
        super().__init__(session, org_id)
        self._of_versions = _VersionRepository(session, org_id)

    # -- reading

    async def by_name(self, name: str) -> Directive | None:
        """Return the live directive with this name, or None.

        Example:
            >>> await directives.by_name("Manners") is directive
            True
        """
        wanted = validation.check(Directive, "name", name)
        statement = self._select().where(Directive.org_id == self._tenant, Directive.name == wanted)
        return (await self._execute(statement)).scalars().one_or_none()

    async def active_version(self, directive_id: UUID) -> DirectiveVersion | None:
        """Return the one active version of a directive, or None.

        Example:
            >>> await directives.active_version(directive.id)
            >>> _ = await directives.activate(version.id)
            >>> (await directives.active_version(directive.id)).content
            'Be kind.'
        """
        active = DirectiveVersion.status == _Status.ACTIVE
        return (await self._execute(self._versions(directive_id).where(active))).scalars().one_or_none()

    async def history(self, directive_id: UUID) -> Sequence[DirectiveVersion]:
        """Return every version of a directive, oldest first.

        Example:
            >>> _ = await directives.draft(directive.id, content="Be very kind.")
            >>> [(one.version_number, one.content) for one in await directives.history(directive.id)]
            [(1, 'Be kind.'), (2, 'Be very kind.')]

        Raises:
            NotFoundError: no such directive in this organization; one that was deleted has its history.
        """
        statement = self._versions(directive_id).order_by(DirectiveVersion.version_number)
        versions = (await self._execute(statement)).scalars().all()
        if not versions:
            await self.get(directive_id, include_deleted=True)
        return versions

    async def active_for(self, agent_id: UUID) -> DirectiveVersion | None:
        """Return what an agent is to follow now, in one query.

        The agent's version names the directive, and the directive's active
        version is the answer: activating a new one, or rolling back, moves
        every agent at once, and none is written.  There is one exception: a version that has
        never been active (a draft, or one in review) is the answer
        itself, so that one agent can try what the others do not see yet.  A
        revoked text is never the answer.

        Returns:
            None where the agent follows no directive, or one that has no active version or is deleted.

        Example:
            >>> _ = await directives.activate(version.id)
            >>> _ = await agents.assign_directive(agent.id, version.id)
            >>> better = await directives.draft(directive.id, content="Be very kind.")
            >>> (await directives.active_for(agent.id)).content
            'Be kind.'
            >>> _ = await directives.activate(better.id)
            >>> (await directives.active_for(agent.id)).content
            'Be very kind.'

        Raises:
            NotFoundError: no such agent in this organization.
        """
        ident = validation.uuid("agent_id", agent_id)
        assigned = aliased(DirectiveVersion, name="assigned")
        upcoming = assigned.status.in_([_Status.DRAFT, _Status.REVIEW])
        told = and_(
            DirectiveVersion.org_id == assigned.org_id,
            DirectiveVersion.directive_id == assigned.directive_id,
            case((upcoming, DirectiveVersion.id == assigned.id), else_=DirectiveVersion.status == _Status.ACTIVE),
        )
        statement = (
            select(Agent.id, DirectiveVersion)
            .select_from(Agent)
            .outerjoin(
                assigned, and_(assigned.org_id == Agent.org_id, assigned.id == Agent.active_directive_version_id)
            )
            .outerjoin(
                Directive,
                and_(
                    Directive.org_id == assigned.org_id,
                    Directive.id == assigned.directive_id,
                    Directive.deleted_at.is_(None),
                ),
            )
            .outerjoin(DirectiveVersion, and_(told, Directive.id.is_not(None)))
            .where(Agent.org_id == self._tenant, Agent.id == ident, Agent.deleted_at.is_(None))
        )
        row = (await self._execute(statement)).one_or_none()
        if row is None:
            raise NotFoundError(Agent.__name__, ident)
        return cast("DirectiveVersion | None", row[1])

    # -- writing

    async def draft(
        self,
        directive_id: UUID,
        *,
        content: str,
        change_summary: str | None = None,
        parent_version_id: UUID | None = None,
        created_by: UUID | None = None,
    ) -> DirectiveVersion:
        """Write a new version under the directive's next number; it is told to nobody yet.

        Args:
            directive_id: whose version.
            content: 1 to 1,000,000 characters; never changed again.
            change_summary: what is new, for those who review it.
            parent_version_id: the version that it was edited from; None: the active one, or else the newest.
            created_by: the user who wrote it.

        Example:
            >>> better = await directives.draft(directive.id, content="Be very kind.", change_summary="More so.")
            >>> better.version_number, better.parent_version_id == version.id, better.status.value
            (2, True, 'draft')

        Raises:
            InvalidInputError: blank or too long, or the parent is another directive's.
            NotFoundError: no such live directive in this organization.
            ForeignKeyError: no such user.
        """
        directive = await self._hold(Directive.id == validation.uuid("directive_id", directive_id))
        if directive is None:
            raise NotFoundError(Directive.__name__, directive_id)
        values = {
            field: validation.check(DirectiveVersion, field, value)
            for field, value in (
                ("content", content),
                ("change_summary", change_summary),
                ("parent_version_id", parent_version_id),
                ("created_by", created_by),
            )
        }
        values["content_hash"] = content_hash(content)
        versions = self._versions(directive)
        if parent_version_id is not None and await self._none(
            versions.where(DirectiveVersion.id == values["parent_version_id"])
        ):
            raise InvalidInputError("parent_version_id", parent_version_id, "must be a version of this directive")
        values |= {"org_id": self._tenant, "directive_id": directive, "id": uuid4()}
        table = cast("Table", DirectiveVersion.__table__)
        given: dict[str, ColumnElement[Any]] = {
            name: literal(value, table.c[name].type) for name, value in values.items()
        }
        # A statement after the lock, so that it sees what those before us have numbered.  FROM, not sub-selects
        # among VALUES, which a sharded engine refuses.
        given["version_number"] = func.coalesce(func.max(DirectiveVersion.version_number), 0) + 1
        if parent_version_id is None:
            newest_first = ((DirectiveVersion.status == _Status.ACTIVE).desc(), DirectiveVersion.version_number.desc())
            ids = func.array_agg(aggregate_order_by(DirectiveVersion.id, *newest_first), type_=ARRAY(Uuid()))
            given["parent_version_id"] = ids[1]
        statement = insert(DirectiveVersion).from_select(
            list(given), versions.with_only_columns(*given.values()), include_defaults=False
        )
        made = await self._execute(select(DirectiveVersion).from_statement(statement.returning(DirectiveVersion)))
        version = cast("DirectiveVersion", made.scalars().one())
        note_rows(self._session, [[version]], made=True)
        return version

    async def submit(self, version_id: UUID) -> DirectiveVersion:
        """Hand a draft in for review.

        Example:
            >>> (await directives.submit(version.id)).status.value
            'review'

        Raises:
            IllegalTransitionError: it is not a draft.
            NotFoundError: no such version of a live directive in this organization.
        """
        return await self._of_versions.step(version_id, _Status.REVIEW)

    async def activate(self, version_id: UUID) -> DirectiveVersion:
        """Make a version the active one of its directive; the one before is deprecated in the same moment.

        Of two that activate two versions at once the later wins; of two that
        activate the same, the later is told.

        Example:
            >>> _ = await directives.activate(version.id)
            >>> better = await directives.draft(directive.id, content="Be very kind.")
            >>> _ = await directives.submit(better.id)
            >>> (await directives.activate(better.id)).status.value, version.status.value
            ('active', 'deprecated')

        Raises:
            IllegalTransitionError: it is active already, or revoked.
            NotFoundError: no such version of a live directive in this organization.
        """
        ident = validation.uuid("version_id", version_id)
        own = select(DirectiveVersion.directive_id).where(
            DirectiveVersion.org_id == self._tenant, DirectiveVersion.id == ident
        )
        directive = await self._hold(Directive.id == own.scalar_subquery())
        if directive is None:
            raise NotFoundError(DirectiveVersion.__name__, ident)
        return await self._activate(directive, ident)

    async def roll_back(self, directive_id: UUID, *, to: int | None = None) -> DirectiveVersion:
        """Activate an older version again.

        Args:
            directive_id: which directive.
            to: the number of a version that has been active before; None: the newest of those that are
                older than the active one, or the newest of all where none is active.

        Example:
            >>> _ = await directives.activate(version.id)
            >>> worse = await directives.draft(directive.id, content="Be rude.")
            >>> _ = await directives.activate(worse.id)
            >>> (await directives.roll_back(directive.id)).content
            'Be kind.'

        Raises:
            IllegalTransitionError: the version named was never active, is active now, or is revoked.
            NotFoundError: no such directive in this organization, or no version to roll back to.
        """
        directive = await self._hold(Directive.id == validation.uuid("directive_id", directive_id))
        if directive is None:
            raise NotFoundError(Directive.__name__, directive_id)
        versions = self._versions(directive)
        if to is not None:
            wanted = versions.where(
                DirectiveVersion.version_number == validation.check(DirectiveVersion, "version_number", to)
            )
        else:
            number = DirectiveVersion.version_number
            active = versions.with_only_columns(number).where(DirectiveVersion.status == _Status.ACTIVE)
            older = number < func.coalesce(active.scalar_subquery(), 2**31 - 1)
            wanted = versions.where(DirectiveVersion.status == _Status.DEPRECATED, older)
            wanted = wanted.order_by(number.desc()).limit(1)
        found = (await self._execute(wanted, populate_existing=True)).scalars().one_or_none()
        if found is None:
            raise NotFoundError(DirectiveVersion.__name__, to or "that was active before")
        if found.status in {_Status.DRAFT, _Status.REVIEW}:
            raise illegal(DirectiveVersion, found.id, found.status, _Status.ACTIVE, VERSION_STEPS)
        return await self._activate(directive, found.id)

    async def revoke(self, version_id: UUID) -> DirectiveVersion:
        """Take a version back for good; nobody is told it any more, and an active one leaves its directive without.

        Example:
            >>> _ = await directives.activate(version.id)
            >>> (await directives.revoke(version.id)).status.value
            'revoked'
            >>> await directives.activate(version.id)
            Traceback (most recent call last):
            ibex_db_core.errors.IllegalTransitionError: directive version ... is revoked and cannot become active: ...

        Raises:
            IllegalTransitionError: it is revoked already.
            NotFoundError: no such version of a live directive in this organization.
        """
        return await self._of_versions.step(version_id, _Status.REVOKED)

    # -- inside

    def _versions(self, directive_id: UUID) -> Select[DirectiveVersion]:
        return select(DirectiveVersion).where(
            DirectiveVersion.org_id == self._tenant,
            DirectiveVersion.directive_id == validation.uuid("directive_id", directive_id),
        )

    async def _none(self, statement: Select[DirectiveVersion]) -> bool:
        return (await self._execute(statement.with_only_columns(DirectiveVersion.id))).scalar_one_or_none() is None

    async def _hold(self, which: ColumnElement[bool]) -> UUID | None:
        """Lock a live directive until the transaction ends, and return its id."""
        statement = select(Directive.id).where(Directive.org_id == self._tenant, *self._scope(), which)
        return cast(
            "UUID | None", (await self._execute(statement.with_for_update(key_share=True))).scalar_one_or_none()
        )

    async def _activate(self, directive_id: UUID, ident: UUID) -> DirectiveVersion:
        """Activate a version of a directive that is held; checked first, so that an error has changed nothing."""
        concerned = or_(DirectiveVersion.id == ident, DirectiveVersion.status == _Status.ACTIVE)
        statement = self._versions(directive_id).where(concerned).with_for_update(key_share=True)
        versions = (await self._execute(statement, populate_existing=True)).scalars().all()
        new = next(version for version in versions if version.id == ident)
        if _Status.ACTIVE not in VERSION_STEPS[new.status]:
            raise illegal(DirectiveVersion, ident, new.status, _Status.ACTIVE, VERSION_STEPS)
        # One after the other: the unique index looks at every row that is written, not at the end of the statement.
        for old in versions:
            if old is not new:
                await self._of_versions.step(old.id, _Status.DEPRECATED)
        return await self._of_versions.step(ident, _Status.ACTIVE, activated_at=func.now())
