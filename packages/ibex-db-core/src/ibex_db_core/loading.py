"""Entities from the driver's rows, as SQLAlchemy's own loading makes them.

orm.loading.instances() prepares a processor for every attribute each time that
a statement is run, which for ten rows is half of its work.  Here that is done
once for a statement.  What comes out does not differ: persistent in the
session's identity map, nothing modified, deferred attributes deferred; an
object that the session has already keeps its state, and gets only what it has
not loaded (decision 0050).
"""
# As lending.py: what SQLAlchemy's loading does has no public name; tests/test_loading.py holds both side by side.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, cast

from sqlalchemy import Column, Dialect, Enum
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.attributes import instance_dict, instance_state
from sqlalchemy.orm.session import Session
from sqlalchemy.types import TypeEngine

__all__ = ["EntityLoader", "Processor", "loadable", "processor"]

Processor = Callable[[Any], Any]

# Relationships that add nothing to a row: they are loaded, or refuse to be, when somebody reads them.
_IDLE = {"select", "raise", "raise_on_sql", "noload", "write_only", "dynamic", True, None}


def loadable(mapper: Mapper[Any]) -> bool:
    """Tell whether a row of a mapper's own columns makes the whole of an entity, and nobody waits to be told."""
    told = cast("Any", mapper.class_manager).dispatch
    return (
        mapper.polymorphic_on is None
        and mapper.inherits is None
        and not mapper.composites
        and mapper.version_id_col is None
        and not mapper.always_refresh
        and all(relation.lazy in _IDLE for relation in mapper.relationships)
        and not told.load
        and not told.refresh
    )


def processor(kind: TypeEngine[Any], dialect: Dialect, oid: int) -> Processor | None:
    """Return what makes a Python value of the driver's, None where nothing is to be done; NULL is never asked."""
    own = kind.dialect_impl(dialect).result_processor(dialect, oid)
    if own is None:
        return None
    if isinstance(kind, Enum):
        return _Members(own, cast("Sequence[str]", kind.enums)).__getitem__
    return own


class _Members(dict[Any, Any]):
    """What an enum's processor says of each of its names; another name is its to refuse."""

    def __init__(self, own: Processor, names: Iterable[str]) -> None:
        super().__init__((name, own(name)) for name in names)
        self._own = own

    def __missing__(self, value: object) -> object:
        return self._own(value)


def _tuple_of(places: Sequence[int]) -> Callable[[Any], tuple[Any, ...]]:
    if len(places) > 1:
        return cast("Callable[[Any], tuple[Any, ...]]", itemgetter(*places))
    (place,) = places
    return lambda row: (row[place],)


class EntityLoader:
    """Makes entities of one mapper of rows that begin with so many of its columns.

    Args:
        mapper: of the entities.
        columns: names of the columns, as the rows have them from their beginning.
        dialect: of the connections.
        oids: what type each column has on the server.
    """

    def __init__(self, mapper: Mapper[Any], columns: Sequence[str], dialect: Dialect, oids: Sequence[int]) -> None:
        attributes = {cast("Column[Any]", attribute.columns[0]).name: attribute for attribute in mapper.column_attrs}
        self._mapper = mapper
        self._keys = tuple(attributes[name].key for name in columns)
        places = [columns.index(column.name) for column in mapper.primary_key]
        self._identity = _tuple_of(places)
        processors = (
            (attributes[name].key, processor(attributes[name].columns[0].type, dialect, oid))
            for name, oid in zip(columns, oids, strict=True)
        )
        self._processors = tuple((key, process) for key, process in processors if process is not None)
        self._identity_class = cast("Any", mapper)._identity_class
        self._new_instance = cast("Callable[[], object]", cast("Any", mapper.class_manager).new_instance)

    @staticmethod
    def fits(mapper: Mapper[Any], columns: Iterable[str]) -> bool:
        """Tell whether columns are all that an entity should be loaded with."""
        given = set(columns)
        expected = {
            attribute.columns[0].name: attribute
            for attribute in mapper.column_attrs
            if isinstance(attribute.columns[0], Column)
        }
        wanted = {name for name, attribute in expected.items() if not attribute.deferred}
        return wanted <= given <= expected.keys()

    def load(self, session: Session, rows: Iterable[Sequence[Any]]) -> list[object | None]:
        """Return each row's entity: the session's own where it has it, else a new one; None where there is no row."""
        identity = session.identity_map
        present, weakly = cast("Any", identity)._dict, cast("Any", identity)._wr
        session_id = session.hash_key
        keys, processors, identify, new_instance = self._keys, self._processors, self._identity, self._new_instance
        identity_class = self._identity_class
        entities: list[object | None] = []
        for row in rows:
            ident = identify(row)
            if ident[0] is None:  # of an outer join that found none
                entities.append(None)
                continue
            key = (identity_class, ident, None)
            if key in present and (found := identity.get(key)) is not None:
                self._complete(found, row)
                entities.append(found)
                continue
            made = new_instance()
            state, values = instance_state(made), instance_dict(made)
            state.key, state.session_id, state._instance_dict = key, session_id, weakly
            present[key] = state
            values.update(zip(keys, row, strict=False))
            for name, process in processors:
                if (value := values[name]) is not None:
                    values[name] = process(value)
            entities.append(made)
        return entities

    def _complete(self, found: object, row: Sequence[Any]) -> None:
        """Give an object what it has not loaded, or has expired; what is pending on it stays."""
        state = instance_state(found)
        missing = state.unloaded
        if missing.isdisjoint(self._keys):
            return
        processors, values = dict(self._processors), instance_dict(found)
        for name, value in zip(self._keys, row, strict=False):
            if name in missing:
                process = processors.get(name)
                values[name] = value if process is None or value is None else process(value)
        state._commit(values, missing)
