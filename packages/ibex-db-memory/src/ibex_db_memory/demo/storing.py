"""Organizations and agents found or made, and a corpus remembered: the same whether it is new or known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import ARRAY, Float, Integer, Uuid, bindparam, text

from ibex_db_core.database import Database
from ibex_db_core.tenant import ScopedSession
from ibex_db_memory.demo.corpus import Corpus, slug_of
from ibex_db_memory.demo.questions import Scope
from ibex_db_memory.repositories import MemoryRepository
from ibex_db_tenancy.models import Agent, Organization
from ibex_db_tenancy.repositories import AgentRepository, OrganizationRepository

__all__ = ["SLUG_PREFIX", "Stored", "find_or_make", "store"]

# Nobody's real organization is touched, whatever the corpus calls its own.
SLUG_PREFIX = "demo-"

# One transaction each: an interrupted run leaves whole batches, and the next run finds them known.
_BATCH = 500

Progress = Callable[[int, int], None]
"""Told how many are done, of how many."""


@dataclass(slots=True)
class Stored:
    """A corpus in a database.

    Attributes:
        organizations: name to id.
        agents: organization and agent to id.
        ids: of each record's memory; equal for records that say the same.
        created: how many were new.
    """

    corpus: Corpus
    organizations: Mapping[str, UUID]
    agents: Mapping[Scope, UUID]
    ids: dict[int, UUID] = field(default_factory=dict[int, UUID])
    created: int = 0

    @property
    def known(self) -> int:
        """How many were known already, or came twice."""
        return len(self.ids) - self.created

    def positions(self, organization: str) -> Sequence[int]:
        """Return the positions of an organization's records."""
        return [at for at, record in enumerate(self.corpus.records) if record.scope[0] == organization]


async def find_or_make(db: Database, corpus: Corpus) -> Stored:
    """Find a corpus's organizations and agents by their slugs, and make those that are missing; race-free."""
    organizations: dict[str, UUID] = {}
    async with db.platform(reason="sign the organizations up") as session:
        for name in corpus.organizations:
            organizations[name] = (await _organization(OrganizationRepository(session), name)).id
    agents: dict[Scope, UUID] = {}
    for name, org_id in organizations.items():
        async with db.tenant(org_id) as session:
            repository = AgentRepository(session)
            for scope in (scope for scope in corpus.scopes if scope[0] == name):
                agents[scope] = (await _agent(repository, scope[1])).id
    return Stored(corpus, organizations, agents)


async def _organization(repository: OrganizationRepository, name: str) -> Organization:
    slug = f"{SLUG_PREFIX}{slug_of(name)}"
    found = await repository.by_slug(slug)
    # deleted_at is set, to nothing: one that was deleted keeps its slug, and comes back.
    wanted = Organization(name=_title(name), slug=slug, deleted_at=None, settings={"made_by": "ibex-db demo"})
    return found or await repository.upsert(wanted, on="organizations_slug_key", update=["name", "deleted_at"])


async def _agent(repository: AgentRepository, name: str) -> Agent:
    slug = slug_of(name)
    found = await repository.by_slug(slug)
    return found or await repository.upsert(
        Agent(name=_title(name), slug=slug), on="agents_org_id_slug_live", update=["name"]
    )


def _title(name: str) -> str:
    """Return a slug as people write it; any other name as it is."""
    return name.replace("-", " ").title() if slug_of(name) == name else name


async def store(db: Database, stored: Stored, *, progress: Progress | None = None) -> Stored:
    """Remember the corpus, each organization in its own sessions, and return what became of each record."""
    kept = Stored(stored.corpus, stored.organizations, stored.agents)
    for name, org_id in stored.organizations.items():
        positions = stored.positions(name)
        for start in range(0, len(positions), _BATCH):
            batch = positions[start : start + _BATCH]
            # run(): two demos at once may wait for each other's rows longer than lock_timeout.
            created = await db.run(org_id, _remember, kept, batch)
            kept.created += created
            if progress is not None:
                progress(len(kept.ids), len(stored.corpus.records))
    return kept


async def _remember(session: ScopedSession, kept: Stored, batch: Sequence[int]) -> int:
    result = await MemoryRepository(session).remember_many(kept.corpus.drafts(batch, kept.agents))
    created: dict[int, UUID] = {}
    for position, outcome in zip(batch, result.outcomes, strict=True):
        kept.ids[position] = outcome.id
        if outcome.created:
            created[position] = outcome.id
    await _date(session, kept.corpus, created)
    return len(created)


# The API dates a memory itself, and counts its uses as they happen.  A corpus that was lived elsewhere has both
# behind it, so the demo says so in raw SQL, in the organization's own session: no trigger and no policy is passed by.
# The last use lies as far back as the uses lie apart.
_DATE = text(
    """
    UPDATE ibex_core.memories m
    SET created_at = now() - make_interval(secs => i.age * 86400),
        retrieval_count = i.uses,
        last_retrieved_at = CASE WHEN i.uses > 0 THEN now() - make_interval(secs => i.age * 86400 / (i.uses + 1)) END
    FROM unnest(:ids, :ages, :uses) AS i (id, age, uses)
    WHERE m.org_id = :org_id AND m.id = i.id
    """
).bindparams(
    bindparam("ids", type_=ARRAY(Uuid())),
    bindparam("ages", type_=ARRAY(Float())),
    bindparam("uses", type_=ARRAY(Integer())),
    bindparam("org_id", type_=Uuid()),
)


async def _date(session: ScopedSession, corpus: Corpus, created: Mapping[int, UUID]) -> None:
    records = ((ident, corpus.records[at]) for at, ident in created.items())
    lived = [(ident, record) for ident, record in records if record.age_days is not None or record.retrievals]
    if lived:
        parameters = {
            "org_id": session.org_id,
            "ids": [ident for ident, _ in lived],
            "ages": [record.age_days or 0.0 for _, record in lived],
            "uses": [record.retrievals for _, record in lived],
        }
        await session.execute(_DATE, parameters)
