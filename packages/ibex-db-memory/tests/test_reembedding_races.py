"""The verbs of a move at the same time: whatever comes first, the searched vectors are whole."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Sequence
from itertools import combinations_with_replacement
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pgvector
import pytest
from homes import Home

from ibex_db_core.database import Database
from ibex_db_core.errors import IllegalTransitionError, InvalidInputError, NotFoundError
from ibex_db_core.types import pack_vector
from ibex_db_memory import MemoryRepository, Reembedding
from ibex_db_memory.repositories.memory.reembedding import Mover
from ibex_db_tenancy import Agent, Organization

CONTENTS = [f"Fact number {number}." for number in range(6)]
ROUNDS = 2


def made(content: str, dimensions: int, salt: int = 0) -> list[float]:
    rng = np.random.default_rng([zlib.crc32(content.encode()), dimensions, salt])
    found: list[float] = rng.standard_normal(dimensions).astype(np.float32).tolist()
    return found


async def embed_new(contents: list[str]) -> list[list[float]]:
    return [made(content, 768) for content in contents]


async def embed_other(contents: list[str]) -> list[list[float]]:
    return [made(content, 384, salt=1) for content in contents]


async def settled(database: Database) -> Home:
    """Return a new organization whose agent knows CONTENTS."""
    name = f"org-{uuid4().hex[:8]}"
    async with database.platform(reason="test data") as session:
        org = Organization(name=name, slug=name)
        session.add(org)
        await session.flush()
        agent = Agent(org_id=org.id, name="Support", slug="support")
        session.add(agent)
    async with database.tenant(org.id) as session:
        await MemoryRepository(session).remember_many(draft(agent.id, content) for content in CONTENTS)
    return Home(org.id, agent.id)


def draft(agent_id: UUID, content: str) -> dict[str, object]:
    return {
        "agent_id": agent_id,
        "content": content,
        "category": "factual",
        "embedding": made(content, 384),
        "embedding_model": "mini",
    }


async def said(database: Database, home: Home, query: Sequence[float], limit: int = 100) -> list[str]:
    async with database.tenant(home.org_id) as session:
        hits = await MemoryRepository(session).search(embedding=query, limit=limit)
        return [hit.memory.content for hit in hits]


async def assert_whole(database: Database, home: Home) -> None:
    """Show that searches have one model, of which no memory lacks a vector."""
    status = await Reembedding(database, home.org_id).status()
    others = [space for space in (status.filling, status.retired, status.clearing) if space is not None]
    assert len(others) <= (status.active is not None)
    dimensions = 384 if status.active is None else status.active.dimensions
    found = await said(database, home, made(CONTENTS[2], dimensions))
    assert found[0] == CONTENTS[2]
    assert sorted(found) == CONTENTS


async def fill(move: Reembedding) -> int:
    return await move.fill(embed_new, embedding_model="bge", dimensions=768, batch_size=2)


VERBS: dict[str, Callable[[Reembedding], Awaitable[object]]] = {
    "fill": fill,
    "cut_over": Reembedding.cut_over,
    "roll_back": Reembedding.roll_back,
    "finish": lambda move: move.finish(batch_size=2),
}
# How the move stood before: filled, cut over, gone back.
BEFORE: tuple[tuple[str, ...], ...] = (("fill",), ("fill", "cut_over"), ("fill", "cut_over", "roll_back"))


@pytest.mark.parametrize(("one", "other"), list(combinations_with_replacement(VERBS, 2)))
async def test_two_verbs_at_once_leave_the_searched_vectors_whole(
    ibex_db: Database, small_pool: Database, one: str, other: str
) -> None:
    for before in BEFORE:
        for number in range(ROUNDS):
            home = await settled(ibex_db)
            first, second = Reembedding(ibex_db, home.org_id), Reembedding(small_pool, home.org_id)
            for verb in before:
                await VERBS[verb](first)

            async def late(verb: str, move: Reembedding, seconds: float) -> object:
                await asyncio.sleep(seconds)
                return await VERBS[verb](move)

            done = await asyncio.gather(VERBS[one](first), late(other, second, number * 0.02), return_exceptions=True)

            for outcome in done:
                assert not isinstance(outcome, BaseException) or isinstance(outcome, IllegalTransitionError), outcome
            await assert_whole(ibex_db, home)


async def test_all_verbs_at_once_and_again_and_again(ibex_db: Database, small_pool: Database) -> None:
    home = await settled(ibex_db)
    moves = [Reembedding(ibex_db, home.org_id), Reembedding(small_pool, home.org_id)]
    for _ in range(8):
        done = await asyncio.gather(*(verb(move) for verb in VERBS.values() for move in moves), return_exceptions=True)
        for outcome in done:
            assert not isinstance(outcome, BaseException) or isinstance(outcome, IllegalTransitionError), outcome
        await assert_whole(ibex_db, home)


async def test_roll_back_waits_for_finish_to_decide_and_then_there_is_no_way_back(
    ibex_db: Database, small_pool: Database
) -> None:
    home = await settled(ibex_db)
    move, rival = Reembedding(ibex_db, home.org_id), Reembedding(small_pool, home.org_id)
    await fill(move)
    await move.cut_over()

    async with ibex_db.tenant(home.org_id) as session:
        await move._doom(session)  # pyright: ignore[reportPrivateUsage]
        going_back = asyncio.create_task(rival.roll_back())
        await asyncio.sleep(0.2)
        assert not going_back.done()
    with pytest.raises(IllegalTransitionError, match=r"being cleared away.*finish\(\) ends that"):
        await going_back
    # As a crash leaves it: marked, and nothing cleared yet.
    status = await move.status()
    assert status.clearing is not None
    assert (status.active.embedding_model, status.retired, status.clearing.dimensions) == ("bge", None, 384)  # type: ignore[union-attr]
    with pytest.raises(IllegalTransitionError, match="being cleared away"):
        await move.cut_over()
    with pytest.raises(IllegalTransitionError, match=r"finish\(\) ends it"):
        await move.fill(embed_other, embedding_model="mini", dimensions=384)
    with pytest.raises(IllegalTransitionError, match=r"finish\(\) first"):
        await move.fill(embed_other, embedding_model="third", dimensions=384)
    await assert_whole(ibex_db, home)

    assert sum(await asyncio.gather(move.finish(batch_size=2), rival.finish(batch_size=2))) == 6
    await assert_whole(ibex_db, home)
    assert (await move.status()).clearing is None


async def test_cut_over_waits_for_roll_back_to_decide_and_then_finds_no_move(
    ibex_db: Database, small_pool: Database, owner: asyncpg.Connection
) -> None:
    home = await settled(ibex_db)
    move, rival = Reembedding(ibex_db, home.org_id), Reembedding(small_pool, home.org_id)
    await fill(move)

    async with ibex_db.tenant(home.org_id) as session:
        await move._go_back(session)  # pyright: ignore[reportPrivateUsage]
        cutting = asyncio.create_task(rival.cut_over())
        await asyncio.sleep(0.2)
        assert not cutting.done()
    with pytest.raises(IllegalTransitionError, match="being cleared away"):
        await cutting
    # roll_back() died here; finish() ends what it began.
    assert await move.finish() == 6
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.embedding_spaces") == 0
    await assert_whole(ibex_db, home)


async def test_only_what_is_marked_is_cleared_or_forgotten(ibex_db: Database, owner: asyncpg.Connection) -> None:
    home = await settled(ibex_db)
    move = Reembedding(ibex_db, home.org_id)
    await fill(move)
    status = await move.cut_over()

    for space in (status.active, status.retired):
        assert space is not None
        with pytest.raises(IllegalTransitionError, match="cannot become cleared away"):
            async with ibex_db.tenant(home.org_id) as session:
                await Mover(session).clear(space, 10)
        with pytest.raises(IllegalTransitionError, match="cannot become cleared away"):
            async with ibex_db.tenant(home.org_id) as session:
                await Mover(session).forget(space)
    # By other means neither, as long as another is there; nor is the organization kept from going.
    with pytest.raises(asyncpg.CheckViolationError, match="searches read this space"):
        await owner.execute("DELETE FROM ibex_core.embedding_spaces WHERE status = 'active'")
    await assert_whole(ibex_db, home)
    await owner.execute("DELETE FROM ibex_core.organizations WHERE id = $1", home.org_id)
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.embedding_spaces") == 0


async def test_without_an_active_space_the_verbs_say_so(ibex_db: Database, owner: asyncpg.Connection) -> None:
    home = await settled(ibex_db)
    move = Reembedding(ibex_db, home.org_id)
    await fill(move)
    await move.cut_over()
    await owner.execute(
        "SET session_replication_role = replica; DELETE FROM ibex_core.embedding_spaces WHERE status = 'active'"
    )

    for verb in (move.roll_back, move.finish):
        with pytest.raises(IllegalTransitionError, match="without an active model"):
            await verb()


async def test_fill_is_told_that_the_move_was_rolled_back(ibex_db: Database, small_pool: Database) -> None:
    home = await settled(ibex_db)
    rival = Reembedding(small_pool, home.org_id)

    async def embed(contents: list[str]) -> list[list[float]]:
        await rival.roll_back()
        return await embed_new(contents)

    # In the middle of a batch, and between two.
    with pytest.raises(IllegalTransitionError, match="rolled back"):
        await Reembedding(ibex_db, home.org_id).fill(embed, embedding_model="bge", dimensions=768)
    with pytest.raises(IllegalTransitionError, match="rolled back"):
        async with ibex_db.tenant(home.org_id) as session:
            space = await Mover(session).begin("bge", 768)
            await session.commit()
            await rival.roll_back()
            await Mover(session).claim(space, 2, lease=300, after=None)
    await assert_whole(ibex_db, home)


async def test_a_vector_put_while_another_worker_waits_for_the_row_stays(
    ibex_db: Database, small_pool: Database, owner: asyncpg.Connection
) -> None:
    home = await settled(ibex_db)
    async with ibex_db.tenant(home.org_id) as session:
        space = await Mover(session).begin("bge", 768)
        claims = await Mover(session).claim(space, 10, lease=0, after=None)

    async def claim_too() -> int:
        async with small_pool.tenant(home.org_id) as other:
            return len(await Mover(other).claim(space, 10, lease=300, after=None))

    async with ibex_db.tenant(home.org_id) as session:
        vectors = [_packed(claim.content) for claim in claims]
        assert await Mover(session).put(space, claims, vectors) == 6
        claiming = asyncio.create_task(claim_too())
        await asyncio.sleep(0.3)
        assert not claiming.done()

    assert await claiming == 0
    assert await owner.fetchval("SELECT count(embedding) FROM ibex_core.memory_vectors") == 6


def _packed(content: str) -> pgvector.Vector:
    return pack_vector(made(content, 768))


async def test_an_unknown_organization_is_not_found(ibex_db: Database) -> None:
    move = Reembedding(ibex_db, uuid4())

    for verb in (move.status, move.cut_over, move.roll_back, move.finish, lambda: fill(move)):
        with pytest.raises(NotFoundError, match="no Organization"):
            await verb()


async def test_an_embed_that_returns_no_vectors_is_refused(ibex_db: Database) -> None:
    home = await settled(ibex_db)
    move = Reembedding(ibex_db, home.org_id)

    async def nothing(_contents: list[str]) -> None:
        return None

    async def number(_contents: list[str]) -> int:
        return 6

    def at_once(contents: list[str]) -> list[list[float]]:
        return [made(content, 768) for content in contents]

    for embed, rule in ((nothing, "return a list"), (number, "return a list"), (at_once, "async function")):
        with pytest.raises(InvalidInputError, match=rule):
            await move.fill(embed, embedding_model="bge", dimensions=768)  # type: ignore[arg-type]
    assert await fill(move) == 6


async def test_to_a_model_of_the_same_dimension_every_writer_names_it(ibex_db: Database) -> None:
    home, source = await settled(ibex_db), await settled(ibex_db)
    move = Reembedding(ibex_db, home.org_id)
    await move.fill(embed_other, embedding_model="other", dimensions=384)
    await move.cut_over()
    new = made("Changed.", 384, salt=1)
    async with ibex_db.tenant(source.org_id) as session:
        await MemoryRepository(session).remember(
            agent_id=source.agent_id, content="Unnamed.", category="factual", embedding=made("Unnamed.", 384)
        )
        lines = [line async for line in MemoryRepository(session).export()]

    async with ibex_db.tenant(home.org_id) as session:
        memories = MemoryRepository(session)
        (hit,) = await memories.search(embedding=made(CONTENTS[0], 384, salt=1), limit=1)
        ident = hit.memory.id
        with pytest.raises(InvalidInputError, match="embedding_model is required"):
            await memories.update(ident, content="Changed.", embedding=made("Changed.", 384))
        with pytest.raises(InvalidInputError, match="of other"):
            await memories.update(ident, content="Changed.", embedding=new, embedding_model="mini")
        await memories.update(ident, content="Changed.", embedding=new, embedding_model="other")
        back = made(CONTENTS[0], 384, salt=1)
        with pytest.raises(InvalidInputError, match="embedding_model is required"):
            await memories.revert(ident, 1, embedding=back)
        with pytest.raises(InvalidInputError, match="of other"):
            await memories.revert(ident, 1, embedding=back, embedding_model="mini")
        with pytest.raises(InvalidInputError, match="must come with its embedding"):
            await memories.revert(ident, 1, embedding_model="other")
        reverted = await memories.revert(ident, 1, embedding=back, embedding_model="other")
        assert (reverted.content, reverted.embedding_model) == (CONTENTS[0], "other")
        with pytest.raises(InvalidInputError, match="embedding_model"):
            await memories.import_(lines, create_agents=True)
    assert (await said(ibex_db, home, back, 1)) == [CONTENTS[0]]


async def test_a_late_writer_is_told_the_rule_and_not_the_sql(ibex_db: Database, small_pool: Database) -> None:
    home = await settled(ibex_db)
    move = Reembedding(ibex_db, home.org_id)
    await fill(move)
    await move.cut_over()

    with pytest.raises(InvalidInputError) as caught:
        async with small_pool.tenant(home.org_id) as session:
            await MemoryRepository(session).remember(
                agent_id=home.agent_id, content="Late.", category="factual", embedding=made("Late.", 384)
            )
    said_rule = "comes too late: vectors have 768 dimensions, of bge: the organization moved to that model"
    assert caught.value.rule == said_rule
