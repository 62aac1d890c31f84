"""Every way that a statement can take to the database; each returns the organizations of the rows it saw.

The same ways run in a platform session first, where they must see both
organizations: a way that would see nothing anyway proves nothing.
"""

from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, joinedload, lazyload, selectinload
from two import Tenant, Two

from ibex_db import Agent, Memory, MemoryRepository, MemoryTag, Session

Way = Callable[[AsyncSession, Two], Awaitable[set[UUID]]]

_TABLE = Memory.__table__


def _both(two: Two) -> tuple[Tenant, Tenant]:
    return two.a, two.b


async def scalars(session: AsyncSession, _two: Two) -> set[UUID]:
    return {row.org_id for row in await session.scalars(select(Memory))}


async def columns(session: AsyncSession, _two: Two) -> set[UUID]:
    return {row.org_id for row in await session.execute(select(Memory.org_id, Memory.content))}


async def an_alias(session: AsyncSession, _two: Two) -> set[UUID]:
    other = aliased(Memory)
    return {row.org_id for row in await session.execute(select(other.org_id))}


async def by_id_in(session: AsyncSession, two: Two) -> set[UUID]:
    ids = [tenant.memory_id for tenant in _both(two)]
    return {row.org_id for row in await session.scalars(select(Memory).where(Memory.id.in_(ids)))}


async def forged_where(session: AsyncSession, two: Two) -> set[UUID]:
    found = await session.execute(text("SELECT org_id FROM ibex_core.memories WHERE org_id = :b"), {"b": two.b.org_id})
    return set(found.scalars())


async def raw_text(session: AsyncSession, _two: Two) -> set[UUID]:
    return set((await session.execute(text("SELECT org_id FROM ibex_core.memories"))).scalars())


async def from_statement(session: AsyncSession, _two: Two) -> set[UUID]:
    columns = ", ".join(column.name for column in _TABLE.columns if column.name not in {"embedding", "search_vector"})
    statement = select(Memory).from_statement(text(f"SELECT {columns} FROM ibex_core.memories"))
    return {row.org_id for row in await session.scalars(statement)}


async def core_connection(session: AsyncSession, _two: Two) -> set[UUID]:
    return set((await (await session.connection()).execute(select(_TABLE.c.org_id))).scalars())


async def stream(session: AsyncSession, _two: Two) -> set[UUID]:
    rows = await session.stream(select(Memory.org_id))
    return {row.org_id async for row in rows}


async def a_cte(session: AsyncSession, _two: Two) -> set[UUID]:
    inner = select(Memory.org_id).cte("inner_rows")
    return set(await session.scalars(select(inner.c.org_id)))


async def a_union(session: AsyncSession, _two: Two) -> set[UUID]:
    one = select(Memory.org_id)
    return set(await session.scalars(one.union_all(one)))


async def selectin_load(session: AsyncSession, _two: Two) -> set[UUID]:
    rows = await session.scalars(select(Memory).options(selectinload(Memory.tags)))
    return {tag.org_id for row in rows for tag in row.tags}


async def joined_load(session: AsyncSession, _two: Two) -> set[UUID]:
    rows = await session.scalars(select(MemoryTag).options(joinedload(MemoryTag.memory)))
    return {row.memory.org_id for row in rows}


async def lazy_load(session: AsyncSession, _two: Two) -> set[UUID]:
    rows = (await session.scalars(select(Session).options(lazyload(Session.agent)))).all()
    return await session.run_sync(lambda _: {row.agent.org_id for row in rows})


async def a_join(session: AsyncSession, _two: Two) -> set[UUID]:
    return set(await session.scalars(select(Memory.org_id).join(Agent, Agent.id == Memory.agent_id)))


async def refresh(session: AsyncSession, _two: Two) -> set[UUID]:
    rows = (await session.scalars(select(Memory))).all()
    for row in rows:
        await session.refresh(row)
    return {row.org_id for row in rows}


async def merge(session: AsyncSession, two: Two) -> set[UUID]:
    """Merge copies of both memories; one that is not found becomes pending, and counts as not seen."""
    seen: set[UUID] = set()
    for tenant in _both(two):
        exists = await session.scalar(select(Memory.org_id).where(Memory.id == tenant.memory_id))
        if exists is not None:
            merged = await session.merge(Memory(org_id=tenant.org_id, id=tenant.memory_id))
            seen.add(merged.org_id)
            session.expunge(merged)
    return seen


