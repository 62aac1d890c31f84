"""The lexical leg: BM25 over the caller's own rows.

    score = sum over the text's lexemes of idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean length))
    idf   = ln(1 + (N - df + 0.5) / (df + 0.5))

Okapi BM25 (Robertson and Zaragoza, 2009) with the idf that is never negative.
tf counts a lexeme's positions in a memory, four at most; length is a tenth of
its content's bytes, about as many as it has lexemes; N, df and the mean length
are of the scope: the organization's rows, or the agents' that a search names,
whatever their status.  No other tenant's row is ever counted, for counts would
tell of its contents.

The words are found inside a function, memories_bm25 (migrations memory_0002 and
memory_0009): no operator of an index of words is leakproof, so under row-level
security it would silently not be used.  An entry of that index is of one
organization, one lexeme and one tf: neighbours in a partition cost nothing,
and no row's words are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Float,
    FromClause,
    Integer,
    Select,
    Subquery,
    Text,
    Uuid,
    bindparam,
    column,
    func,
    literal_column,
    select,
    true,
)

from ibex_db_core import validation
from ibex_db_memory.models import Memory
from ibex_db_memory.search.filters import conditions
from ibex_db_memory.search.plan import ScopeCache

# Memories are statements of a sentence or two: a word said twice tells little,
# and neither does length.  The textbook's 1.2 and 0.75 found less on every
# conversation measured (decision 0020).
K1: Final = 0.6
B: Final = 0.3

MAX_TEXT_LENGTH: Final = 4096
"""Longest text of a search, in characters."""

# The mean length is taken from this many rows: it varies little, and to read it rows are visited.
_SAMPLE = 1000

ORG = bindparam("org_id", type_=Uuid())
LIMIT = bindparam("limit", type_=Integer())


@dataclass(frozen=True, slots=True)
class Corpus:
    """What BM25 compares a memory with.

    Attributes:
        rows: how many memories the scope holds, of any status.
        mean_length: of a memory, on average; a tenth of its bytes.
    """

    rows: int
    mean_length: float


_by_engine: "WeakKeyDictionary[object, ScopeCache[Corpus]]" = WeakKeyDictionary()


def corpora_for(bind: object) -> ScopeCache[Corpus]:
    """Return what is remembered of an engine's scopes; a stale count moves all scores alike."""
    return _by_engine.setdefault(bind, ScopeCache())


def check_text(text: object) -> str:
    """Check the text of a search: 1 to 4096 characters, not blank, no NUL byte."""
    return validation.text("text", text, shortest=1, longest=MAX_TEXT_LENGTH)


@cache
def corpus(*, by_agent: bool) -> Select[int, float]:
    """Count a scope's rows, and average the length of the first of them."""
    rows = select(literal_column("1", Integer())).where(Memory.org_id == ORG)
    lengths = select(func.octet_length(Memory.content).label("length")).where(Memory.org_id == ORG)
    if by_agent:
        named = Memory.agent_id == func.any(bindparam("agents", type_=ARRAY(Uuid())))
        rows, lengths = rows.where(named), lengths.where(named)
    sample = lengths.limit(_SAMPLE).subquery("sample")
    mean = select(func.coalesce(func.avg(sample.c.length), 1)).scalar_subquery()
    return select(
        select(func.count()).select_from(rows.subquery("scope")).scalar_subquery(),
        mean.cast(Float()) / 10.0,
    )


def scores() -> CTE:
    """Return each memory of the scope that has a word of the text: memory_id and score.

    Parameters: text, agents (None: all), corpus_rows, mean_length, k1, b.
    """
    found = func.ibex_core.memories_bm25(
        bindparam("text", type_=Text()),
        bindparam("agents", type_=ARRAY(Uuid())),
        bindparam("corpus_rows", type_=BigInteger()),
        bindparam("mean_length", type_=Float()),
        bindparam("k1", type_=Float()),
        bindparam("b", type_=Float()),
    ).table_valued(column("memory_id", Uuid()), column("score", Float()), name="scored")
    return select(found).cte("lexical").prefix_with("MATERIALIZED")


def best(
    scored: CTE,
    shape: frozenset[str],
    limit: Any,
    *,
    also: Sequence[Any] = (),
    where: Sequence[Any] = (),
    sharded: bool = False,
) -> Subquery | CTE:
    """Return the best of the scored memories that pass the filters: memory_id, score and ``also``, best first.

    Rows are looked up in order of their score until enough have passed: the
    lateral LIMIT keeps the planner from reading all of them first.  A sharded
    engine takes no such LIMIT: there all that are scored are looked up.
    """
    ranked = select(scored).order_by(scored.c.score.desc(), scored.c.memory_id).subquery("ranked")
    pass_on = (Memory.org_id == ORG, *conditions(shape), *where)
    passing: FromClause
    if sharded:
        passing = select(Memory.id.label("passed"), *also).where(*pass_on).subquery("passing")
        joined = ranked.join(passing, passing.c.passed == ranked.c.memory_id)
    else:
        one = select(literal_column("1", Integer()).label("passed"), *also)
        passing = one.where(Memory.id == ranked.c.memory_id, *pass_on).limit(1).lateral("passing")
        joined = ranked.join(passing, true())
    columns: Any = (ranked.c.memory_id, ranked.c.score, *(passing.c[column.name] for column in also))
    found: Select[*tuple[Any, ...]] = (
        select(*columns).select_from(joined).order_by(ranked.c.score.desc(), ranked.c.memory_id).limit(limit)
    )
    if sharded:
        return found.cte("worded").prefix_with("MATERIALIZED")
    return found.subquery("worded")


@cache
def statement(shape: frozenset[str], *, sharded: bool = False) -> Select[Memory, float]:
    """Return the memories that say the words of a text best, and their scores.

    Parameters: org_id, limit, those of the filters and of :func:`scores`.
    """
    found = best(scores(), shape, LIMIT, sharded=sharded)
    return cast(
        "Select[Memory, float]",
        select(Memory, found.c.score)
        .join(found, Memory.id == found.c.memory_id)
        .where(Memory.org_id == ORG)
        .order_by(found.c.score.desc(), Memory.id),
    )
