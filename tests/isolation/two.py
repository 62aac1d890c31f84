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


async def _tenant(db: Database, slug: str) -> Tenant:
    async with db.platform(reason="isolation tests: sign-up") as session:
        organization = Organization(name=slug.title(), slug=slug)
        session.add(organization)
    async with db.tenant(organization.id) as session:
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
        gone = await memories.remember(agent_id=agent.id, content="Wears a wig.", category="factual")
        await memories.erase(gone.memory.id)
    return Tenant(organization.id, user.id, agent.id, kept.memory.id, other.memory.id, run.id)
