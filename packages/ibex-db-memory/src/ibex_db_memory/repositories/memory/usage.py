"""Bookkeeping: what was retrieved, injected and judged, in one statement that never touches the vector index."""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import ARRAY, TextClause, Uuid, bindparam, text
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.util import identity_key

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError
from ibex_db_core.repository import BaseRepository
from ibex_db_core.savepoints import note_written
from ibex_db_memory.models import Memory
from ibex_db_memory.repositories.memory import turns

# What the statements below change; objects that the session has loaded are given the new values.
_KEPT_BY_BOOKS = (
    "retrieval_count",
    "positive_feedback",
    "negative_feedback",
    "usefulness_score",
    "last_retrieved_at",
    "last_injected_at",
    "updated_at",
)


def _count(changes: str, *extra: str) -> TextClause:
    """Build the UPDATE that counts something for many memories.

    Rows are locked in the order of their ids first: two searches that found the
    same memories in another order would otherwise deadlock.  The update asks how
    many there are, which ends the locking before it begins, and finds them by
    their ids once more: joined to them, it would read the whole of an
    organization that statistics do not know.
    """
    return text(
        f"""
        WITH locked AS MATERIALIZED (
            SELECT id FROM ibex_core.memories
            WHERE org_id = :org_id AND id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE
        )
        UPDATE ibex_core.memories m SET {changes}
        WHERE m.org_id = :org_id AND m.id = ANY(:ids) AND (SELECT count(*) FROM locked) > 0
        RETURNING m.id, {", ".join(f"m.{name}" for name in _KEPT_BY_BOOKS)}
        """
    ).bindparams(bindparam("org_id", type_=Uuid()), *(bindparam(name, type_=ARRAY(Uuid())) for name in ("ids", *extra)))


_RETRIEVED = _count("retrieval_count = m.retrieval_count + 1, last_retrieved_at = now()")
_INJECTED = _count("last_injected_at = now()")
# Laplace's rule of succession: (p + 1) / (p + n + 2), one half before the first word.
_JUDGED = _count(
    "positive_feedback = m.positive_feedback + (m.id = ANY(:helpful))::int, "
    "negative_feedback = m.negative_feedback + (m.id = ANY(:unhelpful))::int, "
    "usefulness_score = round((m.positive_feedback + (m.id = ANY(:helpful))::int + 1)::numeric "
    "/ (m.positive_feedback + m.negative_feedback + (m.id = ANY(:helpful))::int "
    "+ (m.id = ANY(:unhelpful))::int + 2), 3)",
    "helpful",
    "unhelpful",
)


class Usage(BaseRepository[Memory]):
    """Counting what memories are used for."""

    model = Memory

    async def record_retrieval(self, idents: Iterable[UUID]) -> int:
        """Count one retrieval of each memory and note the time, in one statement.

        A HOT update: no index is written, whatever the number of ids.  Ids that
        do not exist are passed over; a repeated id counts once.

        Returns:
            how many memories were found.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Speaks Danish.", category="factual")
            >>> await memories.record_retrieval([kept.memory.id])
            1
        """
        return await self._counted(_RETRIEVED, _ids("idents", idents))

    async def record_injection(self, idents: Iterable[UUID]) -> int:
        """Note that memories were put before the model just now, in one HOT statement.

        Returns:
            how many memories were found.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Speaks Danish.", category="factual")
            >>> await memories.record_injection([kept.memory.id])
            1
        """
        return await self._counted(_INJECTED, _ids("idents", idents))

    async def give_feedback(self, *, helpful: Iterable[UUID] = (), unhelpful: Iterable[UUID] = ()) -> int:
        """Count one word for or against each memory and move its usefulness, in one HOT statement.

        usefulness = (p + 1) / (p + n + 2), p and n being the words for and
        against so far (Laplace's rule of succession).

        Returns:
            how many memories were found.

        Raises:
            InvalidInputError: a memory is called helpful and unhelpful at once.

        Example:
            >>> kept = await memories.remember(agent_id=agent.id, content="Speaks Danish.", category="factual")
            >>> await memories.give_feedback(helpful=[kept.memory.id])
            1
            >>> float((await memories.get(kept.memory.id)).usefulness_score)
            0.667
        """
        good, bad = _ids("helpful", helpful), _ids("unhelpful", unhelpful)
        if both := set(good) & set(bad):
            raise InvalidInputError("unhelpful", both.pop(), "must not be called helpful in the same breath")
        return await self._counted(_JUDGED, [*good, *bad], helpful=good, unhelpful=bad)

    async def _counted(self, statement: TextClause, idents: list[UUID], **parameters: object) -> int:
        if not idents:
            return 0
        await turns.take(self._session, self._tenant, idents)
        rows = await self._rows(statement, {"org_id": self._tenant, "ids": idents, **parameters})
        kind, _, token = identity_key(Memory, (self._tenant, idents[0]))  # but for the id, all are the same
        keys = [(kind, (self._tenant, ident), token) for ident, *_ in rows]
        note_written(self._session, keys)
        for key, (_, *values) in zip(keys, rows, strict=True):
            loaded = self._session.identity_map.get(key)
            for name, value in zip(_KEPT_BY_BOOKS, values, strict=True) if loaded is not None else ():
                set_committed_value(loaded, name, value)
        return len(rows)


def _ids(field: str, idents: Iterable[UUID]) -> list[UUID]:
    return list(set(validation.uuids(field, idents)))