async def orm_update(session: AsyncSession, _two: Two) -> set[UUID]:
    statement = update(Memory).values(embedding_model="m").returning(Memory.org_id)
    return set(await session.scalars(statement, execution_options={"synchronize_session": False}))


async def core_update(session: AsyncSession, _two: Two) -> set[UUID]:
    found = await session.execute(text("UPDATE ibex_core.memories SET embedding_model = 'm' RETURNING org_id"))
    return set(found.scalars())


async def orm_delete(session: AsyncSession, _two: Two) -> set[UUID]:
    statement = delete(MemoryTag).returning(MemoryTag.org_id)
    return set(await session.scalars(statement, execution_options={"synchronize_session": False}))


async def core_delete(session: AsyncSession, _two: Two) -> set[UUID]:
    return set((await session.execute(text("DELETE FROM ibex_core.memory_tags RETURNING org_id"))).scalars())


async def insert_select(session: AsyncSession, _two: Two) -> set[UUID]:
    """Copy every visible tag under a new name: what is not visible cannot be copied."""
    found = await session.execute(
        text(
            "INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag) "
            "SELECT org_id, memory_id, tag || :suffix FROM ibex_core.memory_tags RETURNING org_id"
        ),
        {"suffix": uuid4().hex[:8]},
    )
    return set(found.scalars())


async def after_a_savepoint(session: AsyncSession, two: Two) -> set[UUID]:
    async with session.begin_nested():
        inside = await raw_text(session, two)
    return inside | await raw_text(session, two)


async def after_a_savepoint_rolled_back(session: AsyncSession, two: Two) -> set[UUID]:
    nested = await session.begin_nested()
    inside = await raw_text(session, two)
    await nested.rollback()
    return inside | await raw_text(session, two)


async def after_commit(session: AsyncSession, two: Two) -> set[UUID]:
    before = await raw_text(session, two)
    await session.commit()
    return before | await raw_text(session, two)


async def after_rollback(session: AsyncSession, two: Two) -> set[UUID]:
    before = await raw_text(session, two)
    await session.rollback()
    return before | await raw_text(session, two)


async def bulk_insert_then_read(session: AsyncSession, two: Two) -> set[UUID]:
    """Insert in bulk for the organizations that can be seen, and read back."""
    seen = await raw_text(session, two)
    rows = [
        {"org_id": tenant.org_id, "memory_id": tenant.memory_id, "tag": uuid4().hex[:8]}
        for tenant in _both(two)
        if tenant.org_id in seen
    ]
    await session.execute(insert(MemoryTag), rows)
    return {row.org_id for row in await session.scalars(select(MemoryTag))}


async def repository_pages(session: AsyncSession, two: Two) -> set[UUID]:
    repository = MemoryRepository(session, two.a.org_id)
    page = await repository.list(limit=1)
    rows = list(page.items)
    while page.next_cursor is not None:
        page = await repository.list(limit=1, cursor=page.next_cursor)
        rows.extend(page.items)
    return {row.org_id for row in rows}


async def repository_many(session: AsyncSession, two: Two) -> set[UUID]:
    found = await MemoryRepository(session, two.a.org_id).get_many([two.a.memory_id, two.b.memory_id])
    return {row.org_id for row in found}


async def repository_stream(session: AsyncSession, two: Two) -> set[UUID]:
    return {row.org_id async for row in MemoryRepository(session, two.a.org_id).stream()}


WAYS: dict[str, Way] = {
    way.__name__: way
    for way in (
        scalars,
        columns,
        an_alias,
        by_id_in,
        forged_where,
        raw_text,
        from_statement,
        core_connection,
        stream,
        a_cte,
        a_union,
        selectin_load,
        joined_load,
        lazy_load,
        a_join,
        refresh,
        merge,
        orm_update,
        core_update,
        orm_delete,
        core_delete,
        insert_select,
        after_a_savepoint,
        after_a_savepoint_rolled_back,
        after_commit,
        after_rollback,
        bulk_insert_then_read,
    )
}
"""Ways that see every organization where nothing stands in the way."""

SCOPED_WAYS: dict[str, Way] = {way.__name__: way for way in (repository_pages, repository_many, repository_stream)}
"""Ways of a repository, which names its organization even where nothing else does."""
