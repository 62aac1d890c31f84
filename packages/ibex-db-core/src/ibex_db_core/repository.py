"""BaseRepository: the verbs that every table has, over statements that always name the organization.

A repository composes statements and flushes; whoever opened the session commits.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Delete,
    Select,
    Uuid,
    bindparam,
    delete,
    exists as sql_exists,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import InstrumentedAttribute, Mapper
from sqlalchemy.orm.interfaces import ORMOption

from ibex_db_core import validation
from ibex_db_core.base import Base
from ibex_db_core.errors import InvalidInputError, NotFoundError
from ibex_db_core.pages import Page, after, encode_cursor, limit_of
from ibex_db_core.scoped import Scoped
from ibex_db_core.tenant import SCOPED
from ibex_db_core.translation import translated

T = TypeVar("T", bound=Base)
X = TypeVar("X")


class BaseRepository(Scoped[T]):
    """One organization's rows of one table.

    Args:
        session: from db.tenant() or db.platform(), or any AsyncSession; on the
            latter the repository sets the tenant before each statement.
        org_id: may be left out in a tenant session.  On a platform session None
            means every organization's rows.

    Raises:
        TenantMissingError: neither the session nor org_id names an organization.
        TenantMismatchError: the session serves another organization.
    """

    # -- reading

    async def get(self, ident: UUID, *, include_deleted: bool = False, options: Sequence[ORMOption] = ()) -> T:
        """Return the row with this id.

        Args:
            ident: the bare id.
            include_deleted: also a soft-deleted row.
            options: loader options, for example ``selectinload(Memory.tags)``.

        Raises:
            NotFoundError: no such row in this organization.

        Example:
            >>> (await agents.get(agent.id)).name
            'Support'
        """
        found = await self.get_or_none(ident, include_deleted=include_deleted, options=options)
        if found is None:
            raise NotFoundError(self.model.__name__, ident)
        return found

    async def get_or_none(
        self, ident: UUID, *, include_deleted: bool = False, options: Sequence[ORMOption] = ()
    ) -> T | None:
        """Return the row with this id, or None.

        Example:
            >>> await agents.get_or_none(org.id) is None  # no agent's id
            True
        """
        ident = validation.uuid("id", ident)
        if not self._narrowed:
            statement = _by_id(self.model, scoped=self._org_id is not None, live=self._soft and not include_deleted)
            parameters = {"org_id": self._org_id, "id": ident}
            if not options:
                rows = await self._rows(statement, parameters)
                return cast("T", rows[0][0]) if rows else None
            found = await self._execute(statement.options(*options), parameters)
        else:  # a repository that narrows its rows has a statement of its own
            statement = self._select(include_deleted=include_deleted).where(self._id == ident).options(*options)
            found = await self._execute(statement)
        return cast("T | None", found.scalars().one_or_none())

    async def get_many(
        self, idents: Iterable[UUID], *, include_deleted: bool = False, options: Sequence[ORMOption] = ()
    ) -> Sequence[T]:
        """Return the rows with these ids, in the order of the ids; those that do not exist are left out.

        Example:
            >>> [found.name for found in await agents.get_many([agent.id, org.id])]
            ['Support']
        """
        wanted = validation.uuids("idents", idents)
        if not wanted:
            return []
        statement = self._select(include_deleted=include_deleted).where(self._id == func.any(wanted))
        rows = (await self._execute(statement.options(*options))).scalars().all()
        found = {cast("UUID", getattr(row, "id")): row for row in rows}  # noqa: B009 - every model has one
        return [found[ident] for ident in wanted if ident in found]

    async def find(
        self,
        *where: ColumnElement[bool],
        limit: int = 100,
        include_deleted: bool = False,
        options: Sequence[ORMOption] = (),
    ) -> Sequence[T]:
        """Return up to ``limit`` (1 to 1000) rows that match, newest first.

        Example:
            >>> [found.email for found in await users.find(User.name == "Owner", limit=10)]
            ['owner@acme.example']
        """
        order = self._order(None)
        statement = self._select(include_deleted=include_deleted).where(*where, *self._indexed(order)).options(*options)
        statement = statement.order_by(*(step.clause for step in order)).limit(limit_of(limit))
        return (await self._execute(statement)).scalars().all()

    async def list(
        self,
        *where: ColumnElement[bool],
        limit: int = 100,
        cursor: str | None = None,
        order_by: InstrumentedAttribute[Any] | None = None,
        descending: bool = False,
        include_deleted: bool = False,
        options: Sequence[ORMOption] = (),
    ) -> Page[T]:
        """Return one page of the rows that match.

        Args:
            where: conditions, for example ``Memory.confidence > 0.5``.
            limit: rows on a page, 1 to 1000.
            cursor: the last page's next_cursor; None for the first page.
            order_by: a column that is never NULL; None is newest first.  The id breaks ties.
            descending: the largest first, where order_by is given.
            include_deleted: also soft-deleted rows.
            options: loader options.

        Raises:
            InvalidInputError: limit out of range, a nullable order, or a cursor of another listing.

        Example:
            >>> _ = await agents.add(Agent(name="Sales", slug="sales"))
            >>> page = await agents.list(order_by=Agent.name, limit=1)
            >>> [found.name for found in page.items]
            ['Sales']
            >>> [found.name for found in (await agents.list(order_by=Agent.name, cursor=page.next_cursor)).items]
            ['Support']
        """
        order = self._order(order_by, descending=descending)
        statement = self._select(include_deleted=include_deleted).where(*where, *self._indexed(order)).options(*options)
        if cursor is not None:
            statement = statement.where(after(order, cursor, self.model))
        statement = statement.order_by(*(step.clause for step in order)).limit(limit_of(limit) + 1)
        rows = (await self._execute(statement)).scalars().all()
        more = len(rows) > limit
        return Page(rows[:limit], encode_cursor(order, rows[limit - 1]) if more else None)

    async def count(self, *where: ColumnElement[bool], include_deleted: bool = False) -> int:
        """Count the rows that match.

        Example:
            >>> await agents.count(Agent.slug == "support")
            1
        """
        statement = (
            select(func.count()).select_from(self.model).where(*self._scope(include_deleted=include_deleted), *where)
        )
        return cast("int", (await self._execute(statement)).scalar_one())

    async def exists(self, *where: ColumnElement[bool], include_deleted: bool = False) -> bool:
        """Tell whether any row matches.

        Example:
            >>> await agents.exists(Agent.slug == "sales")
            False
        """
        inner = select(1).select_from(self.model).where(*self._scope(include_deleted=include_deleted), *where)
        return cast("bool", (await self._execute(select(sql_exists(inner)))).scalar_one())

    async def stream(
        self, *where: ColumnElement[bool], batch: int = 500, include_deleted: bool = False
    ) -> AsyncIterator[T]:
        """Yield every row that matches through a server-side cursor, ``batch`` (1 to 10,000) in memory at a time.

        Example:
            >>> [found.name async for found in agents.stream(batch=100)]
            ['Support']
        """
        validation.integer("batch", batch, 1, 10_000)
        statement = self._select(include_deleted=include_deleted).where(*where)
        await self._ready()
        with translated():
            rows = await self._session.stream_scalars(statement, execution_options={"yield_per": batch, SCOPED: True})
            async for row in rows:
                yield row

    # -- writing

    async def add(self, row: T) -> T:
        """Insert a row, and return it with what the database filled in.

        Raises:
            TenantMismatchError: it names another organization; before any SQL.
            ConflictError: another row holds its unique values.

        Example:
            >>> (await agents.add(Agent(name="Sales", slug="sales"))).org_id == org.id
            True
        """
        self._adopt(row)
        self._session.add(row)
        await self._flush()
        return row

    async def add_many(self, rows: Iterable[T]) -> Sequence[T]:
        """Insert rows, all or none, in batches of one statement.

        Example:
            >>> len(await agents.add_many(Agent(name=f"Bot {n}", slug=f"bot-{n}") for n in range(3)))
            3
        """
        taken = list(rows)
        for row in taken:
            self._adopt(row)
        self._session.add_all(taken)
        await self._flush()
        return taken

    async def update(self, ident: UUID, **changes: object) -> T:
        """Change fields of the row with this id, in one statement, and return it.

        Raises:
            InvalidInputError: no such field, or a value that breaks its rule.
            NotFoundError: no such row in this organization.

        Example:
            >>> (await directives.update(directive.id, description="How to speak.")).description
            'How to speak.'
        """
        values = self._checked(changes)
        ident = validation.uuid("id", ident)
        statement = update(self.model).where(*self._scope(), self._id == ident).values(values)
        return await self._change(statement, ident)

    async def upsert(self, row: T, *, on: str, update: Sequence[str] | None = None) -> T:
        """Insert a row, or change the one that holds its unique values; one race-free statement.

        Args:
            row: not yet in a session; only the fields that were set are written.
            on: the unique constraint or unique index that decides, by name.
            update: the fields to change where the row exists; None: all that were set.

        Raises:
            InvalidInputError: no such unique key, or no such field.

        Example:
            >>> again = Directive(name="Manners", description="How to speak.")
            >>> (await directives.upsert(again, on="directives_org_id_name_live")).id == directive.id
            True
        """
        self._adopt(row)
        mapper = cast("Mapper[Any]", self.model.__mapper__)
        columns = {attr.key: attr.columns[0].name for attr in mapper.column_attrs}
        given = {columns[key]: value for key, value in row.__dict__.items() if key in columns}
        elements, predicate = self._unique_key(on)
        for field in update or ():
            if columns.get(field) not in given:
                raise InvalidInputError("update", field, "must name fields that the row sets")
        keys = {element.name for element in elements if hasattr(element, "name")} | {"id", "org_id", "created_at"}
        changed = [columns[field] for field in update] if update is not None else [c for c in given if c not in keys]
        statement = insert(self._table).values(given)
        statement = statement.on_conflict_do_update(
            index_elements=elements,
            index_where=predicate,
            # An empty SET is no SQL: name the organization again, which also makes RETURNING give the row.
            set_={name: statement.excluded[name] for name in changed} or {"org_id": statement.excluded["org_id"]},
        )
        found = await self._execute(
            select(self.model).from_statement(statement.returning(self.model)), populate_existing=True
        )
        return cast("T", found.scalars().one())

    async def delete(self, ident: UUID) -> None:
        """Delete a row: softly where the model keeps deleted rows, for good otherwise.

        Raises:
            NotFoundError: no such row in this organization.

        Example:
            >>> await directives.delete(directive.id)
            >>> await directives.get_or_none(directive.id) is None
            True
        """
        if not self._soft:
            await self.erase(ident)
            return
        ident = validation.uuid("id", ident)
        statement = update(self.model).where(*self._scope(), self._id == ident).values(deleted_at=func.now())
        await self._change(statement, ident)

    async def restore(self, ident: UUID) -> T:
        """Bring a soft-deleted row back.

        Raises:
            NotFoundError: no deleted row with this id.
            ConflictError: a live row has taken its unique values.

        Example:
            >>> await directives.delete(directive.id)
            >>> (await directives.restore(directive.id)).name
            'Manners'
        """
        if not self._soft:
            raise InvalidInputError("model", self.model.__name__, "keeps no deleted rows, so none can be restored")
        ident = validation.uuid("id", ident)
        gone = self._scope(include_deleted=True)
        statement = update(self.model).where(*gone, self._id == ident, self.model.deleted_at.is_not(None))
        return await self._change(statement.values(deleted_at=None), ident)

    async def erase(self, ident: UUID) -> Mapping[str, int] | None:
        """Delete a row for good, soft-deleted or not, and with it all that belongs to it.

        Returns:
            None here; where a receipt is kept, that: it tells how many rows of each table are gone.

        Raises:
            NotFoundError: no such row in this organization.

        Example:
            >>> gone = Directive(name="Old manners")
            >>> _ = await directives.add(gone)
            >>> await directives.erase(gone.id)
            >>> await directives.exists(Directive.name == "Old manners")
            False
        """
        ident = validation.uuid("id", ident)
        statement: Delete = delete(self.model).where(*self._scope(include_deleted=True), self._id == ident)
        result = await self._execute(statement.returning(self._id))
        if result.scalars().one_or_none() is None:
            raise NotFoundError(self.model.__name__, ident)
        return None


def _by_id(model: type[Any], *, scoped: bool, live: bool) -> Select[Any]:
    """Return SELECT of one row, built once: building it anew cost a get() a third of its time."""
    key = (model, scoped, live)
    if key not in _BY_ID:
        statement = select(model).where(model.id == bindparam("id", type_=Uuid()))
        if scoped:
            statement = statement.where(getattr(model, model.__tenant_column__) == bindparam("org_id", type_=Uuid()))
        _BY_ID[key] = statement.where(model.deleted_at.is_(None)) if live else statement
    return _BY_ID[key]


_BY_ID: dict[tuple[type[Any], bool, bool], Select[Any]] = {}
