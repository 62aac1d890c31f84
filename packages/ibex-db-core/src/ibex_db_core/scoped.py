"""What every repository stands on: statements that name the organization, run in a session that is bound to it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    Executable,
    Result,
    Select,
    Table,
    TextClause,
    UniqueConstraint,
    Update,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, Mapper

from ibex_db_core import direct, validation
from ibex_db_core.base import Base
from ibex_db_core.errors import InvalidInputError, NotFoundError, TenantMismatchError, TenantMissingError
from ibex_db_core.pages import Order
from ibex_db_core.savepoints import inside, note_rows
from ibex_db_core.sharding import LOOK, is_sharded, note_sharded
from ibex_db_core.tenant import SCOPED, Guard, ScopedSession, SyncScopedSession, is_dirty, watch_of
from ibex_db_core.translation import name_of, translate, translated

if TYPE_CHECKING:
    from ibex_db_core.telemetry.watch import Watch

Check = Callable[[Any, "Watch", Any, Mapping[str, Any]], Awaitable[None]]

T = TypeVar("T", bound=Base)
X = TypeVar("X")


class Scoped(Generic[T]):
    """One organization's rows of one table, without the verbs: see BaseRepository."""

    model: ClassVar[type[Any]]
    _narrowed: ClassVar[bool] = False
    """A subclass adds conditions of its own to every statement."""
    _checks: ClassVar[Mapping[str, Check]] = MappingProxyType({})
    """What telemetry does after a verb of this name has returned: given the repository, the result, the arguments."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        cls._narrowed = cls._narrowed or not {"_scope", "_select"}.isdisjoint(cls.__dict__)

    def __init__(self, session: AsyncSession, org_id: UUID | None = None) -> None:
        if org_id is not None:
            org_id = validation.uuid("org_id", org_id)
        self._guard: Guard | None = None
        if not isinstance(session, AsyncSession):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise InvalidInputError(
                "session",
                type(session).__name__,
                "must be an AsyncSession; call an async_scoped_session to get one",
            )
        if isinstance(session, ScopedSession):
            if session.org_id is not None:
                if org_id is not None and org_id != session.org_id:
                    raise TenantMismatchError(session.org_id, org_id, "repository")
                org_id = session.org_id
            if (watch := watch_of(session)) is not None:
                watch.repository(self)
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

    @property
    def _server(self) -> object:
        """What is remembered of a server is kept by this: the engine, as far as the session tells."""
        session = self._session
        return session.sync_session.bind if isinstance(session, ScopedSession) else session.get_bind()

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

    def _indexed(self, order: Sequence[Order]) -> Sequence[ColumnElement[bool]]:  # noqa: ARG002 - for who has one
        """Return what is true of every row, and what a partial index of this order asks for: nothing, mostly."""
        return ()

    async def _ready(self) -> None:
        """Have the tenant set, on a session that is not ours; ours carry it in BEGIN."""
        if self._guard is not None:
            await self._guard.ensure()

    async def _is_sharded(self) -> bool:
        """Tell whether statements go through Citus, where some differ; asks once for an engine, if nobody has yet."""
        await self._ready()
        bind = self._session.get_bind()
        if (known := is_sharded(bind)) is None:
            known = bool((await self._execute(LOOK)).scalar_one())
            note_sharded(bind, sharded=known)
        return known

    async def _execute(
        self, statement: Executable, parameters: Any = None, **options: object
    ) -> Result[*tuple[Any, ...]]:
        """Run a statement that already names the organization."""
        if isinstance(statement, TextClause):
            await self._flush()  # as the session itself does before ORM statements
        await self._ready()
        with translated():
            found = await self._session.execute(statement, parameters, execution_options={SCOPED: True, **options})
        if options.get("populate_existing") and inside(self._session):
            kept = found.freeze()
            note_rows(self._session, kept().all())
            return kept()
        return found

    async def _rows(self, statement: Executable, parameters: Mapping[str, object]) -> Sequence[Any]:
        """Run a statement that is made once for all, names the organization and has plain parameters; return its rows.

        Straight to the driver where that is possible (ibex_db_core.direct), which is the most of what it costs.
        """
        session = self._session
        if isinstance(session, ScopedSession):
            sync = cast("SyncScopedSession", session.sync_session)
            # Whatever makes a session dirty begins SQLAlchemy's transaction, and takes the lent connection over.
            if sync.lease is None and (sync.autoflush or isinstance(statement, TextClause)) and is_dirty(sync):
                await self._flush()
            try:
                rows = await direct.fetch(session, statement, parameters)
            except Exception as exc:
                if (ours := translate(exc)) is None or ours is exc:
                    raise
                raise ours from exc
            if rows is not None:
                return rows
        return (await self._execute(statement, parameters)).all()

    @asynccontextmanager
    async def _savepoint(self) -> AsyncGenerator[None]:
        """Make the changes inside one whole: whoever catches an error and goes on finds nothing half changed."""
        async with AsyncExitStack() as entered:
            with translated():
                await entered.enter_async_context(self._session.begin_nested())
            yield

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


def _required(model: type[Base]) -> frozenset[str]:
    """Return the attributes that are never NULL; expressions are none."""
    return frozenset(
        attribute.key
        for attribute in model.__mapper__.column_attrs
        if isinstance(attribute.columns[0], Column) and not cast("Column[object]", attribute.columns[0]).nullable
    )
