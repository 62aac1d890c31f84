"""Moving an organization to another embedding model: 384 numbers to 768, while searches and writers go on."""

import asyncio
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import numpy as np
import pytest
from homes import Home
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_core.errors import (
    AccessDeniedError,
    ForeignKeyError,
    IllegalTransitionError,
    InvalidInputError,
    RuleViolationError,
)
from ibex_db_core.provisioning import SERVICE_LOGIN
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import Hits, Memory, MemoryRepository, Reembedding, SpaceStatus
from ibex_db_tenancy import Organization, OrganizationRepository

Vectors = list[list[float]]
Sent = Callable[[], AbstractContextManager[list[str]]]


def made(content: str, dimensions: int, salt: int = 0) -> list[float]:
    """Stand in for a model: a vector of its own for each content; two models' have nothing in common."""
    rng = np.random.default_rng([zlib.crc32(content.encode()), dimensions, salt])
    found: list[float] = rng.standard_normal(dimensions).astype(np.float32).tolist()
    return found


def old(content: str) -> list[float]:
    return made(content, 384)


def new(content: str) -> list[float]:
    return made(content, 768)


async def embed_new(contents: list[str]) -> Vectors:
    return [new(content) for content in contents]


async def embed_old(contents: list[str]) -> Vectors:
    return [old(content) for content in contents]


async def keep(
    database: Database,
    home: Home,
    contents: Sequence[str],
    vector: Callable[[str], list[float]] = old,
    model: str | None = "mini",
) -> list[UUID]:
    async with database.tenant(home.org_id) as session:
        done = await MemoryRepository(session).remember_many(
            {
                "agent_id": home.agent_id,
                "content": content,
                "category": "factual",
                "embedding": vector(content),
                "embedding_model": model,
            }
            for content in contents
        )
    return [outcome.id for outcome in done.outcomes]


async def found(database: Database, home: Home, query: list[float], **filters: object) -> Hits:
    async with database.tenant(home.org_id) as session:
        return await MemoryRepository(session).search(embedding=query, **filters)  # type: ignore[arg-type]


def said(hits: Hits) -> list[str]:
    return [hit.memory.content for hit in hits]


CONTENTS = [f"Fact number {number}." for number in range(30)]


@pytest.fixture
def move(ibex_db: Database, home: Home) -> Reembedding:
    return Reembedding(ibex_db, home.org_id)


async def moved(database: Database, home: Home, contents: Sequence[str] = CONTENTS) -> list[UUID]:
    ids = await keep(database, home, contents)
    move = Reembedding(database, home.org_id)
    await move.fill(embed_new, embedding_model="bge", dimensions=768)
    await move.cut_over()
    return ids


async def test_searches_find_everything_before_during_and_after_and_never_in_two_models(
    ibex_db: Database, home: Home, move: Reembedding
) -> None:
    await keep(ibex_db, home, CONTENTS)
    stages: list[tuple[Callable[[str], list[float]], Hits]] = []

    async def embed(contents: list[str]) -> Vectors:
        stages.append((old, await found(ibex_db, home, old(CONTENTS[7]), limit=30)))
        return await embed_new(contents)

    done = await move.fill(embed, embedding_model="bge", dimensions=768, batch_size=8)
    stages.append((old, await found(ibex_db, home, old(CONTENTS[7]), limit=30)))
    status = await move.cut_over()
    stages.append((new, await found(ibex_db, home, new(CONTENTS[7]), limit=30)))
    assert await move.finish() == 30
    stages.append((new, await found(ibex_db, home, new(CONTENTS[7]), limit=30)))

    assert (done, status.filled, status.lacking) == (30, 30, 0)
    assert len(stages) == 4 + 3
    for vector, hits in stages:
        assert said(hits)[0] == CONTENTS[7]
        assert sorted(said(hits)) == sorted(CONTENTS)
        for hit in hits:
            one, other = np.array(vector(CONTENTS[7])), np.array(vector(hit.memory.content))
            assert hit.similarity == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-5)


