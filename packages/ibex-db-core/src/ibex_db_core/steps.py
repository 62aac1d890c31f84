"""Rows with a status that moves by legal steps only."""

import re
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, ClassVar, TypeVar, cast
from uuid import UUID

from sqlalchemy import ColumnElement, select, update

from ibex_db_core import validation
from ibex_db_core.base import Base
from ibex_db_core.errors import IllegalTransitionError, NotFoundError
from ibex_db_core.repository import BaseRepository

T = TypeVar("T", bound=Base)
S = TypeVar("S", bound=StrEnum)


def origins(steps: Mapping[S, Collection[S]], to: S) -> list[S]:
    """Return the statuses from which a status may be reached."""
    return [status for status, following in steps.items() if to in following]


def illegal(
    model: type[Base], ident: UUID, found: S, to: S, steps: Mapping[S, Collection[S]]
) -> IllegalTransitionError:
    """Return the error of a step that the table does not allow; it says which it allows."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", model.__name__).lower()
    ways = ", ".join(sorted(status.value for status in steps[found]))
    return IllegalTransitionError(
        f"{name} {ident}", found.value, to.value, f"it may become {ways}" if ways else "this is its end"
    )


class SteppedRepository(BaseRepository[T]):
    """A repository whose model has a ``status``, with a table of the steps that are legal.

    A step is one UPDATE that names the statuses it may start from, so of two
    transactions that step at once, the second sees what the first has done.

    Class attributes:
        steps: which statuses may follow a status.
    """

    steps: ClassVar[Mapping[Any, Collection[Any]]]

    async def update(self, ident: UUID, **changes: object) -> T:
        """Change fields of the row with this id, its status along a legal step only, and return it.

        Raises:
            InvalidInputError: no such field, or a value that breaks its rule.
            IllegalTransitionError: the row's status does not lead to the new one.
            NotFoundError: no such row in this organization.

        Example:
            >>> (await agents.update(agent.id, status="paused")).status.value
            'paused'
        """
        if changes.get("status") is None:
            return await super().update(ident, **changes)
        values = self._checked(changes)
        to = cast("StrEnum", values.pop("status"))
        return await self._step(ident, to, values, stay=True)

    async def _step(
        self, ident: UUID, to: StrEnum, values: Mapping[str, object] | None = None, *, stay: bool = False
    ) -> T:
        """Move a row to a status, with other values, in one statement.

        Args:
            ident: the row.
            to: its new status.
            values: of other columns, checked.
            stay: a row that has this status already is no error.

        Raises:
            IllegalTransitionError: the row's status does not lead to the new one.
            NotFoundError: no such row in this organization.
        """
        ident = validation.uuid("id", ident)
        starts = [*origins(self.steps, to), *([to] if stay else [])]
        status = cast("ColumnElement[StrEnum]", self.model.status)
        row = (*self._scope(), self._id == ident)
        statement = update(self.model).where(*row, status.in_(starts)).values({**(values or {}), "status": to})
        while True:
            try:
                return await self._change(statement, ident)
            except NotFoundError:
                # Of the column, not of the object: the session may hold an older one.
                found = cast("StrEnum | None", (await self._execute(select(status).where(*row))).scalar_one_or_none())
            if found is None:
                raise NotFoundError(self.model.__name__, ident)
            if found not in starts:  # otherwise it has just become one of them: again
                raise illegal(self.model, ident, found, to, self.steps)
