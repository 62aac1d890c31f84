"""What was not loaded says so, and how to load it: every relationship and deferred column of every model."""

import copy
import pickle

import pytest
from homes import MakeMemory
from sqlalchemy import select
from sqlalchemy.orm import aliased, make_transient_to_detached, selectinload, undefer

from ibex_db_core.base import Base
from ibex_db_core.errors import NotLoadedError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import Memory, MemoryRepository, MemoryTag


def loadable() -> list[tuple[type[Base], str]]:
    found: list[tuple[type[Base], str]] = []
    for mapper in sorted(Base.registry.mappers, key=lambda mapper: mapper.class_.__name__):
        names = [*mapper.relationships.keys(), *(prop.key for prop in mapper.column_attrs if prop.deferred)]
        found += [(mapper.class_, name) for name in names if mapper.class_.__module__.startswith("ibex_db")]
    return found


def test_there_are_some_of_each_wheel() -> None:
    wheels = {model.__module__.partition(".")[0] for model, _ in loadable()}

    assert {"ibex_db_tenancy", "ibex_db_memory"} <= wheels
    assert {(Memory, "tags"), (Memory, "embedding"), (Memory, "agent")} <= set(loadable())


@pytest.mark.parametrize(("model", "name"), loadable(), ids=lambda one: one if isinstance(one, str) else one.__name__)
def test_each_says_how_it_is_loaded(model: type[Base], name: str) -> None:
    """A row that belongs to no session any more is the same case."""
    row = model()
    make_transient_to_detached(row)

    with pytest.raises(NotLoadedError) as caught:
        getattr(row, name)
    assert (caught.value.model, caught.value.attribute) == (model.__name__, name)
    if name == "search_vector":
        assert "for conditions only" in str(caught.value)
    else:
        assert f"load({model.__name__}.{name})" in str(caught.value) or f"undefer({model.__name__}.{name})" in str(
            caught.value
        )


async def test_what_the_message_says_works(session: ScopedSession, make_memory: MakeMemory) -> None:
    memories = MemoryRepository(session)
    made = await memories.add(make_memory(tags=[MemoryTag(tag="tea")], embedding=[1.0] * 384))
    session.expunge_all()

    bare = await memories.get(made.id)
    with pytest.raises(
        NotLoadedError, match=r"Memory\.tags was not loaded: .*options=\[selectinload\(Memory\.tags\)\]"
    ):
        _ = bare.tags
    with pytest.raises(NotLoadedError, match=r"Memory\.embedding was not .*options=\[undefer\(Memory\.embedding\)\]"):
        _ = bare.embedding
    await session.refresh(bare, ["tags", "embedding"])
    assert [tag.tag for tag in bare.tags] == ["tea"]
    assert bare.embedding == [1.0] * 384

    session.expunge_all()
    full = await memories.get(made.id, options=[selectinload(Memory.tags), undefer(Memory.embedding)])
    assert ([tag.tag for tag in full.tags], full.embedding) == (["tea"], [1.0] * 384)


async def test_conditions_and_aliases_are_as_ever(session: ScopedSession, make_memory: MakeMemory) -> None:
    session.add(make_memory(tags=[MemoryTag(tag="tea")]))
    await session.flush()
    other = aliased(Memory)

    found = await session.scalars(select(other).join(other.tags).where(other.embedding.is_(None)))
    assert len(found.all()) == 1


def test_the_error_travels() -> None:
    error = NotLoadedError("Memory", "tags", "ask")

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own
        assert (str(again), again.model, again.attribute, again.way_out) == (str(error), "Memory", "tags", "ask")
