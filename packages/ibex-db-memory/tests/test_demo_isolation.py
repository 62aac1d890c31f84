"""The proof of isolation holds on our schema, and fails where somebody has opened a wall."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from ibex_db_core.database import Database
from ibex_db_core.engine import EngineSettings
from ibex_db_core.testing import TestDatabase
from ibex_db_memory import Memory, MemoryCategory, MemoryRepository
from ibex_db_memory.demo import Claim, prove_isolation
from ibex_db_tenancy import Agent, AgentRepository, Organization

CONTENTS = ("The garage closes at ten.", "The rota changes on Friday.", "Dana decides on leave.")


def vector(seed: int) -> list[float]:
    return [float((seed * 31 + at * 17) % 13 - 6) for at in range(384)]


@dataclass(frozen=True)
class Side:
    """An organization with one agent."""

    org_id: UUID
    agent_id: UUID


@pytest_asyncio.fixture
async def homes(ibex_db: Database) -> tuple[Side, Side]:
    """Give two organizations that remember the same sentences, with vectors of their own."""
    return await settle(ibex_db, 1), await settle(ibex_db, 2)


async def settle(db: Database, seed: int) -> Side:
    async with db.platform(reason="test data") as session:
        org = Organization(name=f"Side {seed}", slug=f"side-{seed}")
        session.add(org)
    async with db.tenant(org.id) as session:
        agent = await AgentRepository(session).add(Agent(name="Desk", slug="desk"))
        for number, content in enumerate(CONTENTS):
            await MemoryRepository(session).remember(
                agent_id=agent.id,
                content=content,
                category=MemoryCategory.FACTUAL,
                embedding=vector(10 * seed + number),
            )
    return Side(org.id, agent.id)


async def as_owner(database: TestDatabase, *statements: str) -> None:
    connection = await asyncpg.connect(database.cluster.url(database.name).render_as_string(hide_password=False))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def failing(claims: Sequence[Claim]) -> set[str]:
    return {claim.statement for claim in claims if not claim.holds}


async def test_every_road_is_closed_both_ways(ibex_db: Database, homes: tuple[Side, Side]) -> None:
    a, b = homes

    for claims in (
        await prove_isolation(ibex_db, a.org_id, b.org_id),
        await prove_isolation(ibex_db, b.org_id, a.org_id),
    ):
        assert len(claims) == 14
        assert not failing(claims), [claim for claim in claims if not claim.holds]


async def test_the_proof_leaves_nothing_behind(ibex_db: Database, homes: tuple[Side, Side]) -> None:
    """What it inserts, changes and deletes is taken back."""

    async def rows() -> list[object]:
        found: list[object] = []
        for each in homes:
            async with ibex_db.tenant(each.org_id) as session:
                memories = await MemoryRepository(session).find(include_deleted=True)
                found.extend((memory.id, memory.content, memory.updated_at) for memory in memories)
        return found

    before = await rows()
    await prove_isolation(ibex_db, homes[0].org_id, homes[1].org_id)

    assert await rows() == before


async def test_it_holds_with_a_pool_of_one_and_of_many(
    ibex_test_database: TestDatabase, homes: tuple[Side, Side]
) -> None:
    """The connection that carried the tenant is found again, among others too."""
    async with ibex_test_database.connect(EngineSettings(pool_size=1, max_overflow=0)) as db:
        assert not failing(await prove_isolation(db, homes[0].org_id, homes[1].org_id))
    async with ibex_test_database.connect(EngineSettings(pool_size=5)) as db:
        async with db.engine.connect(), db.engine.connect(), db.engine.connect():
            pass
        assert not failing(await prove_isolation(db, homes[0].org_id, homes[1].org_id))


async def test_it_fails_where_a_policy_was_opened(
    ibex_db: Database, ibex_test_database: TestDatabase, homes: tuple[Side, Side]
) -> None:
    """The floor gone and a second policy that shows everything: a mistake of one migration."""
    await as_owner(
        ibex_test_database,
        "DROP POLICY memories_floor ON ibex_core.memories",
        "CREATE POLICY oops ON ibex_core.memories TO ibex_app USING (true) WITH CHECK (true)",
    )

    claims = await prove_isolation(ibex_db, homes[0].org_id, homes[1].org_id)

    told = " ".join(failing(claims))
    # INSERT is still refused: the trigger writes the first version, under a policy of its own.
    for road in ("without any WHERE", "WHERE org_id", "No table", "UPDATE", "DELETE", "Without a tenant"):
        assert road in told, road
    assert "repository" not in told.replace("a repository", "")  # its own filter still stands
    assert "foreign key" not in told


async def test_it_fails_where_row_security_was_switched_off(
    ibex_db: Database, ibex_test_database: TestDatabase, homes: tuple[Side, Side]
) -> None:
    """On a table that holds no memories, too."""
    await as_owner(ibex_test_database, "ALTER TABLE ibex_core.memory_versions DISABLE ROW LEVEL SECURITY")

    claims = await prove_isolation(ibex_db, homes[0].org_id, homes[1].org_id)

    (claim,) = [claim for claim in claims if not claim.holds]
    assert claim.statement.startswith("No table at all")
    assert "memory_versions" in claim.evidence


async def test_it_fails_where_a_foreign_key_is_gone(
    ibex_db: Database, ibex_test_database: TestDatabase, homes: tuple[Side, Side]
) -> None:
    """The third wall, which policies do not replace."""
    await as_owner(
        ibex_test_database,
        "ALTER TABLE ibex_core.memory_relationships DROP CONSTRAINT memory_relationships_org_id_target_memory_id_fkey",
    )

    claims = await prove_isolation(ibex_db, homes[0].org_id, homes[1].org_id)

    (claim,) = [claim for claim in claims if not claim.holds]
    assert "point at" in claim.statement
    assert "NOT REFUSED" in claim.evidence


async def test_it_does_not_hold_where_nobody_sees_anything(
    ibex_db: Database, ibex_test_database: TestDatabase, homes: tuple[Side, Side]
) -> None:
    """Walls without doors prove nothing: the owner must reach its own."""
    await as_owner(ibex_test_database, "DROP POLICY memories_tenant ON ibex_core.memories")

    claims = await prove_isolation(ibex_db, homes[0].org_id, homes[1].org_id)

    assert claims
    assert not any(claim.holds for claim in claims)


async def test_an_unexpected_refusal_is_told_in_the_evidence(
    ibex_db: Database, ibex_test_database: TestDatabase, homes: tuple[Side, Side]
) -> None:
    """The owner's half of a step fails, for a grant is missing."""
    await as_owner(ibex_test_database, "REVOKE DELETE ON ibex_core.memories FROM ibex_app")

    claims = await prove_isolation(ibex_db, homes[0].org_id, homes[1].org_id)

    (claim,) = [claim for claim in claims if not claim.holds]
    assert "DELETE" in claim.statement
    assert claim.evidence.startswith("unexpected AccessDeniedError")


@pytest.mark.parametrize("empty", ["intruder", "owner"])
async def test_an_organization_without_memories_proves_nothing(
    ibex_db: Database, homes: tuple[Side, Side], empty: str
) -> None:
    side = homes[0 if empty == "intruder" else 1]
    async with ibex_db.tenant(side.org_id) as session:
        for memory in await MemoryRepository(session).find(Memory.agent_id == side.agent_id):
            await MemoryRepository(session).delete(memory.id)

    (claim,) = await prove_isolation(ibex_db, homes[0].org_id, homes[1].org_id)

    assert not claim.holds
    assert str(side.org_id) in claim.evidence
