"""What statements did, counted for the verb that sent them and for the unit of work around it."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection

__all__ = ["CALL", "UNIT", "Tally", "count"]


@dataclass(slots=True)
class Tally:
    """What statements did while something went on.

    Attributes:
        statements: that were sent; BEGIN, COMMIT and savepoints are none.
        written: rows that INSERT, UPDATE and DELETE say they changed.
    """

    statements: int = 0
    written: int = 0


# What goes on in this task.
UNIT: ContextVar[Tally | None] = ContextVar("ibex_unit", default=None)
CALL: ContextVar[Tally | None] = ContextVar("ibex_call", default=None)


def count(
    _connection: Connection, cursor: Any, _statement: str, _parameters: object, execution: Any, _many: object
) -> None:
    """Count a statement: SQLAlchemy's after_cursor_execute."""
    writes = execution is not None and (execution.isinsert or execution.isupdate or execution.isdelete)
    rows = max(cast("int", cursor.rowcount), 0) if writes else 0
    for tally in (CALL.get(), UNIT.get()):
        if tally is not None:
            tally.statements += 1
            tally.written += rows
