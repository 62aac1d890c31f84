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
from typing import Any, cast

from sqlalchemy import Column, Dialect, Enum
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.attributes import instance_dict, instance_state
from sqlalchemy.orm.session import Session
from sqlalchemy.types import TypeEngine

__all__ = ["EntityLoader", "Processor", "loadable", "processor", "tuples"]

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


def tuples(processors: Sequence[Processor | None]) -> Callable[[Session, Iterable[Any]], list[tuple[Any, ...]]]:
    """Return what makes tuples of rows without an entity.

    Args:
        processors: of each column; None: its value stays what the driver made it.
    """
    if not any(processors):
        return lambda _session, rows: [tuple(row) for row in rows]
    return lambda _session, rows: [
        tuple(
            value if process is None or value is None else process(value)
            for value, process in zip(row, processors, strict=True)
        )
        for row in rows
    ]


class EntityLoader:
    """Makes entities of one mapper of rows that begin with so many of its columns; what follows them stays beside it.

    A function written out for these columns, as dataclasses have their methods
    written: it does for ten rows what loops over names did in half as much again.

    Args:
        mapper: of the entities.
        columns: names of the columns, as the rows have them from their beginning.
        processors: of every value of a row; None: it stays what the driver made it.

    Attributes:
        load: return a tuple for each row, its entity first: the session's own where it has it, else a new one; None
            where there is no row.
    """

    def __init__(self, mapper: Mapper[Any], columns: Sequence[str], processors: Sequence[Processor | None]) -> None:
        attributes = {cast("Column[Any]", attribute.columns[0]).name: attribute for attribute in mapper.column_attrs}
        self._keys = tuple(attributes[name].key for name in columns)
        self._processors = processors
        manager = cast("Any", mapper.class_manager)
        names: dict[str, Any] = {
            "model": mapper.class_,
            "new": mapper.class_.__new__,
            "manager": manager,
            "State": manager._state_constructor,
            "identity_class": cast("Any", mapper)._identity_class,
            "complete": self._complete,
            **{f"p{place}": process for place, process in enumerate(processors) if process is not None},
        }
        places = [columns.index(column.name) for column in mapper.primary_key]
        source = _source(manager.STATE_ATTR, self._keys, places, [process is not None for process in processors])
        exec(source, names)  # noqa: S102 - of places in a row, and of the names of the model's own attributes
        self.load = cast("Callable[[Session, Iterable[Any]], list[tuple[Any, ...]]]", names["load"])

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

    def _complete(self, found: object, row: Sequence[Any]) -> None:
        """Give an object what it has not loaded, or has expired; what is pending on it stays."""
        state = instance_state(found)
        missing = state.unloaded
        if missing.isdisjoint(self._keys):
            return
        values = instance_dict(found)
        for name, value, process in zip(self._keys, row, self._processors, strict=False):
            if name in missing:
                values[name] = value if process is None or value is None else process(value)
        state._commit(values, missing)


def _source(state: str, keys: Sequence[str], identity: Sequence[int], processed: Sequence[bool]) -> str:
    """Write the function that loads rows: ``keys`` of the entity, then values to go beside it."""
    said = [f"v{place} if v{place} is None else p{place}(v{place})" for place in range(len(processed))]
    targets = [f"v{place}" if processed[place] else f"values[{key!r}]" for place, key in enumerate(keys)]
    converted = [f"values[{key!r}] = {said[place]}" for place, key in enumerate(keys) if processed[place]]
    beside = range(len(keys), len(processed))
    values = [f"v{place} = row[{place}]" for place in beside]
    others = "".join(f", {said[place] if processed[place] else f'v{place}'}" for place in beside)
    return f"""
def load(session, rows):
    identity = session.identity_map
    present, weakly, session_id = identity._dict, identity._wr, session.hash_key
    loaded = []
    for row in rows:
        {"; ".join(values) or "pass"}
        if row[{identity[0]}] is None:  # of an outer join that found none
            loaded.append((None{others},))
            continue
        key = (identity_class, ({" ".join(f"row[{place}]," for place in identity)}), None)
        if key in present and (made := identity.get(key)) is not None:
            complete(made, row)
        else:
            made = new(model)
            made.{state} = state = State(made, manager)
            state.key = key
            state.session_id = session_id
            state._instance_dict = weakly
            present[key] = state
            values = made.__dict__
            {", ".join((*targets, *(f"v{place}" for place in beside)))}, = row
            {"; ".join(converted) or "pass"}
        loaded.append((made{others},))
    return loaded
"""