async def test_an_organization_that_never_moved_has_no_row_and_its_statements_are_as_many(
    ibex_db: Database, home: Home, move: Reembedding, sent: Sent
) -> None:
    await keep(ibex_db, home, CONTENTS[:1])
    await found(ibex_db, home, old("?"))
    with sent() as statements:
        await found(ibex_db, home, old("?"))

    assert len(statements) == 1
    status = await move.status()
    assert (status.active, status.filling, status.retired, status.filled) == (None, None, None, 1)


async def test_what_is_written_during_the_move_is_embedded_too(
    ibex_db: Database, home: Home, move: Reembedding
) -> None:
    ids = await keep(ibex_db, home, CONTENTS)
    meanwhile: list[int] = []

    async def embed(contents: list[str]) -> Vectors:
        if not meanwhile:
            meanwhile.append(1)
            await keep(ibex_db, home, ["Said in between."])
            async with ibex_db.tenant(home.org_id) as session:
                memories = MemoryRepository(session)
                # One that this very batch holds, and has no vector yet; whatever comes of it, it is of the old words.
                (changed,) = await memories.find(Memory.content == contents[0])
                await memories.update(changed.id, content="Said anew.", embedding=old("Said anew."))
                (gone,) = await memories.find(Memory.content == contents[1])
                await memories.update(gone.id, content="No longer embedded.", embedding=None)
                (erased,) = await memories.find(Memory.content == contents[2])
                await memories.erase(erased.id)
        return await embed_new(contents)

    done = await move.fill(embed, embedding_model="bge", dimensions=768, batch_size=10)
    status = await move.cut_over()

    # 30, less the one that lost its vector and the one that was erased, and one more.
    assert (status.filled, status.lacking, done) == (29, 0, 29)
    assert said(await found(ibex_db, home, new("Said in between.")))[0] == "Said in between."
    again = await found(ibex_db, home, new("Said anew."), limit=100)
    assert (said(again)[0], len(again)) == ("Said anew.", 29)
    assert again[0].similarity == pytest.approx(1, abs=1e-5)
    assert len(ids) == 30


async def test_cut_over_refuses_while_memories_lack_a_vector_and_says_how_many(
    ibex_db: Database, home: Home, move: Reembedding
) -> None:
    await keep(ibex_db, home, CONTENTS[:3])
    with pytest.raises(IllegalTransitionError, match="not begun"):
        await move.cut_over()
    await move.fill(embed_new, embedding_model="bge", dimensions=768)
    await keep(ibex_db, home, CONTENTS[3:5])

    with pytest.raises(IllegalTransitionError, match="2 memories lack"):
        await move.cut_over()
    assert said(await found(ibex_db, home, old(CONTENTS[4])))[0] == CONTENTS[4]
    assert await move.fill(embed_new, embedding_model="bge", dimensions=768) == 2
    assert (await move.cut_over()).lacking == 0


async def test_after_the_cutover_a_vector_of_the_model_before_is_refused_by_name(
    ibex_db: Database, home: Home, vector: Callable[[int], list[float]]
) -> None:
    await moved(ibex_db, home)

    for model in (None, "mini"):
        with pytest.raises(InvalidInputError, match="768 dimensions, of bge") as caught:
            await keep(ibex_db, home, ["Late."], old, model)
        # Unnamed and of the old length, it is the database that refuses the batch; named, we know which draft it is.
        assert (caught.value.field, caught.value.index) == ("embedding", None if model is None else 0)
    with pytest.raises(InvalidInputError, match="768 dimensions, of bge"):
        await keep(ibex_db, home, ["Late."], new, "mini")
    with pytest.raises(InvalidInputError, match="768 dimensions, of bge"):
        await found(ibex_db, home, vector(1))
    with pytest.raises(InvalidInputError, match="768 dimensions, of bge"):
        await found(ibex_db, home, new("?"), embedding_model="mini")
    assert len(await found(ibex_db, home, new("?"), embedding_model="bge")) == 10


