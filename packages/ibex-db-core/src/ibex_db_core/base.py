"""The declarative base, the names of constraints, and the mixins that tables are made of."""

from datetime import datetime
from typing import Any, ClassVar, cast
from uuid import UUID, uuid4

from sqlalchemy import (
    CheckConstraint,
    Column,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    MetaData,
    Table,
    Text,
    Uuid,
    event,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
    ColumnProperty,
    DeclarativeBase,
    InstrumentedAttribute,
    Mapped,
    RelationshipProperty,
    declared_attr,
    mapped_column,
)
from sqlalchemy.orm.exc import DetachedInstanceError

from ibex_db_core import guards, validation
from ibex_db_core.errors import NotLoadedError
from ibex_db_core.guards import Guards
from ibex_db_core.types import Moment

SCHEMA = guards.SCHEMA

# Postgres's own spelling, so that a name in a log line is the one that a person would guess.
NAMES = {
    "pk": "%(table_name)s_pkey",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    "ck": "%(table_name)s_%(constraint_name)s",
}


class Base(DeclarativeBase):
    """Root of every ibex model.

    Class attributes that the policies are generated from:
        __tenant_column__: the column that names the organization; None for a table without tenants.
        __append_only__: True where rows are never updated or deleted by a service.
        __guards__: what else the migrations put around the table.
    """

    metadata = MetaData(schema=SCHEMA, naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy declares it as an instance variable
        str: Text(),
        UUID: Uuid(),
        datetime: Moment,
        dict[str, object]: JSONB(none_as_null=True),
    }
    # UPDATE ... RETURNING fetches what the database changed (updated_at): an
    # expired attribute would be a lazy load, which async code cannot do.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012 - as type_annotation_map

    __tenant_column__: ClassVar[str | None] = None
    __append_only__: ClassVar[bool] = False
    __guards__: ClassVar[Guards] = Guards()

    @classmethod
    def __table_cls__(cls, *args: Any, **kwargs: Any) -> Table:
        """Leave the tenancy facts on the table, where policies, migrations and the doctor find them."""
        table: Table = Table(*args, **kwargs)
        table.info["tenant_column"] = cls.__tenant_column__
        table.info["append_only"] = cls.__append_only__
        table.info["guards"] = cls.__guards__
        return table

    def __repr__(self) -> str:
        """Name the row by its key; never by its content, which may be a customer's."""
        return f"<{type(self).__name__} {self.__dict__.get('id', 'unsaved')}>"


@event.listens_for(Base, "attribute_instrument", propagate=True)
def _check_on_assignment(_cls: type[Base], _key: str, attribute: "InstrumentedAttribute[object]") -> None:
    """Attach validation.py's check to each mapped column."""
    prop = attribute.property
    column = prop.columns[0] if isinstance(prop, ColumnProperty) else None
    if not isinstance(column, Column):
        return
    rule = validation.checker(attribute.key, cast("Column[object]", column))

    @event.listens_for(attribute, "set", retval=True)
    def _set(_target: object, value: object, _old: object, _initiator: object) -> object:  # pyright: ignore[reportUnusedFunction]
        return rule(value)


# An attribute that is read only when asked for, and says how to ask.  No docstring:
# in InstrumentedAttribute it is a property, which lets models document theirs.
class _Loadable(InstrumentedAttribute[Any]):  # pyright: ignore[reportIncompatibleVariableOverride]
    __slots__ = ()
    inherit_cache = True

    def __get__(self, instance: object | None, owner: Any) -> Any:
        try:
            return super().__get__(instance, owner)
        except (InvalidRequestError, DetachedInstanceError) as exc:
            raise NotLoadedError(self.class_.__name__, self.key, self._way_out()) from exc

    def _way_out(self) -> str:
        model, prop = self.class_.__name__, self.property
        if not isinstance(prop, ColumnProperty):
            loader = f"selectinload({model}.{self.key})"
        elif prop.strategy_key and not isinstance(prop.columns[0], Column):
            return "it is for conditions only: the database computes it, and nobody reads it"
        else:
            loader = f"undefer({model}.{self.key})"
        return f"read the row with it, options=[{loader}], or refresh it: session.refresh(row, [{self.key!r}])"


@event.listens_for(Base, "attribute_instrument", propagate=True)
def _say_how_to_load(_cls: type[Base], _key: str, attribute: "InstrumentedAttribute[object]") -> None:
    """Have every relationship and deferred column of every model raise our error where it was not loaded."""
    prop = attribute.property
    if isinstance(prop, RelationshipProperty) or (isinstance(prop, ColumnProperty) and prop.deferred):
        # The mapper has made it by now; its class alone decides what reading it does.
        attribute.__class__ = _Loadable


class Identified:
    """A UUID key, made by the client at flush, or by the database for rows of raw SQL."""

    # insert_sentinel: by it SQLAlchemy matches the rows that INSERT ... RETURNING
    # gives back.  It takes no key with a server default for that unless told,
    # and would insert many rows by one statement each.
    id: Mapped[UUID] = mapped_column(
        primary_key=True,
        default=uuid4,
        server_default=text("gen_random_uuid()"),
        insert_sentinel=True,
        sort_order=-90,
    )


class OrgScoped(Identified):
    """A row of one organization; its identity is (org_id, id)."""

    __tenant_column__: ClassVar[str | None] = "org_id"

    @declared_attr
    @classmethod
    def org_id(cls) -> Mapped[UUID]:
        """The organization; filled in by a tenant session when left out."""
        return mapped_column(
            ForeignKey(f"{SCHEMA}.organizations.id", ondelete="CASCADE"), primary_key=True, sort_order=-100
        )


class Created:
    """When the row was made."""

    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), sort_order=90)


class Timestamped(Created):
    """created_at, and updated_at that a trigger keeps on every UPDATE, raw SQL included."""

    # server_onupdate: what tells the ORM to fetch it after an UPDATE.
    updated_at: Mapped[datetime] = mapped_column(
        server_default=func.now(), server_onupdate=FetchedValue(), sort_order=91
    )


class SoftDeleted:
    """A deleted row stays until it is erased; repositories hide it unless asked."""

    deleted_at: Mapped[datetime | None] = mapped_column(sort_order=95)


def parent_key(table: str, column: str, *, optional: bool = False, owned: bool = False) -> ForeignKeyConstraint:
    """Point at a parent by (org_id, column).

    A single-column key would let one tenant point at another's row, for
    foreign-key checks ignore row-level security.

    Args:
        table: the parent's.
        column: of the child.
        optional: the link is set to NULL when the parent goes; otherwise the child goes with it.
        owned: an optional link that says whose the row is: it is set to NULL by a plain DELETE, but a person
            who is erased wholly takes the row along.
    """
    return ForeignKeyConstraint(
        ["org_id", column],
        [f"{SCHEMA}.{table}.org_id", f"{SCHEMA}.{table}.id"],
        ondelete=f"SET NULL ({column})" if optional else "CASCADE",
        info={"owned": owned},
    )


def json_is_object(column: str) -> CheckConstraint:
    """Hold a jsonb column to objects."""
    return CheckConstraint(f"jsonb_typeof({column}) = 'object'", name=f"{column}_is_object")
