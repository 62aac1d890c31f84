"""Our own statements, as the driver gets them: to be sent without us."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import ClauseElement
from sqlalchemy.dialects.postgresql.asyncpg import dialect

from ibex_db_core.types import BINARY_VECTORS

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler


def rendered(statement: ClauseElement, parameters: Mapping[str, object]) -> tuple[str, Sequence[Any]]:
    """Return the SQL and its arguments, in the order of $1, $2, ..."""
    speaking = dialect()  # type: ignore[no-untyped-call]
    setattr(speaking, BINARY_VECTORS, True)
    compiled = cast("SQLCompiler", statement.compile(dialect=speaking))
    values = compiled.construct_params(parameters)
    return str(compiled), [values[name] for name in compiled.positiontup or ()]
