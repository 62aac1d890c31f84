"""Tags: normalised on assignment, unique for a memory."""

import pytest
from homes import MakeMemory
from sqlalchemy import text

from ibex_db_core.errors import ConflictError, InvalidInputError
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory import MemoryTag


def test_a_tag_is_normalised_on_assignment() -> None:
    assert MemoryTag(tag=f"  Hot{' ' * 100}Drinks ").tag == "hot drinks"


@pytest.mark.parametrize("tag", ["", "  ", "x" * 65, "a\x00b", None, 7])
def test_a_bad_tag_is_refused_on_assignment(tag: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        MemoryTag(tag=tag)

    assert caught.value.field == "tag"


async def test_a_memory_has_a_tag_once(session: ScopedSession, make_memory: MakeMemory) -> None:
    session.add(make_memory(tags=[MemoryTag(tag="Tea"), MemoryTag(tag="tea ")]))

    with pytest.raises(ConflictError) as caught:
        await session.flush()

    assert caught.value.constraint == "memory_tags_tag_key"


async def test_tags_go_with_their_memory(session: ScopedSession, make_memory: MakeMemory) -> None:
    memory = make_memory(tags=[MemoryTag(tag="tea")])
    session.add(memory)
    await session.flush()

    await session.delete(memory)
    await session.flush()

    assert await session.scalar(text("SELECT count(*) FROM ibex_core.memory_tags")) == 0
