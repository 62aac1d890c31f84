"""Several tenants at random over a small pool, held against a model in plain Python.

Units of work stay open across steps, so that tenants interleave and hand connections to each other.  Every row that
comes back is looked at: whose it is, and whether the model has it.
IBEX_PROPERTY_EXAMPLES=500 searches longer, at random, and shortens what it finds.
"""

import asyncio
import copy
import os
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID, uuid4

import pytest
from bouncer import Route
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from two import VECTOR, sign_up

from ibex_db import (
    Agent,
    AgentRepository,
    ConflictError,
    Database,
    EngineSettings,
    ForeignKeyError,
    Memory,
    MemoryRepository,
    NotFoundError,
    TenantMismatchError,
)
from ibex_db_core.testing import TestDatabase

T = TypeVar("T")

EXAMPLES = int(os.environ.get("IBEX_PROPERTY_EXAMPLES", "10"))
LONG = "IBEX_PROPERTY_EXAMPLES" in os.environ
STEPS = 40
TENANTS = 3
POOL = EngineSettings(pool_size=3, max_overflow=0, pool_timeout=5.0)
OPEN_UNITS = POOL.pool_size - 1  # one connection is left for everybody else, who then share it

STEPS_THAT_COUNT = {
    *("add", "add a twin", "search", "search for words", "update", "erase", "forget", "restore", "relate", "neighbors"),
    *("commit", "roll back", "ask for another's", "reach for another's"),
}
"""What each run must have done to some effect: a step that found nothing to do proves nothing."""

tenants = st.integers(0, TENANTS - 1)
picks = st.integers(0, 1_000)
SAID_AT_FIRST = ["tea", "rain", "Oslo", "keys"]  # by each: something is there to be taken, and looks like the others'
words = st.sampled_from(["tea", "rain", "Oslo", "keys", "bread", "music"])


@dataclass
class _Row:
    """What the model knows of a memory."""

    content: str
    confidence: float
    embedded: bool
    forgotten: bool = False


@dataclass
class _State:
    """What a tenant should see."""

    rows: dict[UUID, _Row] = field(default_factory=dict[UUID, _Row])
    edges: set[tuple[UUID, UUID]] = field(default_factory=set[tuple[UUID, UUID]])

    @property
    def live(self) -> dict[UUID, _Row]:
        return {ident: row for ident, row in self.rows.items() if not row.forgotten}

    def twin(self, content: str) -> UUID | None:
        return next((ident for ident, row in self.live.items() if row.content == content), None)


@dataclass
class _Unit:
    """A unit of work that stays open between the steps, and what a rollback goes back to."""

    context: AbstractAsyncContextManager[AsyncSession]
    session: AsyncSession
    before: _State


class _RolledBackError(Exception):
    """Ends a unit of work."""


@dataclass
class _Tenant:
    org_id: UUID
    agent_id: UUID
    state: _State = field(default_factory=_State)
    unit: _Unit | None = None

    def pick(self, number: int) -> UUID:
        idents = list(self.state.live)
        return idents[number % len(idents)]