async def test_a_process_that_has_not_heard_of_the_cutover_is_corrected_by_the_statement(
    ibex_db: Database, small_pool: Database, home: Home
) -> None:
    ids = await keep(ibex_db, home, CONTENTS)
    assert len(await found(small_pool, home, old("?"))) == 10
    move = Reembedding(ibex_db, home.org_id)
    await move.fill(embed_new, embedding_model="bge", dimensions=768)
    await move.cut_over()

    # It believes in Memory.embedding, whose old vectors are all still there.
    with pytest.raises(InvalidInputError, match="768 dimensions, of bge"):
        await found(small_pool, home, old(CONTENTS[0]))
    assert said(await found(small_pool, home, new(CONTENTS[0])))[0] == CONTENTS[0]
    async with small_pool.tenant(home.org_id) as session:
        hits = await MemoryRepository(session).search(text="Fact number", embedding=new(CONTENTS[3]), limit=30)
    assert len(hits) == len(ids)
    # And now it believes in the new ones, which a third process goes back from.
    await move.roll_back()
    with pytest.raises(InvalidInputError, match="384 dimensions"):
        await found(small_pool, home, new(CONTENTS[0]))
    assert said(await found(small_pool, home, old(CONTENTS[0])))[0] == CONTENTS[0]


async def test_a_writer_that_has_not_heard_of_the_cutover_keeps_nothing(
    ibex_db: Database, small_pool: Database, home: Home, owner: asyncpg.Connection
) -> None:
    await keep(small_pool, home, CONTENTS[:1])
    move = Reembedding(ibex_db, home.org_id)
    await move.fill(embed_new, embedding_model="bge", dimensions=768)
    await move.cut_over()

    with pytest.raises(InvalidInputError, match="768 dimensions, of bge: the organization moved"):
        async with small_pool.tenant(home.org_id) as session:
            await MemoryRepository(session).remember(
                agent_id=home.agent_id, content="Late.", category="factual", embedding=old("Late.")
            )
    async with small_pool.tenant(home.org_id) as session:
        with pytest.raises(RuleViolationError, match="768 dimensions, of bge: the organization moved"):
            await MemoryRepository(session).add(
                Memory(agent_id=home.agent_id, content="Later.", category="factual", embedding=old("Later."))
            )
        await session.rollback()
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memories") == 1
    # Told once, it asks.
    async with small_pool.tenant(home.org_id) as session:
        kept = await MemoryRepository(session).remember(
            agent_id=home.agent_id, content="In time.", category="factual", embedding=new("In time.")
        )
    assert kept.created
    assert said(await found(ibex_db, home, new("In time.")))[0] == "In time."


async def test_cut_over_waits_for_a_writer_under_way_and_the_next_writer_waits_for_it(
    ibex_db: Database, small_pool: Database, home: Home
) -> None:
    await keep(ibex_db, home, CONTENTS[:2])
    move = Reembedding(small_pool, home.org_id)
    await move.fill(embed_new, embedding_model="bge", dimensions=768)

    async with ibex_db.tenant(home.org_id) as session:
        await MemoryRepository(session).remember(
            agent_id=home.agent_id, content="Under way.", category="factual", embedding=old("Under way.")
        )
        cutting = asyncio.create_task(move.cut_over())
        await asyncio.sleep(0.3)
        assert not cutting.done()
    with pytest.raises(IllegalTransitionError, match="1 memories lack"):
        await cutting
    await move.fill(embed_new, embedding_model="bge", dimensions=768)

    async with ibex_db.tenant(home.org_id) as session:
        await session.connection()
        # A cutover that is not committed yet holds the organization; the writer has read the old space by then.
        async with small_pool.tenant(home.org_id) as other:
            await move._switch(other, SpaceStatus.FILLING)  # pyright: ignore[reportPrivateUsage]
            writing = asyncio.create_task(
                MemoryRepository(session).remember(
                    agent_id=home.agent_id, content="Too late.", category="factual", embedding=old("Too late.")
                )
            )
            await asyncio.sleep(0.3)
            assert not writing.done()
        with pytest.raises(InvalidInputError, match="768 dimensions, of bge: the organization moved"):
            await writing
        await session.rollback()
    assert (await move.status()).lacking == 0


