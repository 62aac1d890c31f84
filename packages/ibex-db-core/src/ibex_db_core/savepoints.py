"""What verbs write in a savepoint that is rolled back, taken out of the session's objects again.

SQLAlchemy expires what it flushed itself.  Verbs write past the unit of work, by
UPDATE ... RETURNING and by INSERT: of those it knows nothing, and the objects
would go on showing what the database does not have.  A rollback of the whole
transaction needs none of this, for it expires every object.

By key, not by object: the object may be loaded, or loaded once more, after it was
written.  The listeners are a session's own, and come with its first write in a
savepoint, so that no other session is taken for one that somebody listens to.
"""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import event, inspect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstanceState, Session, SessionTransaction, make_transient

__all__ = ["Key", "inside", "note_rows", "note_written"]

Key = tuple[Any, ...]
"""An identity, as the session's identity map has it."""

_WRITTEN = "ibex_written"


def inside(session: AsyncSession) -> bool:
    """Tell whether a session is in a savepoint."""
    return session.sync_session.get_nested_transaction() is not None


def note_written(session: AsyncSession, keys: Iterable[Key], *, made: bool = False) -> None:
    """Have objects forget what was written to them now, should the savepoint under way be rolled back.

    Args:
        session: one that is in no savepoint needs nothing.
        keys: of the rows that were written.
        made: the rows are new: their objects become transient, as those of add() do; others expire.
    """
    sync = session.sync_session
    savepoint = sync.get_nested_transaction()
    if savepoint is not None:
        _Written.of(sync).note(savepoint, keys, made=made)


def note_rows(session: AsyncSession, rows: Iterable[Iterable[object]], *, made: bool = False) -> None:
    """Do the same for every entity in a result's rows."""
    if inside(session):
        found = (inspect(value, raiseerr=False) for row in rows for value in row)
        states = [
            cast("InstanceState[Any]", cast("object", state)) for state in found if isinstance(state, InstanceState)
        ]
        note_written(session, [cast("Key", state.key) for state in states if state.key is not None], made=made)


class _Written:
    """What was written in each savepoint that a session is in; True: the row is new."""

    def __init__(self, session: Session) -> None:
        self._in: dict[SessionTransaction, dict[Key, bool]] = {}
        event.listen(session, "after_transaction_end", self._ended)
        event.listen(session, "after_soft_rollback", self._rolled_back)

    @classmethod
    def of(cls, session: Session) -> "_Written":
        info = cast("dict[str, object]", session.info)
        found = info.get(_WRITTEN)
        if not isinstance(found, _Written):
            found = info[_WRITTEN] = cls(session)
        return found

    def note(self, savepoint: SessionTransaction, keys: Iterable[Key], *, made: bool) -> None:
        known = self._in.setdefault(savepoint, {})
        for key in keys:
            known[key] = made or known.get(key, False)

    def _ended(self, session: Session, transaction: SessionTransaction) -> None:
        """Leave what a savepoint wrote to the one around it; SQLAlchemy tells of the end first, then of a rollback."""
        if transaction.parent is None:
            self._in.clear()
        elif transaction in self._in and (around := session.get_nested_transaction()) is not None:
            for key, made in self._in[transaction].items():
                self.note(around, [key], made=made)

    def _rolled_back(self, session: Session, transaction: SessionTransaction) -> None:
        for key, made in self._in.pop(transaction, {}).items():
            found = cast("object | None", session.identity_map.get(key))
            if found is None:
                continue
            if made:
                make_transient(found)
            else:
                # All but the identity, which no verb writes: whoever holds the object can ask for it by its id.
                state = cast("InstanceState[Any]", inspect(found))
                identity = {state.mapper.get_property_by_column(column).key for column in state.mapper.primary_key}
                session.expire(found, list((state.dict.keys() & state.mapper.attrs.keys()) - identity))
