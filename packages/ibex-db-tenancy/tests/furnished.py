"""What the examples in docstrings use without saying where it comes from."""

import ibex_db_core
import ibex_db_tenancy
from ibex_db_core.tenant import ScopedSession
from ibex_db_tenancy import (
    Agent,
    AgentRepository,
    Directive,
    DirectiveRepository,
    TokenRepository,
    User,
    UserRepository,
)


async def furnish(session: ScopedSession) -> dict[str, object]:
    """Give the session's organization a user, an agent and a directive; return them and what wheels export, by name."""
    users, agents, directives = UserRepository(session), AgentRepository(session), DirectiveRepository(session)
    user = await users.add(User(email="owner@acme.example", name="Owner"))
    agent = await agents.add(Agent(name="Support", slug="support"))
    directive = await directives.add(Directive(name="Manners"))
    version = await directives.draft(directive.id, content="Be kind.")
    await session.commit()
    return {
        **vars(ibex_db_core),
        **vars(ibex_db_tenancy),
        "session": session,
        "user": user,
        "users": users,
        "agent": agent,
        "agents": agents,
        "directive": directive,
        "directives": directives,
        "version": version,
        "tokens": TokenRepository(session),
    }