class Tenants(RuleBasedStateMachine):
    """Add, search, update, delete, relate, roll back; and ask for what is not one's own."""

    def __init__(self, db: Database, runner: asyncio.Runner, done: Counter[str]) -> None:
        super().__init__()
        self.done = done
        self.db = db
        self.runner = runner
        self.tenants = [runner.run(self._sign_up()) for _ in range(TENANTS)]
        for number in range(OPEN_UNITS):  # the last tenant works between the others' open transactions
            self.begin(number)

    async def _sign_up(self) -> _Tenant:
        org_id = await sign_up(self.db, uuid4().hex)
        async with self.db.tenant(org_id) as session:
            agent = await AgentRepository(session).add(Agent(name="Robin", slug="robin"))
            tenant = _Tenant(org_id, agent.id)
            for content in SAID_AT_FIRST:
                kept = await MemoryRepository(session).remember(
                    agent_id=agent.id, content=content, category="factual", confidence=0.5, embedding=VECTOR
                )
                tenant.state.rows[kept.memory.id] = _Row(content, 0.5, embedded=True)
            one, other, *_, last = tenant.state.rows
            await MemoryRepository(session).relate(one, other, "related_to")
            tenant.state.edges.add((one, other))
            await MemoryRepository(session).forget(last)
            tenant.state.rows[last].forgotten = True
        return tenant

    # -- one step in the tenant's unit of work, or in one of its own

    @asynccontextmanager
    async def _memories(self, tenant: _Tenant) -> AsyncGenerator[MemoryRepository]:
        if tenant.unit is not None:
            async with tenant.unit.session.begin_nested():  # an error that is expected must not end the unit
                yield MemoryRepository(tenant.unit.session, tenant.org_id)
        else:
            async with self.db.tenant(tenant.org_id) as session:
                yield MemoryRepository(session)

    def _do(self, tenant: _Tenant, work: Callable[[MemoryRepository], Awaitable[T]]) -> T:
        async def step() -> T:
            async with self._memories(tenant) as memories:
                return await work(memories)

        return self.runner.run(step())

    def _seen(self, tenant: _Tenant, rows: Sequence[Memory]) -> set[UUID]:
        """Hold rows that came back against the model; return their ids."""
        for row in rows:
            assert row.org_id == tenant.org_id, f"{tenant.org_id} was shown a row of {row.org_id}"
            expected = tenant.state.rows[row.id]
            assert (row.content, float(row.confidence)) == (expected.content, expected.confidence)
        return {row.id for row in rows}

    # -- the steps

    @rule(who=tenants, word=words, embedded=st.booleans())
    def add(self, who: int, word: str, embedded: bool) -> None:  # noqa: FBT001 - hypothesis passes by name
        tenant = self.tenants[who]
        twin = tenant.state.twin(word)

        kept = self._do(
            tenant,
            lambda memories: memories.remember(
                agent_id=tenant.agent_id,
                content=word,
                category="factual",
                confidence=0.5,
                embedding=VECTOR if embedded else None,
            ),
        )

        assert kept.created == (twin is None)
        self.done["add"] += 1
        self.done["add a twin"] += twin is not None
        if twin is None:
            tenant.state.rows[kept.memory.id] = _Row(word, 0.5, embedded)
        else:
            assert kept.memory.id == twin
        self._seen(tenant, [kept.memory])

    @rule(who=tenants)
    def search(self, who: int) -> None:
        tenant = self.tenants[who]

        hits = self._do(tenant, lambda memories: memories.search(embedding=VECTOR, limit=100))

        found = self._seen(tenant, [hit.memory for hit in hits])
        assert found == {ident for ident, row in tenant.state.live.items() if row.embedded}
        self.done["search"] += 1

    @rule(who=tenants, word=words)
    def search_for_words(self, who: int, word: str) -> None:
        tenant = self.tenants[who]

        hits = self._do(tenant, lambda memories: memories.search(text=word, limit=100))

        found = self._seen(tenant, [hit.memory for hit in hits])
        assert found == {ident for ident, row in tenant.state.live.items() if row.content == word}
        self.done["search for words"] += bool(found)

    @precondition(lambda self: any(tenant.state.live for tenant in self.tenants))
    @rule(who=tenants, number=picks, confidence=st.sampled_from([0.0, 0.25, 0.75, 1.0]))
    def update(self, who: int, number: int, confidence: float) -> None:
        tenant = self.tenants[who]
        if tenant.state.live:
            ident = tenant.pick(number)

            row = self._do(tenant, lambda memories: memories.update(ident, confidence=confidence))

            tenant.state.rows[ident].confidence = confidence
            self._seen(tenant, [row])
            self.done["update"] += 1

    @rule(who=tenants, number=picks, for_good=st.booleans())
    def delete(self, who: int, number: int, for_good: bool) -> None:  # noqa: FBT001 - hypothesis passes by name
        tenant = self.tenants[who]
        if not tenant.state.live:
            return
        ident = tenant.pick(number)

        self._do(tenant, lambda memories: memories.erase(ident) if for_good else memories.forget(ident))

        self.done["erase" if for_good else "forget"] += 1
        if for_good:
            del tenant.state.rows[ident]
            tenant.state.edges = {edge for edge in tenant.state.edges if ident not in edge}
        else:
            tenant.state.rows[ident].forgotten = True

    @rule(who=tenants, number=picks)
    def restore(self, who: int, number: int) -> None:
        tenant = self.tenants[who]
        forgotten = [ident for ident, row in tenant.state.rows.items() if row.forgotten]
        if not forgotten:
            return
        ident = forgotten[number % len(forgotten)]
        if tenant.state.twin(tenant.state.rows[ident].content) is not None:
            with pytest.raises(ConflictError):
                self._do(tenant, lambda memories: memories.restore(ident))
        else:
            row = self._do(tenant, lambda memories: memories.restore(ident))
            tenant.state.rows[ident].forgotten = False
            self.done["restore"] += 1
            self._seen(tenant, [row])

    @rule(who=tenants, here=picks, there=picks)
    def relate(self, who: int, here: int, there: int) -> None:
        tenant = self.tenants[who]
        if len(tenant.state.live) < 2:
            return
        one, other = tenant.pick(here), tenant.pick(there)
        if one != other:
            edge = self._do(tenant, lambda memories: memories.relate(one, other, "related_to"))
            assert edge.org_id == tenant.org_id
            tenant.state.edges.add((one, other))
            self.done["relate"] += 1

    @rule(who=tenants, number=picks)
    def neighbors(self, who: int, number: int) -> None:
        tenant = self.tenants[who]
        related = sorted({ident for edge in tenant.state.edges for ident in edge} & set(tenant.state.live))
        if not related:
            return
        ident = related[number % len(related)]

        found = self._do(tenant, lambda memories: memories.neighbors(ident))

        expected = {one if other == ident else other for one, other in tenant.state.edges if ident in {one, other}}
        assert self._seen(tenant, [neighbor.memory for neighbor in found]) == expected & set(tenant.state.live)
        self.done["neighbors"] += bool(found)

    # -- units of work that stay open

    @rule(who=tenants)
    def begin(self, who: int) -> None:
        tenant = self.tenants[who]
        if tenant.unit is None and sum(other.unit is not None for other in self.tenants) < OPEN_UNITS:
            context = self.db.tenant(tenant.org_id)
            session = self.runner.run(_enter(context))
            tenant.unit = _Unit(context, session, copy.deepcopy(tenant.state))

    @precondition(lambda self: any(tenant.unit for tenant in self.tenants))
    @rule(who=tenants)
    def commit(self, who: int) -> None:
        tenant = self.tenants[who]
        if tenant.unit is not None:
            unit, tenant.unit = tenant.unit, None
            self.runner.run(_leave(unit.context))
            self.done["commit"] += unit.before != tenant.state

    @precondition(lambda self: any(tenant.unit for tenant in self.tenants))
    @rule(who=tenants)
    def roll_back(self, who: int) -> None:
        tenant = self.tenants[who]
        if tenant.unit is not None:
            unit, tenant.unit = tenant.unit, None
            self.done["roll back"] += unit.before != tenant.state
            tenant.state = unit.before
            with pytest.raises(_RolledBackError):
                self.runner.run(_leave(unit.context, _RolledBackError()))

    # -- what is not one's own

    @rule(who=tenants, whose=tenants, number=picks)
    def ask_for_anothers(self, who: int, whose: int, number: int) -> None:
        tenant, other = self.tenants[who], self.tenants[whose]
        if tenant is other or not other.state.live:
            return
        foreign = other.pick(number)

        self.done["ask for another's"] += 1
        assert self._do(tenant, lambda memories: memories.get_or_none(foreign)) is None
        assert self._do(tenant, lambda memories: memories.get_many([foreign])) == []
        assert self._do(tenant, lambda memories: memories.neighbors(foreign)) == []
        with pytest.raises(NotFoundError):
            self._do(tenant, lambda memories: memories.update(foreign, confidence=0.1))
        with pytest.raises(NotFoundError):
            self._do(tenant, lambda memories: memories.forget(foreign))
        with pytest.raises(NotFoundError):
            self._do(tenant, lambda memories: memories.erase(foreign))

    @rule(who=tenants, whose=tenants, number=picks, own=picks)
    def reach_for_anothers(self, who: int, whose: int, number: int, own: int) -> None:
        tenant, other = self.tenants[who], self.tenants[whose]
        if tenant is other or not other.state.live or not tenant.state.live:
            return
        foreign, ident = other.pick(number), tenant.pick(own)

        with pytest.raises(ForeignKeyError):
            self._do(tenant, lambda memories: memories.relate(ident, foreign, "related_to"))
        with pytest.raises(TenantMismatchError):
            self._do(tenant, lambda memories: memories.add(_of(other)))
        self.done["reach for another's"] += 1

    # -- after each step

    @invariant()
    def each_sees_its_own(self) -> None:
        for tenant in self.tenants:
            assert self._do(tenant, _everything) == {(tenant.org_id, ident) for ident in tenant.state.rows}

    def teardown(self) -> None:
        """End what is open, and look at all of it once more: rows, their fields, and the edges."""
        for number in range(TENANTS):
            if self.tenants[number].unit is not None:
                (self.roll_back if number else self.commit)(number)
        for tenant in self.tenants:
            rows = self._do(tenant, lambda memories: memories.get_many(list(tenant.state.rows), include_deleted=True))  # noqa: B023 - run at once
            assert self._seen(tenant, rows) == set(tenant.state.rows)
            assert self._do(tenant, _edges) == tenant.state.edges


