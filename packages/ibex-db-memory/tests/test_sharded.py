"""Batches of rows where statements go through Citus: a statement has no more parameters than a message can name."""

from collections.abc import Mapping
from typing import Any, cast
from uuid import uuid4

import pytest
from sqlalchemy import Insert, Table, dialects
from sqlalchemy.dialects.postgresql.base import PGDialect

from ibex_db_memory import Memory, MemoryTag, MemoryVersion
from ibex_db_memory.repositories.memory import sharded

MOST = 32_767
ROWS = 12_000
_DIALECT: PGDialect = dialects.registry.load("postgresql.asyncpg")()


class Sent:
    """Compiles the statements that it is given to execute."""

    def __init__(self) -> None:
        self.parameters: list[int] = []

    async def __call__(self, statement: Insert) -> "Sent":
        self.parameters.append(len(statement.compile(dialect=_DIALECT).params))
        return self

    def all(self) -> list[Any]:
        return []


@pytest.mark.parametrize("model", [Memory, MemoryTag, MemoryVersion])
async def test_no_statement_of_a_batch_has_more_parameters_than_a_message_can_name(model: type[Any]) -> None:
    table = cast("Table", model.__table__)
    # What needs a value: the fewer columns a row has, the more defaults are bound beside it.
    needed = [one.name for one in table.columns if not one.nullable and one.default is None and not one.server_default]
    rows: list[Mapping[str, Any]] = [dict.fromkeys(needed, uuid4()) for _ in range(ROWS)]
    sent = Sent()

    if model is Memory:
        await sharded.insert_memories(sent, rows)
    else:
        await sharded.insert_rows(sent, table, rows)

    assert len(sent.parameters) > 1
    assert MOST * 0.9 < max(sent.parameters) <= MOST
