"""Reading somebody else's table, a few hundred rows at a time, at one moment."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg

from ibex_db_core.errors import InvalidInputError, Shown
from ibex_db_core.translation import translate
from ibex_db_core.url import parse
from ibex_db_memory.models import EMBEDDING_DIMENSIONS

Source = str | asyncpg.Connection
"""Where the other library keeps its table: a DSN, or an open connection of asyncpg."""

_PREFETCH = 200

_COLUMN = """
    SELECT t.typname::text AS type, a.atttypmod AS dimensions FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = to_regclass($1) AND a.attname = $2 AND NOT a.attisdropped
"""


@asynccontextmanager
async def opened(source: Source) -> AsyncGenerator[asyncpg.Connection]:
    """Give a connection to the source, in a transaction that sees one moment; closed only where we opened it."""
    connection = await asyncpg.connect(parse(source).dsn) if isinstance(source, str) else source
    try:
        inside = connection.is_in_transaction()
        # Inside a transaction of the caller's only a savepoint can be made, without options of its own.
        options: dict[str, Any] = {} if inside else {"isolation": "repeatable_read", "readonly": True}
        async with connection.transaction(**options):
            yield connection
    except asyncpg.PostgresError as exc:
        if (ours := translate(exc)) is None:
            raise
        raise ours from exc
    finally:
        if isinstance(source, str):
            await connection.close()


async def rows(connection: asyncpg.Connection, query: str) -> AsyncGenerator[Any]:
    """Yield the rows of a query through a cursor."""
    async for row in connection.cursor(query, prefetch=_PREFETCH):
        yield row


async def check_table(
    connection: asyncpg.Connection, table: str, column: str, wanted: int = EMBEDDING_DIMENSIONS
) -> bool:
    """Tell whether a table is there, and that its vectors fit.

    Raises:
        InvalidInputError: its vectors have another dimension.
    """
    found = await connection.fetchrow(_COLUMN, table, column)
    if found is None:
        return False
    dimensions = cast("int", found["dimensions"])
    if dimensions not in {-1, wanted}:
        raise InvalidInputError(
            "embedding",
            Shown(f"{dimensions} dimensions in {table}"),
            f"must have {wanted} dimensions: another model made them; leave them behind with "
            "embeddings=False, and embed the texts anew",
        )
    return True


def quoted(schema: str, table: str) -> str:
    """Return a qualified name that SQL takes as it is."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in (schema, table))
