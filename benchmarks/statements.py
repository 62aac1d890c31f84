"""Our own statements, as the driver gets them: to be sent without us."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import pgvector
from sqlalchemy import ClauseElement
from sqlalchemy.dialects.postgresql.asyncpg import dialect

from benchmarks.dataset import K, Query
from ibex_db_core.types import BINARY_VECTORS
from ibex_db_memory.search import fusion, lexical, query as searching
from ibex_db_memory.search.plan import EXACT_UP_TO

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler


Sent = tuple[str, Sequence[Any]]
"""SQL, and its arguments in the order of $1, $2, ..."""

MEAN_LENGTH = 15.0
"""Lexemes of a memory, on average; it moves scores, not time."""

_NONE: frozenset[str] = frozenset()


def nearest(query: Query) -> Sent:
    """Search by vector."""
    given = {"org_id": query.tenant.org_id, "query": pgvector.Vector(query.vector), "limit": K}
    return rendered(searching.statement(_NONE, exact=query.tenant.rows <= EXACT_UP_TO), given)


def worded(query: Query) -> Sent:
    """Search by words."""
    return rendered(lexical.statement(_NONE), _words(query))


def fused(query: Query) -> Sent:
    """Search by both."""
    given = {
        **_words(query),
        **fusion.candidates_for(K),
        "query": pgvector.Vector(query.vector),
        "vector_weight": fusion.VECTOR_WEIGHT,
    }
    return rendered(fusion.statement(_NONE, exact=query.tenant.rows <= EXACT_UP_TO, floor=False), given)


def _words(query: Query) -> Mapping[str, object]:
    return {
        "org_id": query.tenant.org_id,
        "text": query.text,
        "agents": None,
        "limit": K,
        "corpus_rows": query.tenant.rows,
        "mean_length": MEAN_LENGTH,
        "k1": lexical.K1,
        "b": lexical.B,
    }


def rendered(statement: ClauseElement, parameters: Mapping[str, object]) -> Sent:
    """Return any statement as the driver gets it."""
    speaking = dialect()  # type: ignore[no-untyped-call]
    setattr(speaking, BINARY_VECTORS, True)
    compiled = cast("SQLCompiler", statement.compile(dialect=speaking))
    values = compiled.construct_params(parameters)
    return str(compiled), [values[name] for name in compiled.positiontup or ()]
