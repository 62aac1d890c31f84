"""What a diagram shows of the tables: their columns, and the links between them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from sqlalchemy import Column, ForeignKeyConstraint, MetaData, Table
from sqlalchemy.dialects.postgresql.base import PGDialect

from ibex_db_core.base import Base
from ibex_db_core.migrations.runner import wheels

_POSTGRES = PGDialect()  # type: ignore[no-untyped-call]

# Postgres's own short spellings.
_SHORT = {"timestamp with time zone": "timestamptz"}


@dataclass(frozen=True, slots=True)
class Attribute:
    """One column.

    Attributes:
        type: as Postgres says it, in its short spelling: ``timestamptz``, ``numeric(4,3)``.
        primary: it is in the primary key.
        nullable: it may be NULL.
        parent: the table that it points at; org_id points at organizations.
    """

    name: str
    type: str
    primary: bool
    nullable: bool
    parent: str | None


@dataclass(frozen=True, slots=True)
class Link:
    """One foreign key, seen from the child.

    Attributes:
        parent: the table that it points at; the child itself, where rows of one table point at each other.
        column: of the child, beside org_id, which every link carries.
        optional: it is set to NULL when the parent goes; otherwise the child goes with it.
        constraint: its name in the database.
    """

    parent: str
    column: str
    optional: bool
    constraint: str


@dataclass(frozen=True, slots=True)
class Entity:
    """One table.

    Attributes:
        wheel: the branch label of the wheel that brings it: core, tenancy or memory.
        remarks: what is special about it: ``append-only``, ``partitioned``, ``platform only``.
        attributes: in the order of the model.
        links: without the one from org_id to organizations, unless it is the only one: every
            tenant table has it, and a diagram that drew it everywhere would show little else.
    """

    name: str
    wheel: str
    remarks: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    links: tuple[Link, ...]


def entities(models: MetaData) -> list[Entity]:
    """Return the tables of a metadata, parents first and then by name: the same list every time."""
    homes = _homes(models)
    by_name = sorted(models.tables.values(), key=lambda table: table.name)
    depths = _depths(by_name)
    return [
        Entity(table.name, homes.get(table.name, "core"), _remarks(table), _attributes(table), _links(table))
        for table in sorted(by_name, key=lambda table: depths[table.name])
    ]


def _homes(models: MetaData) -> dict[str, str]:
    """Return table to wheel, by the package that its model is in."""
    labels = {package: label for label, package in wheels().items()}
    homes = dict[str, str]()
    for mapper in Base.registry.mappers:
        model = cast("type[Base]", mapper.class_)
        if model.metadata is models and (label := labels.get(model.__module__.partition(".")[0])):
            homes[model.__tablename__] = label
    return homes


def _depths(tables: Iterable[Table]) -> dict[str, int]:
    """Return how many tables a table stands on, along the longest way up; keys to itself do not count."""
    above = {table.name: {key.referred_table.name for key in table.foreign_key_constraints} for table in tables}
    found: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in found:
            found[name] = max((depth(parent) + 1 for parent in above[name] - {name}), default=0)
        return found[name]

    return {name: depth(name) for name in above}


def _remarks(table: Table) -> tuple[str, ...]:
    facts = {
        "partitioned": bool(table.dialect_options["postgresql"]["partition_by"]),
        "append-only": bool(table.info.get("append_only")),
        "platform only": bool(table.info.get("platform_only")),
    }
    return tuple(remark for remark, true in facts.items() if true)


def _attributes(table: Table) -> tuple[Attribute, ...]:
    keys = {_told(key): key.referred_table.name for key in _keys(table)}
    return tuple(
        Attribute(column.name, _type(column), column.primary_key, bool(column.nullable), keys.get(column.name))
        for column in table.columns
    )


def _links(table: Table) -> tuple[Link, ...]:
    every = [
        Link(key.referred_table.name, _told(key), (key.ondelete or "").startswith("SET NULL"), str(key.name))
        for key in _keys(table)
    ]
    told = [link for link in every if link.column != "org_id"]
    return tuple(told or every)


def _keys(table: Table) -> list[ForeignKeyConstraint]:
    places = {column.name: place for place, column in enumerate(table.columns)}
    return sorted(table.foreign_key_constraints, key=lambda key: places[_told(key)])


def _told(key: ForeignKeyConstraint) -> str:
    """Return the column that says what a key is for: the one beside org_id."""
    return key.column_keys[-1]


def _type(column: Column[object]) -> str:
    said = column.type.compile(dialect=_POSTGRES).lower().replace(", ", ",")
    return _SHORT.get(said, said)