async def _enter(context: AbstractAsyncContextManager[AsyncSession]) -> AsyncSession:
    return await context.__aenter__()


async def _leave(context: AbstractAsyncContextManager[AsyncSession], error: Exception | None = None) -> None:
    suppressed = await context.__aexit__(type(error) if error else None, error, None)
    if error is not None and not suppressed:
        raise error


def _of(tenant: _Tenant) -> Memory:
    return Memory(org_id=tenant.org_id, agent_id=tenant.agent_id, content="Planted.", category="factual")


async def _everything(memories: MemoryRepository) -> set[tuple[UUID, UUID]]:
    """Read without our filter: whatever the policies let through."""
    found = await memories.session.execute(text("SELECT org_id, id FROM ibex_core.memories"))
    return {(row.org_id, row.id) for row in found}


async def _edges(memories: MemoryRepository) -> set[tuple[UUID, UUID]]:
    found = await memories.session.execute(
        text("SELECT source_memory_id AS source, target_memory_id AS target FROM ibex_core.memory_relationships")
    )
    return {(row.source, row.target) for row in found}


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for every step: the pool belongs to it."""
    with asyncio.Runner() as one:
        yield one


def test_whatever_several_tenants_do_each_sees_its_own_rows_and_all_of_them(
    shared: TestDatabase, route: Route, runner: asyncio.Runner
) -> None:
    db = route.connect(shared, POOL)
    done: Counter[str] = Counter()

    class OnThisDatabase(Tenants):
        def __init__(self) -> None:
            super().__init__(db, runner, done)

    try:
        run_state_machine_as_test(
            OnThisDatabase,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                derandomize=not LONG,
                phases=[Phase.generate, Phase.shrink] if LONG else [Phase.generate],
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            ),
        )
    finally:
        runner.run(db.close())
    assert {name for name in STEPS_THAT_COUNT if not done[name]} == set(), f"never came to pass: {done}"
