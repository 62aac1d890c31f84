"""What services were told of their writes, organization by organization, and what must then be in the database."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from ibex_db_core import Base
from ibex_db_core.policies import tenant_tables

_ROWS = """
    SELECT m.content, m.embedding::text AS embedding, m.deleted_at IS NOT NULL AS gone,
        EXISTS (SELECT FROM ibex_core.memory_versions v WHERE v.org_id = m.org_id AND v.memory_id = m.id) AS versioned
    FROM ibex_core.memories m WHERE m.org_id = $1
"""
_RUN = """
    SELECT s.turn_count, count(c.id) AS kept, COALESCE(min(c.sequence_number), 1) AS first,
        COALESCE(max(c.sequence_number), 0) AS last
    FROM ibex_core.sessions s LEFT JOIN ibex_core.checkpoints c ON c.org_id = s.org_id AND c.session_id = s.id
    WHERE s.org_id = $1 AND s.id = $2 GROUP BY s.turn_count
"""
_RECEIPTS = "SELECT count(*) FROM ibex_core.organization_erasures WHERE organization_id = $1"
_STRANGERS = "SELECT content FROM ibex_core.memories WHERE NOT starts_with(content, org_id::text) LIMIT 5"


@dataclass
class Book:
    """One organization.

    Whatever was refused, with an error that says that nothing was kept, is written down nowhere: it must not be there.

    Attributes:
        kept: content to id: COMMIT was answered, and nobody has forgotten it since.
        vectors: what each content was to be kept with, told or not.
        unknown: contents whose COMMIT was not answered, or whose task was cancelled.
        batches: contents of one transaction of that kind: all of them are there, or none.
        forgotten: forgetting was acknowledged; perhaps_forgotten: it may have been done.
        fleeting: kept, and expired from the first moment on.
        turns: acknowledged counts of one counter; turns_unknown: those that may have been done.
        checkpoint: the highest number that was acknowledged.
        erased: acknowledged; perhaps_erased: it may have been done.
    """

    org_id: UUID
    agent_id: UUID
    run_id: UUID
    kept: dict[str, UUID] = field(default_factory=dict[str, UUID])
    vectors: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    unknown: set[str] = field(default_factory=set[str])
    batches: list[frozenset[str]] = field(default_factory=list[frozenset[str]])
    forgotten: set[str] = field(default_factory=set[str])
    perhaps_forgotten: set[str] = field(default_factory=set[str])
    fleeting: set[str] = field(default_factory=set[str])
    turns: int = 0
    turns_unknown: int = 0
    checkpoint: int = 0
    erased: bool = False
    perhaps_erased: bool = False

    @property
    def acknowledged(self) -> int:
        """How many writes were."""
        return len(self.kept) + len(self.forgotten) + len(self.fleeting) + self.turns + self.checkpoint

    async def settle(self, admin: asyncpg.Connection) -> list[str]:
        """Hold the database against the book; return what is wrong.  Sweeps are over, and nobody writes any more."""
        if self.erased or self.perhaps_erased:
            left = await rows_of(admin, self.org_id)
            if self.erased or not left["organizations"]:
                wrong = [f"{self.org_id} was erased, and {table} has {n} rows" for table, n in left.items() if n]
                receipts = await admin.fetchval(_RECEIPTS, self.org_id)
                return wrong + [f"{self.org_id} was erased, and has {receipts} receipts"] * (receipts != 1)
        return [*await self._memories(admin), *await self._run(admin)]

    async def _memories(self, admin: asyncpg.Connection) -> list[str]:
        rows = await admin.fetch(_ROWS, self.org_id)
        there = {row["content"]: bool(row["gone"]) for row in rows}
        acknowledged = self.kept.keys() | self.forgotten | self.fleeting | self.perhaps_forgotten
        wrong = [f"lost, though acknowledged: {one}" for one in acknowledged - there.keys()]
        wrong += [f"there, though nobody wrote it: {one}" for one in there.keys() - acknowledged - self.unknown]
        wrong += [f"there {n} times: {one}" for one, n in Counter(row["content"] for row in rows).items() if n > 1]
        wrong += [f"forgotten by nobody: {one}" for one in self.kept if there.get(one, False)]
        wrong += [f"not forgotten, though acknowledged: {one}" for one in self.forgotten if not there.get(one, True)]
        wrong += [f"expired, and not swept: {one}" for one in self.fleeting if not there.get(one, True)]
        wrong += [f"with another vector: {row['content']}" for row in rows if not self._is_its_own(row)]
        wrong += [f"no version of it: {row['content']}" for row in rows if not row["versioned"]]
        wrong += [f"half a transaction: {sorted(b)}" for b in self.batches if len(b & there.keys()) not in {0, len(b)}]
        return wrong

    def _is_its_own(self, row: asyncpg.Record) -> bool:
        wanted = self.vectors.get(row["content"])
        if wanted is None:
            return True  # nobody wrote it, which is found by itself
        found = [float(one) for one in (row["embedding"] or "[]")[1:-1].split(",") if one]
        return len(found) == len(wanted) and all(
            math.isclose(*two, abs_tol=1e-5) for two in zip(found, wanted, strict=True)
        )

    async def _run(self, admin: asyncpg.Connection) -> list[str]:
        run = await admin.fetchrow(_RUN, self.org_id, self.run_id)
        if run is None:
            return [f"lost, though acknowledged: session {self.run_id}"]
        wrong: list[str] = []
        if not self.turns <= run["turn_count"] <= self.turns + self.turns_unknown:
            told = f"{self.turns} were acknowledged and {self.turns_unknown} may have been done"
            wrong.append(f"counted {run['turn_count']} times: {told}")
        if run["last"] < self.checkpoint:
            wrong.append(f"lost, though acknowledged: checkpoint {self.checkpoint}; the last is {run['last']}")
        if run["kept"] != run["last"] - run["first"] + 1:
            wrong.append(f"checkpoints with a gap: {run['kept']} from {run['first']} to {run['last']}")
        return wrong


async def rows_of(admin: asyncpg.Connection, org_id: UUID) -> dict[str, int]:
    """Count what the database has of an organization, table by table."""
    found: dict[str, int] = {}
    for table in tenant_tables(Base.metadata):
        count = f"SELECT count(*) FROM {table.schema}.{table.name} WHERE {table.info['tenant_column']} = $1"
        found[table.name] = int(await admin.fetchval(count, org_id))
    return found


async def settle(admin: asyncpg.Connection, books: Sequence[Book]) -> list[str]:
    """Hold the whole database against all books."""
    wrong = [f"a row of another organization's words: {row['content']}" for row in await admin.fetch(_STRANGERS)]
    for book in books:
        wrong += await book.settle(admin)
    return wrong
