"""Two organizations with a row in every tenant table each, told apart by their keys alone."""

from dataclasses import dataclass
from uuid import UUID

from ibex_db import (
    Agent,
    AgentRepository,
    Database,
    Directive,
    DirectiveVersion,
    EngineSettings,
    MemoryRepository,
    Organization,
    Reembedding,
    RelationshipType,
    SessionRepository,
    TokenRepository,
    User,
    UserRepository,
)

ONE = EngineSettings(pool_size=1, max_overflow=0, pool_timeout=5.0)
"""One connection: whatever a transaction leaves behind, the next one meets."""

VECTOR = [1.0] + [0.0] * 383
"""The same for both: only the walls keep one's search from the other's row."""


@dataclass(frozen=True)
class Tenant:
    """The keys of one organization's rows."""

    org_id: UUID
    user_id: UUID
    agent_id: UUID
    memory_id: UUID
    other_memory_id: UUID
    session_id: UUID


@dataclass(frozen=True)
class Two:
    """Who asks (a), and who must stay unseen (b)."""

    a: Tenant
    b: Tenant


async def populate(db: Database) -> Two:
    """Make both."""
    return Two(await _tenant(db, "alpha"), await _tenant(db, "beta"))


async def sign_up(db: Database, slug: str) -> UUID:
    """Make an organization that has nothing yet, and return its id."""
    async with db.platform(reason="isolation tests: sign-up") as session:
        organization = Organization(name=slug.title(), slug=slug)
        session.add(organization)
    return organization.id


async def _embed(contents: list[str]) -> list[list[float]]:
    return [[1.0, 0.0, 0.0] for _ in contents]


async def _tenant(db: Database, slug: str) -> Tenant:
    org_id = await sign_up(db, slug)
    async with db.tenant(org_id) as session:
        user = await UserRepository(session).add(User(email="dana@example.com", name="Dana"))
        agent = await AgentRepository(session).add(Agent(name="Robin", slug="robin", created_by=user.id))
        directive = Directive(name="Tone", created_by=user.id)
        session.add(directive)
        await session.flush()
        session.add(DirectiveVersion(directive_id=directive.id, version_number=1, content="Be kind."))
        await TokenRepository(session).issue(name="ci", user_id=user.id)
        run = await SessionRepository(session).start(agent_id=agent.id, external_id="run-1")
        await SessionRepository(session).checkpoint(run.id, {"step": 1})
        memories = MemoryRepository(session)
        kept = await memories.remember(
            agent_id=agent.id,
            content="Prefers tea.",
            category="preference",
            embedding=VECTOR,
            tags=["drinks"],
            session_id=run.id,
        )
        other = await memories.remember(
            agent_id=agent.id, content="Tea at four.", category="behavioral", embedding=[0.0, *VECTOR[:-1]]
        )
        await memories.relate(other.memory.id, kept.memory.id, RelationshipType.DERIVED_FROM)
        # A row in each table of erasures, too.
        gone = await memories.remember(agent_id=agent.id, content="To be erased.", category="factual")
        await memories.erase(gone.memory.id, reason="isolation tests")
    # And in those of a move to another model, which is under way.
    await Reembedding(db, org_id).fill(_embed, embedding_model="three", dimensions=3)
    return Tenant(org_id, user.id, agent.id, kept.memory.id, other.memory.id, run.id)