async def test_writers_and_searches_go_on_through_a_whole_move_and_nothing_is_lost(
    ibex_db: Database, small_pool: Database, home: Home
) -> None:
    contents = [f"Kept before, {number}." for number in range(60)]
    await keep(ibex_db, home, contents)
    move = Reembedding(small_pool, home.org_id)
    over = asyncio.Event()
    searched: list[str] = []

    async def write(worker: int) -> list[str]:
        kept: list[str] = []
        for number in range(1000):
            if over.is_set() and number % 5 == 0:
                return kept
            content = f"Writer {worker}, {number}."
            for vector, model in ((old, "mini"), (new, "bge")):
                try:
                    await keep(ibex_db, home, [content], vector, model)
                except InvalidInputError:
                    continue
                kept.append(content)
                break
            else:
                raise AssertionError(content)
            await asyncio.sleep(0.01)
        return kept

    async def search() -> None:
        while not over.is_set():
            wanted = contents[len(searched) % len(contents)]
            for vector in (old, new):
                try:
                    hits = await found(ibex_db, home, vector(wanted), limit=1)
                except InvalidInputError:
                    continue
                assert said(hits) == [wanted]
                assert hits[0].similarity == pytest.approx(1, abs=1e-5)
                searched.append(wanted)
                break
            else:
                raise AssertionError(wanted)

    async def steer() -> None:
        while True:
            workers = [move.fill(embed_new, embedding_model="bge", dimensions=768, batch_size=7) for _ in range(2)]
            await asyncio.gather(*workers)
            try:
                status = await move.cut_over()
            except IllegalTransitionError:
                continue
            assert status.lacking == 0
            await asyncio.sleep(0.2)
            over.set()
            return

    written = await asyncio.gather(write(1), write(2), search(), steer())

    kept = [*contents, *written[0], *written[1]]
    status = await move.status()
    assert (status.filled, status.lacking) == (len(kept), 0)
    assert len(searched) > 10
    for content in kept[:: max(1, len(kept) // 40)]:
        assert said(await found(ibex_db, home, new(content), limit=1)) == [content]


async def test_many_workers_share_the_work_and_embed_nothing_twice(
    ibex_db: Database, home: Home, move: Reembedding
) -> None:
    await keep(ibex_db, home, CONTENTS)
    embedded: list[str] = []

    async def embed(contents: list[str]) -> Vectors:
        embedded.extend(contents)
        await asyncio.sleep(0.02)
        return await embed_new(contents)

    done = await asyncio.gather(
        *(move.fill(embed, embedding_model="bge", dimensions=768, batch_size=4) for _ in range(4))
    )

    assert sorted(embedded) == sorted(CONTENTS)
    assert sum(done) == 30
    assert sum(1 for count in done if count) > 1


async def test_what_a_killed_worker_had_claimed_is_embedded_when_its_lease_ends(
    ibex_db: Database, ibex_test_database: TestDatabase, home: Home, move: Reembedding
) -> None:
    await keep(ibex_db, home, CONTENTS)
    program = f"""
import asyncio, os, signal
from uuid import UUID
from ibex_db_core.database import Database
from ibex_db_memory import Reembedding

async def embed(contents):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with Database({_login(ibex_test_database)!r}) as db:
        await Reembedding(db, UUID({str(home.org_id)!r})).fill(
            embed, embedding_model="bge", dimensions=768, batch_size=10, lease=3)

asyncio.run(main())
"""
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await worker.wait() == -9
    status = await move.status()
    assert (status.filled, status.lacking) == (0, 30)

    started = asyncio.get_running_loop().time()
    assert await move.fill(embed_new, embedding_model="bge", dimensions=768, batch_size=10) == 30

    assert asyncio.get_running_loop().time() - started < 10
    assert (await move.cut_over()).filled == 30


async def test_a_worker_whose_model_fails_gives_its_batch_back(
    ibex_db: Database, home: Home, move: Reembedding
) -> None:
    await keep(ibex_db, home, CONTENTS[:4])

    async def broken(_contents: list[str]) -> Vectors:
        raise ConnectionError("the model is down")

    async def short(contents: list[str]) -> Vectors:
        return (await embed_new(contents))[1:]

    async def narrow(contents: list[str]) -> Vectors:
        return [vector[1:] for vector in await embed_new(contents)]

    with pytest.raises(ConnectionError):
        await move.fill(broken, embedding_model="bge", dimensions=768)
    with pytest.raises(InvalidInputError, match="one for each of 4"):
        await move.fill(short, embedding_model="bge", dimensions=768)
    with pytest.raises(InvalidInputError, match="exactly 768"):
        await move.fill(narrow, embedding_model="bge", dimensions=768)
    told: list[tuple[int, int]] = []

    assert (
        await move.fill(
            embed_new,
            embedding_model="bge",
            dimensions=768,
            batch_size=3,
            progress=lambda done, of: told.append((done, of)),
        )
        == 4
    )
    assert told == [(3, 4), (4, 4)]


async def test_the_way_back_and_forth_again(ibex_db: Database, home: Home, move: Reembedding) -> None:
    await moved(ibex_db, home)
    await keep(ibex_db, home, ["Learned since."], new, "bge")

    with pytest.raises(IllegalTransitionError, match="1 memories lack"):
        await move.roll_back()
    assert await move.fill(embed_old, embedding_model="mini", dimensions=384) == 1
    status = await move.roll_back()

    assert status.active is not None
    assert (status.active.embedding_model, status.lacking) == ("mini", 0)
    hits = await found(ibex_db, home, old("Learned since."), limit=50, embedding_model="mini")
    assert (said(hits)[0], len(hits)) == ("Learned since.", 31)
    assert (await move.roll_back()).active.embedding_model == "bge"  # type: ignore[union-attr]
    assert said(await found(ibex_db, home, new("Learned since."), limit=1)) == ["Learned since."]


async def test_giving_a_move_up_leaves_nothing_of_it(
    ibex_db: Database, home: Home, move: Reembedding, owner: asyncpg.Connection
) -> None:
    await keep(ibex_db, home, CONTENTS)
    await move.fill(embed_new, embedding_model="bge", dimensions=768)

    status = await move.roll_back()

    assert (status.active, status.filling, status.filled) == (None, None, 30)
    for table in ("embedding_spaces", "memory_vectors"):
        assert await owner.fetchval(f"SELECT count(*) FROM ibex_core.{table}") == 0
    assert said(await found(ibex_db, home, old(CONTENTS[3])))[0] == CONTENTS[3]


async def test_finish_ends_the_way_back_and_frees_the_place_for_the_next_move(
    ibex_db: Database, home: Home, move: Reembedding, owner: asyncpg.Connection
) -> None:
    await moved(ibex_db, home)
    with pytest.raises(IllegalTransitionError, match=r"finish\(\) first"):
        await move.fill(embed_new, embedding_model="third", dimensions=1024)
    assert await move.finish(batch_size=7) == 30
    assert await owner.fetchval("SELECT count(embedding) FROM ibex_core.memories") == 0
    assert await owner.fetchval("SELECT DISTINCT embedding_model FROM ibex_core.memories") == "bge"
    with pytest.raises(IllegalTransitionError, match="not begun"):
        await move.roll_back()

    async def third(contents: list[str]) -> Vectors:
        return [made(content, 1024) for content in contents]

    assert await move.fill(third, embedding_model="third", dimensions=1024) == 30
    assert (await move.cut_over()).active.dimensions == 1024  # type: ignore[union-attr]
    assert said(await found(ibex_db, home, made(CONTENTS[9], 1024), limit=1)) == [CONTENTS[9]]
    assert await move.finish() == 30
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memory_vectors") == 30


async def test_another_move_must_wait_its_turn(ibex_db: Database, home: Home, move: Reembedding) -> None:
    await keep(ibex_db, home, CONTENTS[:2])
    await move.fill(embed_new, embedding_model="bge", dimensions=768)

    with pytest.raises(IllegalTransitionError, match="bge is filling"):
        await move.fill(embed_new, embedding_model="other", dimensions=768)
    with pytest.raises(InvalidInputError, match="name"):
        await move.fill(embed_new, embedding_model=None, dimensions=768)
    with pytest.raises(IllegalTransitionError, match=r"cut_over\(\) comes first"):
        await move.finish()


async def test_an_organization_can_begin_with_another_dimension(ibex_db: Database, home: Home) -> None:
    move = Reembedding(ibex_db, home.org_id)
    assert await move.fill(embed_new, embedding_model="large", dimensions=3072) == 0
    await move.cut_over()
    assert await move.finish() == 0

    def large(content: str) -> list[float]:
        return made(content, 3072)

    await keep(ibex_db, home, CONTENTS, large, "large")
    assert said(await found(ibex_db, home, large(CONTENTS[2]), limit=1)) == [CONTENTS[2]]


async def test_to_a_model_of_the_same_dimension_the_name_is_required(
    ibex_db: Database, small_pool: Database, home: Home
) -> None:
    def other(content: str) -> list[float]:
        return made(content, 384, salt=1)

    async def embed(contents: list[str]) -> Vectors:
        return [other(content) for content in contents]

    await keep(ibex_db, home, CONTENTS)
    move = Reembedding(ibex_db, home.org_id)
    await move.fill(embed, embedding_model="other", dimensions=384)
    await move.cut_over()

    with pytest.raises(InvalidInputError, match="of other"):
        await keep(ibex_db, home, ["Unnamed."], other, None)
    with pytest.raises(InvalidInputError, match="of other"):
        await keep(ibex_db, home, ["Of before."], old, "mini")
    # In a process that never heard of the organization, too.
    await keep(small_pool, home, ["Named."], other, "other")
    assert said(await found(small_pool, home, other("Named."), limit=1)) == ["Named."]
    assert said(await found(ibex_db, home, other(CONTENTS[5]), limit=1)) == [CONTENTS[5]]


async def test_every_verb_that_takes_a_vector_is_right_after_the_cutover(ibex_db: Database, home: Home) -> None:
    first, second, third, *_ = await moved(ibex_db, home)
    async with ibex_db.tenant(home.org_id) as session:
        memories = MemoryRepository(session)
        kept = await memories.remember(
            agent_id=home.agent_id,
            content="Almost the same.",
            category="factual",
            embedding=new(CONTENTS[0]),
            embedding_model="bge",
            tags=["near"],
            near_duplicate_threshold=0.99,
        )
        assert kept.near_duplicate is not None
        assert kept.near_duplicate.memory.id == first
        again = await memories.remember(
            agent_id=home.agent_id, content="almost THE same.", category="factual", embedding=new("other")
        )
        assert (again.created, again.memory.id) == (False, kept.memory.id)
        assert len(await memories.find_similar(new(CONTENTS[0]), threshold=0.99)) == 2
        tagged = await memories.search(embedding=new("?"), tags_any=["near"])
        assert [hit.memory.id for hit in tagged] == [kept.memory.id]

        changed = await memories.update(second, content="Changed.", embedding=new("Changed."))
        assert said(await memories.search(embedding=new("Changed."), limit=1)) == ["Changed."]
        with pytest.raises(InvalidInputError, match="of bge"):
            await memories.update(second, content="Changed twice.", embedding=old("Changed twice."))
        await memories.revert(second, 1, embedding=new(CONTENTS[1]))
        assert said(await memories.search(embedding=new(CONTENTS[1]), limit=1)) == [CONTENTS[1]]
        await memories.revert(second, 2)
        assert second not in [hit.memory.id for hit in await memories.search(embedding=new("Changed."), limit=100)]
        assert changed.id == second

        merged = await memories.merge(
            [third],
            into={
                "agent_id": home.agent_id,
                "content": "Merged.",
                "category": "factual",
                "embedding": new("Merged."),
                "embedding_model": "bge",
            },
        )
        hits = await memories.search(embedding=new("Merged."), limit=100)
        assert hits[0].memory.id == merged.id
        assert third not in [hit.memory.id for hit in hits]
        assert (await memories.embeddings([merged.id, second]))[merged.id] == pytest.approx(new("Merged."))
        assert list(await memories.embeddings([second])) == []

        gone = await memories.erase(first)
        assert gone["memory_vectors"] == 1
        expired = await memories.remember(
            agent_id=home.agent_id,
            content="Short-lived.",
            category="factual",
            embedding=new("Short-lived."),
            expires_at=datetime.now(UTC) - timedelta(minutes=1),
        )
        renewed = await memories.remember(
            agent_id=home.agent_id, content="Short-lived.", category="factual", embedding=new("Short-lived.")
        )
        assert renewed.created
        hits = await memories.search(embedding=new("Short-lived."), limit=1)
        assert [hit.memory.id for hit in hits] == [renewed.memory.id] != [expired.memory.id]


async def test_a_content_that_changes_without_its_vector_has_none_until_it_is_embedded(
    ibex_db: Database, home: Home, move: Reembedding
) -> None:
    first, *_ = await moved(ibex_db, home)
    await move.finish()
    async with ibex_db.tenant(home.org_id) as session:
        memory = await MemoryRepository(session).get(first)
        memory.content, memory.embedding = "Rewritten by hand.", None

    hits = await found(ibex_db, home, new(CONTENTS[0]), limit=100)

    assert first not in [hit.memory.id for hit in hits]
    assert (await move.status()).lacking == 1
    assert await move.fill(embed_new, embedding_model="bge", dimensions=768) == 1
    assert said(await found(ibex_db, home, new("Rewritten by hand."), limit=1)) == ["Rewritten by hand."]


async def test_hybrid_search_after_the_cutover_judges_by_the_new_vectors(ibex_db: Database, home: Home) -> None:
    await moved(ibex_db, home)
    async with ibex_db.tenant(home.org_id) as session:
        memories = MemoryRepository(session)
        plain = await memories.remember(agent_id=home.agent_id, content="A fact without vector.", category="factual")
        hits = await memories.search(text="fact", embedding=new(CONTENTS[4]), limit=50, explain=True)
        floored = await memories.search(text="fact", embedding=new(CONTENTS[4]), limit=50, min_similarity=0.9)

    assert said(hits)[0] == CONTENTS[4]
    assert hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert len(hits) == 31
    assert next(hit for hit in hits if hit.memory.id == plain.memory.id).similarity is None
    assert said(floored) == [CONTENTS[4]]


async def test_an_export_has_the_active_vectors_and_comes_back_to_the_last_bit(
    ibex_db: Database, home: Home, other_home: Home, owner: asyncpg.Connection
) -> None:
    await moved(ibex_db, home)
    await keep(ibex_db, home, ["Learned since."], new, "bge")

    async def exported(org_id: UUID) -> list[bytes]:
        async with ibex_db.tenant(org_id) as session:
            return [line async for line in MemoryRepository(session).export()]

    lines = await exported(home.org_id)
    async with ibex_db.tenant(other_home.org_id) as session:
        with pytest.raises(InvalidInputError, match="must be 384"):
            await MemoryRepository(session).import_(lines)
    move = Reembedding(ibex_db, other_home.org_id)
    await move.fill(embed_new, embedding_model="bge", dimensions=768)
    await move.cut_over()
    async with ibex_db.tenant(other_home.org_id) as session:
        done = await MemoryRepository(session).import_(lines)
    assert done.created == 31

    assert b'"dimensions": 768' in lines[0]
    rows = await owner.fetch(
        """SELECT m.content, v.embedding::text AS e, count(*) FROM ibex_core.memories m
        JOIN ibex_core.memory_vectors v USING (org_id, id) GROUP BY 1, 2"""
    )
    assert len(rows) == 31
    assert {row["count"] for row in rows} == {2}
    assert (
        await owner.fetchval("SELECT count(embedding) FROM ibex_core.memories WHERE org_id = $1", other_home.org_id)
        == 0
    )
    assert said(await found(ibex_db, other_home, new("Learned since."), limit=1)) == ["Learned since."]


async def test_a_move_is_one_organizations_alone(
    ibex_db: Database, home: Home, other_home: Home, owner: asyncpg.Connection
) -> None:
    await keep(ibex_db, other_home, CONTENTS)
    await moved(ibex_db, home)

    assert len(await found(ibex_db, other_home, old(CONTENTS[0]), limit=100)) == 30
    assert len(await found(ibex_db, home, new(CONTENTS[0]), limit=100)) == 30
    assert await owner.fetchval("SELECT count(DISTINCT org_id) FROM ibex_core.memory_vectors") == 1
    # Both have one now, of the same contents; each finds its own.
    other = Reembedding(ibex_db, other_home.org_id)
    await other.fill(embed_new, embedding_model="bge", dimensions=768)
    await other.cut_over()
    for one in (home, other_home):
        hits = await found(ibex_db, one, new(CONTENTS[0]), limit=100)
        assert {hit.memory.org_id for hit in hits} == {one.org_id}
        assert len(hits) == 30


async def test_no_other_organizations_spaces_and_vectors_are_seen_changed_or_pointed_at(
    ibex_db: Database, home: Home, other_home: Home, owner: asyncpg.Connection
) -> None:
    await moved(ibex_db, home)
    theirs = await moved(ibex_db, other_home)
    space = await owner.fetchval(
        "SELECT id FROM ibex_core.embedding_spaces WHERE org_id = $1 AND status = 'active'", other_home.org_id
    )
    for table, rows in (("embedding_spaces", 2), ("memory_vectors", 30)):
        # There is something to leak: the superuser sees both.
        assert await owner.fetchval(f"SELECT count(*) FROM ibex_core.{table}") == 2 * rows
        async with ibex_db.tenant(home.org_id) as session:
            seen = (await session.execute(text(f"SELECT DISTINCT org_id FROM ibex_core.{table}"))).scalars().all()
            assert seen == [home.org_id]
            where = {"org_id": other_home.org_id}
            for statement in (
                f"UPDATE ibex_core.{table} SET dimensions = dimensions WHERE org_id = :org_id RETURNING 1",
                f"DELETE FROM ibex_core.{table} WHERE org_id = :org_id RETURNING 1",
            ):
                assert (await session.execute(text(statement), where)).all() == []
    insert = text(
        "INSERT INTO ibex_core.memory_vectors (org_id, space_id, id, content_hash, dimensions, claimed_until) "
        "VALUES (:org_id, :space_id, :id, 'x', 768, now())"
    )
    # As theirs: the policy.  As ours, of their memory and in their space: the foreign keys.
    for org_id, refused in ((other_home.org_id, AccessDeniedError), (home.org_id, ForeignKeyError)):
        with pytest.raises(refused):
            async with ibex_db.tenant(home.org_id) as session:
                await session.execute(insert, {"org_id": org_id, "space_id": space, "id": theirs[0]})


async def test_erasing_the_organization_erases_both_models_vectors(
    ibex_db: Database, home: Home, owner: asyncpg.Connection
) -> None:
    await moved(ibex_db, home)
    async with ibex_db.platform(reason="test") as session:
        assert await session.get(Organization, home.org_id) is not None
        gone = await OrganizationRepository(session).erase(home.org_id)

    assert (gone["memory_vectors"], gone["embedding_spaces"]) == (30, 2)
    assert await owner.fetchval("SELECT count(*) FROM ibex_core.memory_vectors") == 0


async def test_the_database_holds_a_vector_to_its_space(
    ibex_db: Database, home: Home, owner: asyncpg.Connection
) -> None:
    first, *_ = await moved(ibex_db, home)
    statement = """INSERT INTO ibex_core.memory_vectors (org_id, space_id, id, content_hash, dimensions, embedding)
        SELECT org_id, id, $1, 'x', $2, $3::text::vector FROM ibex_core.embedding_spaces WHERE status = $4"""

    for dimensions, vector, status in ((3, "[1,2,3]", "active"), (768, "[1,2,3]", "active")):
        await owner.execute("DELETE FROM ibex_core.memory_vectors WHERE id = $1", first)
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await owner.execute(statement, first, dimensions, vector, status)
    with pytest.raises(asyncpg.CheckViolationError, match="768 dimensions, of bge"):
        await owner.execute(statement, first, 384, str(old("x")), "retired")


def _login(database: TestDatabase) -> str:
    return database.cluster.url(database.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
