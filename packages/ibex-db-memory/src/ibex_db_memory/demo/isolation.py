"""The proof that one organization cannot reach another's rows, by any road that services have.

Each road runs the same statements twice, under the same role: in the session
of the organization that owns the row, where they must succeed, and in the
other's, where they must not.  A wall around nothing proves nothing, so a road
whose first half fails does not hold either.  Whatever is written is rolled back.
"""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from ibex_db_core.database import Database
from ibex_db_core.errors import IbexError, TransientError
from ibex_db_memory.demo import roads
from ibex_db_memory.demo.claim import Claim
from ibex_db_memory.demo.trial import Seen, Trial, sample

__all__ = ["prove_isolation"]

_ROADS: Sequence[tuple[str, Callable[[Trial], Awaitable[Seen]]]] = (
    ("{a}'s repository does not find {b}'s memory by its id.", roads.repository),
    ("A forged key, or a repository for {b}, is refused in {a}'s session.", roads.forged_id),
    ("Raw SQL without any WHERE counts {a}'s memories only.", roads.raw_count),
    ("Raw SQL with WHERE org_id = {b} finds nothing.", roads.forged_where),
    ("No table at all shows {a} a row of anybody else.", roads.every_table),
    ("{a} cannot insert a row into {b}.", roads.insert),
    ("{a} cannot move a row of its own to {b}.", roads.give_away),
    ("{a} cannot give a memory to {b}'s agent by foreign key.", roads.foreign_agent),
    ("{a} cannot point at {b}'s memory by foreign key.", roads.foreign_memory),
    ("{a} cannot UPDATE {b}'s row by its id.", roads.update),
    ("{a} cannot DELETE {b}'s row by its id.", roads.delete),
    ("A search with the very vector of {b}'s memory never returns it to {a}.", roads.vector),
    ("Without a tenant, SQL finds no row at all.", roads.no_tenant),
    ("The connection goes back to the pool without {a} on it.", roads.pooled),
)


async def prove_isolation(db: Database, org_a: UUID, org_b: UUID) -> Sequence[Claim]:
    """Try to reach organization B's rows from A's sessions; what A must not do, B does for comparison.

    Args:
        db: as services use it.
        org_a: who tries, the intruder; needs a live memory with a vector.
        org_b: who owns what is tried for; needs one too.

    Returns:
        one claim for each road.  One that does not hold says why in its evidence.

    Raises:
        TransientError: the database could not be reached, or locks were held, five times over.
    """
    intruder, owner = await sample(db, org_a), await sample(db, org_b)
    if intruder is None or owner is None:
        empty = org_a if intruder is None else org_b
        evidence = f"organization {empty} sees no live memory with a vector in its own session"
        return [Claim("Both organizations have a memory to hide.", holds=False, evidence=evidence)]
    trial = Trial(db, intruder, owner)
    claims: list[Claim] = []
    for template, road in _ROADS:
        statement = template.format(a=intruder.name, b=owner.name)
        try:
            holds, evidence = await road(trial)
        except TransientError:
            raise
        except IbexError as exc:  # a refusal that was not due: the evidence of a claim that does not hold
            holds, evidence = False, f"unexpected {type(exc).__name__}: {exc}"
        claims.append(Claim(statement, holds, evidence))
    return claims
