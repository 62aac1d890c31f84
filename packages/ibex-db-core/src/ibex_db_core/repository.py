"""BaseRepository: the verbs that every table has, over statements that always name the organization.

A repository composes statements and flushes; whoever opened the session commits.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    Delete,
    Executable,
    Result,
    Select,
    Table,
    TextClause,
    UniqueConstraint,
    Update,
    Uuid,
    bindparam,
    delete,
    exists as sql_exists,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, Mapper
from sqlalchemy.orm.interfaces import ORMOption

from ibex_db_core import validation
from ibex_db_core.base import Base
from ibex_db_core.errors import InvalidInputError, NotFoundError, TenantMismatchError, TenantMissingError
from ibex_db_core.pages import Order, Page, after, encode_cursor, limit_of
from ibex_db_core.tenant import SCOPED, Guard, ScopedSession
from ibex_db_core.translation import name_of, translated

T = TypeVar("T", bound=Base)
X = TypeVar("X")


class BaseRepository(Generic[T]):
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

    model: ClassVar[type[Any]]
    _narrowed: ClassVar[bool] = False
    """A subclass adds conditions of its own to every statement."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        cls._narrowed = cls._narrowed or not {"_scope", "_select"}.isdisjoint(cls.__dict__)

    def __init__(self, session: AsyncSession, org_id: UUID | None = None) -> None:
        if org_id is not None:
            org_id = validation.uuid("org_id", org_id)
        self._guard: Guard | None = None
        if isinstance(session, ScopedSession):
            if session.org_id is not None:
                if org_id is not None and org_id != session.org_id:
                    raise TenantMismatchError(session.org_id, org_id, "repository")
                org_id = session.org_id
        elif org_id is None:
            raise TenantMissingError(
                f"{type(self).__name__} on a plain AsyncSession needs org_id: {type(self).__name__}(session, org_id)"
            )
        else:
            self._guard = Guard.of(session, org_id)
        self._session = session
        self._org_id = org_id

    @property
    def session(self) -> AsyncSession:
        """The session that this repository works in."""
        return self._session

    @property
    def org_id(self) -> UUID | None:
        """The organization; None on a platform session that serves all."""
        return self._org_id

    # -- reading

    async def get(self, ident: UUID, *, include_deleted: bool = False, options: Sequence[ORMOption] = ()) -> T:
        """Return the row with this id.

        Args:
            ident: the bare id.
            include_deleted: also a soft-deleted row.
            options: loader options, for example ``selectinload(Memory.tags)``.

        Raises:
            NotFoundError: no such row in this organization.
        """
        found = await self.get_or_none(ident, include_deleted=include_deleted, options=options)
        if found is None:
            raise NotFoundError(self.model.__name__, ident)
        return found

    async def get_or_none(
        self, ident: UUID, *, include_deleted: bool = False, options: Sequence[ORMOption] = ()
    ) -> T | None:
        """Return the row with this id, or None."""
        ident = validation.uuid("id", ident)
        parameters: dict[str, object] | None = None
        if not self._narrowed:
            statement = _by_id(self.model, scoped=self._org_id is not None, live=self._soft and not include_deleted)
            parameters = {"org_id": self._org_id, "id": ident}
        else:  # a repository that narrows its rows has a statement of its own
            statement = self._select(include_deleted=include_deleted).where(self._id == ident)
        if options:
            statement = statement.options(*options)
        return cast("T | None", (await self._execute(statement, parameters)).scalars().one_or_none())

    async def get_many(
        self, idents: Iterable[UUID], *, include_deleted: bool = False, options: Sequence[ORMOption] = ()
    ) -> Sequence[T]:
        """Return the rows with these ids, in the order of the ids; those that do not exist are left out."""
        wanted = [validation.uuid("id", ident) for ident in idents]
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
        """Return up to ``limit`` (1 to 1000) rows that match, newest first."""
        statement = self._select(include_deleted=include_deleted).where(*where).options(*options)
        statement = statement.order_by(*(step.clause for step in self._order(None))).limit(limit_of(limit))
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
        """
        order = self._order(order_by, descending=descending)
        statement = self._select(include_deleted=include_deleted).where(*where).options(*options)
        if cursor is not None:
            statement = statement.where(after(order, cursor, self.model))
        statement = statement.order_by(*(step.clause for step in order)).limit(limit_of(limit) + 1)
        rows = (await self._execute(statement)).scalars().all()
        more = len(rows) > limit
        return Page(rows[:limit], encode_cursor(order, rows[limit - 1]) if more else None)

    async def count(self, *where: ColumnElement[bool], include_deleted: bool = False) -> int:
        """Count the rows that match."""
        statement = (
            select(func.count()).select_from(self.model).where(*self._scope(include_deleted=include_deleted), *where)
        )
        return cast("int", (await self._execute(statement)).scalar_one())

    async def exists(self, *where: ColumnElement[bool], include_deleted: bool = False) -> bool:
        """Tell whether any row matches."""
        inner = select(1).select_from(self.model).where(*self._scope(include_deleted=include_deleted), *where)
        return cast("bool", (await self._execute(select(sql_exists(inner)))).scalar_one())

    async def stream(
        self, *where: ColumnElement[bool], batch: int = 500, include_deleted: bool = False
    ) -> AsyncIterator[T]:
        """Yield every row that matches through a server-side cursor, ``batch`` (1 to 10,000) in memory at a time."""
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
        """
        self._adopt(row)
        self._session.add(row)
        await self._flush()
        return row

    async def add_many(self, rows: Iterable[T]) -> Sequence[T]:
        """Insert rows, all or none, in batches of one statement."""
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
        """
        ident = validation.uuid("id", ident)
        statement: Delete = delete(self.model).where(*self._scope(include_deleted=True), self._id == ident)
        result = await self._execute(statement.returning(self._id))
        if result.scalars().one_or_none() is None:
            raise NotFoundError(self.model.__name__, ident)
        return None

    # -- for subclasses

    @property
    def _table(self) -> Table:
        return cast("Table", self.model.__table__)

    @property
    def _id(self) -> ColumnElement[UUID]:
        return cast("ColumnElement[UUID]", self.model.id)

    @property
    def _soft(self) -> bool:
        return "deleted_at" in self._table.columns

    @property
    def _tenant(self) -> UUID:
        """The organization, where a verb cannot do without one.

        Raises:
            TenantMissingError: a platform session that serves all.
        """
        if self._org_id is None:
            raise TenantMissingError(f"name the organization: {type(self).__name__}(session, org_id)")
        return self._org_id

    def _checked(self, changes: dict[str, object]) -> dict[str, object]:
        """Return the values of an update as they will be stored, and what follows from them."""
        if not changes:
            raise InvalidInputError("changes", changes, "must name at least one field")
        fixed = {"id", "org_id", "created_at", "updated_at"} & changes.keys()
        if fixed:
            name = min(fixed)
            raise InvalidInputError(name, changes[name], "cannot be changed")
        required = _required(self.model)
        for name, value in changes.items():
            if value is None and name in required:
                raise InvalidInputError(name, None, "is required: leave it out to keep what it is")
        return self._complete({field: validation.check(self.model, field, value) for field, value in changes.items()})

    def _complete(self, values: dict[str, object]) -> dict[str, object]:
        """Add to checked changes what follows from them, for example the hash of a new content."""
        return values

    def _scope(self, *, include_deleted: bool = False) -> Sequence[ColumnElement[bool]]:
        """Return the conditions that every statement carries: the organization, and not deleted."""
        conditions: list[ColumnElement[bool]] = []
        if self._org_id is not None:
            conditions.append(getattr(self.model, self.model.__tenant_column__) == self._org_id)
        if self._soft and not include_deleted:
            conditions.append(self.model.deleted_at.is_(None))
        return conditions

    def _select(self, *, include_deleted: bool = False) -> Select[T]:
        """Return SELECT of this organization's rows."""
        return cast("Select[T]", select(self.model).where(*self._scope(include_deleted=include_deleted)))

    def _order(self, column: InstrumentedAttribute[Any] | None, *, descending: bool = False) -> Sequence[Order]:
        if column is None and hasattr(self.model, "created_at"):
            column, descending = cast("InstrumentedAttribute[Any]", self.model.created_at), True
        by_id = Order("id", cast("ColumnElement[object]", self._id), descending)
        if column is None or column.key == "id":
            return [by_id]
        attribute = cast("Mapper[Any]", self.model.__mapper__).column_attrs.get(column.key)
        if attribute is None or cast("Column[object]", attribute.columns[0]).nullable:
            raise InvalidInputError("order_by", column.key, f"must be a column of {self.model.__name__}, never NULL")
        return [Order(column.key, cast("ColumnElement[object]", column), descending), by_id]

    async def _ready(self) -> None:
        """Have the tenant set, on a session that is not ours; ours carry it in BEGIN."""
        if self._guard is not None:
            await self._guard.ensure()

    async def _execute(
        self, statement: Executable, parameters: Any = None, **options: object
    ) -> Result[*tuple[Any, ...]]:
        """Run a statement that already names the organization."""
        if isinstance(statement, TextClause):
            await self._flush()  # as the session itself does before ORM statements
        await self._ready()
        with translated():
            return await self._session.execute(statement, parameters, execution_options={SCOPED: True, **options})

    async def _flush(self) -> None:
        await self._ready()
        with translated():
            await self._session.flush()

    def _adopt(self, row: T) -> None:
        """Check that a row is of this model and of this organization, and fill the organization in."""
        if not isinstance(row, self.model):
            raise InvalidInputError("row", row, f"must be a {self.model.__name__}")
        column = self.model.__tenant_column__
        if self._org_id is None or column is None:
            return
        found = row.__dict__.get(column)
        if found is None and column == "org_id":
            setattr(row, column, self._org_id)
        elif found is not None and found != self._org_id:
            raise TenantMismatchError(self._org_id, found, self.model.__name__)

    async def _change(self, statement: Update, ident: UUID) -> T:
        found = await self._execute(
            statement.returning(self.model).execution_options(synchronize_session=False), populate_existing=True
        )
        row = cast("T | None", found.scalars().one_or_none())
        if row is None:
            raise NotFoundError(self.model.__name__, ident)
        return row

    def _unique_key(self, name: str) -> tuple[Sequence[Any], ColumnElement[bool] | None]:
        """Return the elements and the predicate of a unique constraint or index."""
        table = self._table
        for index in table.indexes:
            if index.unique and index.name == name:
                return list(index.expressions), cast(
                    "ColumnElement[bool] | None", index.dialect_options["postgresql"].get("where")
                )
        for rule in table.constraints:
            if isinstance(rule, UniqueConstraint) and name_of(rule) == name:
                return list(rule.columns), None
        known = sorted(
            [str(i.name) for i in table.indexes if i.unique]
            + [name_of(r) for r in table.constraints if isinstance(r, UniqueConstraint)]
        )
        raise InvalidInputError("on", name, f"must be a unique key of {table.name}: {', '.join(known)}")


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


def _required(model: type[Base]) -> frozenset[str]:
    """Return the attributes that are never NULL; expressions are none."""
    return frozenset(
        attribute.key
        for attribute in model.__mapper__.column_attrs
        if isinstance(attribute.columns[0], Column) and not cast("Column[object]", attribute.columns[0]).nullable
    )
