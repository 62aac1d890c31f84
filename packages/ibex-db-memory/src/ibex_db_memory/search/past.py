"""The one statement of a search in the past: what each memory said then, judged by vector, words or both.

A memory's newest version no younger than the moment says its content, category,
status, confidence, metadata and validity.  Its vector then is the one that the
next change of content replaced, and today's where the content is still the same:
the text's vector by whatever model speaks for it now.  Decision 0032.

What was known then is known by no index, so the scope is read in full: two
probes of memory_versions_number_key for each memory.  The words' statistics
(:mod:`~ibex_db_memory.search.lexical` has the formula) are those of the scope
as it was; there is no function to hide the words from, for nothing here needs
their index.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, cast

from sqlalchemy import (
    ARRAY,
    BindParameter,
    ColumnElement,
    Float,
    Integer,
    Numeric,
    RowMapping,
    Select,
    Table,
    Text,
    TextualSelect,
    Uuid,
    and_,
    bindparam,
    case,
    column,
    func,
    null,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from ibex_db_core.types import Moment
from ibex_db_memory.content import content_hash
from ibex_db_memory.models import EMBEDDING_DIMENSIONS, Memory, MemoryVersion
from ibex_db_memory.search import fusion, spaces
from ibex_db_memory.search.lexical import LIMIT, ORG

_TAGGED = """FROM ibex_core.memory_tags t WHERE t.org_id = :org_id AND t.memory_id = m.id
            AND t.tag = ANY(:{name}) AND t.created_at <= :as_of"""
_MODEL = "CASE WHEN w.version_num IS NULL THEN m.embedding_model ELSE w.replaced_embedding_model END"
_VALID_UNTIL = "CASE WHEN v.valid_from IS NULL THEN m.valid_until ELSE v.valid_until END"

CONDITIONS: Final[Mapping[str, str]] = {
    "agents": "m.agent_id = ANY(:f_agents)",
    "session_id": "m.session_id = :f_session_id",
    "categories": "v.category = ANY(:f_categories)",
    "sources": "m.source = ANY(:f_sources)",
    "statuses": "v.status = ANY(:f_statuses)",
    "tags_any": f"EXISTS (SELECT {_TAGGED.format(name='f_tags_any')})",
    "tags_all": f":f_tags_all_count = (SELECT count(*) {_TAGGED.format(name='f_tags_all')})",
    "metadata": "v.metadata @> :f_metadata",
    "min_confidence": "v.confidence >= :f_min_confidence",
    "created_after": "m.created_at >= :f_created_after",
    "created_before": "m.created_at < :f_created_before",
    "valid_at": f"COALESCE(v.valid_from, m.valid_from) <= :f_valid_at AND COALESCE({_VALID_UNTIL} > :f_valid_at, true)",
    "embedding_model": f"{_MODEL} = :f_embedding_model",
    "unnamed_model": f"{_MODEL} IS NULL",
}
"""The filters of a search as they were: m is the memory as it is, v its version then, w the next change of content."""

UNLESS: Final[Mapping[str, str]] = {
    "statuses": "v.status = 'active'",
    "include_expired": "(m.expires_at IS NULL OR m.expires_at > :as_of)",
    "include_deleted": "(m.deleted_at IS NULL OR m.deleted_at > :as_of)",
}
"""What holds unless the filter of that name is present."""

_BINDS: Final[Mapping[str, BindParameter[Any]]] = {
    bind.key: bind
    for bind in cast(
        "tuple[BindParameter[Any], ...]",
        (
            ORG,
            bindparam("space_id", type_=Uuid()),
            LIMIT,
            bindparam("f_agents", type_=ARRAY(Uuid())),
            bindparam("f_session_id", type_=Uuid()),
            *(bindparam(f"f_{name}", type_=ARRAY(Text())) for name in ("categories", "sources", "statuses")),
            *(bindparam(f"f_{name}", type_=ARRAY(Text())) for name in ("tags_any", "tags_all")),
            bindparam("f_tags_all_count", type_=Integer()),
            bindparam("f_metadata", type_=JSONB()),
            bindparam("f_min_confidence", type_=Numeric()),
            *(bindparam(name, type_=Moment) for name in ("as_of", "f_created_after", "f_created_before", "f_valid_at")),
            bindparam("f_embedding_model", type_=Text()),
            *(bindparam(name, type_=Float()) for name in ("k1", "b", "min_similarity")),
            bindparam("text", type_=Text()),
            *(bindparam(name, type_=Integer()) for name in ("near_limit", "word_limit")),
        ),
    )
}
_NAMED = re.compile(r"(?<!:):(\w+)")

# A vector that was replaced may be of a model of another dimension; CASE keeps it from the operator.
_AT_HOME = f"""CASE WHEN w.version_num IS NULL THEN 1 - (m.embedding <=> :query)
            WHEN vector_dims(w.replaced_embedding) = {EMBEDDING_DIMENSIONS}
            THEN 1 - (w.replaced_embedding <=> :query) END"""
_HOME = """
            AND NOT EXISTS (SELECT FROM ibex_core.embedding_spaces s
                WHERE s.org_id = :org_id AND s.status = 'active' AND NOT s.in_memories)"""

# After a move, what was replaced is of the model before: of contents that have changed since, the words speak.
_BESIDE = "CASE WHEN w.version_num IS NULL THEN 1 - (x.embedding <=> :query) END"
_VECTORS = """
        LEFT JOIN ibex_core.memory_vectors x ON x.org_id = :org_id AND x.space_id = :space_id AND x.id = m.id
            AND x.content_hash = m.content_hash AND x.embedding IS NOT NULL"""
_MOVED = """
            AND EXISTS (SELECT FROM ibex_core.embedding_spaces s
                WHERE s.org_id = :org_id AND s.status = 'active' AND s.id = :space_id)"""

_WORDS = """CASE WHEN v.content = m.content THEN m.search_vector
            ELSE to_tsvector('pg_catalog.english', v.content) END"""
_LENGTH = "octet_length(v.content) / CAST(10.0 AS float8)"

_PAST = """
    past AS MATERIALIZED (
        SELECT m.id, v.version_num, {model} AS embedding_model, {columns}
        FROM ibex_core.memories m
        CROSS JOIN LATERAL (
            SELECT v.* FROM ibex_core.memory_versions v
            WHERE v.org_id = :org_id AND v.memory_id = m.id AND v.created_at <= :as_of
            ORDER BY v.version_num DESC LIMIT 1
        ) v
        LEFT JOIN LATERAL (
            SELECT w.version_num, w.replaced_embedding, w.replaced_embedding_model FROM ibex_core.memory_versions w
            WHERE w.org_id = :org_id AND w.memory_id = m.id AND w.version_num > v.version_num
                AND w.content <> v.content
            ORDER BY w.version_num LIMIT 1
        ) w ON true{vectors}
        WHERE m.org_id = :org_id {where}
    )"""

# As the function memories_bm25 has it (memory_0009), over what was said then.
_LEXICAL = """,
    quoted AS MATERIALIZED (
        SELECT '''' || replace(replace(word.lexeme, '\\', '\\\\'), '''', '''''') || '''' AS term
        FROM unnest(to_tsvector('pg_catalog.english', :text)) word
    ), corpus AS MATERIALIZED (
        SELECT count(*) AS memories, CAST(avg(length) AS float8) AS mean_length FROM past
    ), found AS MATERIALIZED (
        SELECT past.id, past.words, past.length FROM past
        WHERE past.words @@ (SELECT CAST(string_agg(term, ' | ') AS tsquery) FROM quoted)
    ), used AS (
        SELECT found.id, found.length, count(*) OVER (PARTITION BY quoted.term) AS df,
            CAST(least(ts_rank_cd('{1, 1, 1, 1}', found.words, CAST(quoted.term AS tsquery)), 4) AS float8) AS tf
        FROM quoted JOIN found ON found.words @@ CAST(quoted.term AS tsquery)
    ), lexical AS (
        SELECT used.id, sum(round(
                ln(1 + (greatest(c.memories - used.df, 0) + CAST(0.5 AS float8)) / (used.df + CAST(0.5 AS float8)))
                * used.tf * (:k1 + 1) / (used.tf + :k1 * (1 - :b + :b * used.length / c.mean_length)) * 4294967296
            )) / 4294967296 AS score
        FROM used CROSS JOIN corpus c GROUP BY used.id
    ), judged AS (
        SELECT p.id, p.version_num, p.embedding_model, p.similarity, COALESCE(l.score, 0) AS lexical
        FROM past p LEFT JOIN lexical l ON l.id = p.id WHERE p.passes
    )"""

_NEAREST = """
    SELECT id, version_num, embedding_model, similarity, {lexical} AS lexical FROM {judged}
    WHERE similarity IS NOT NULL {floor} ORDER BY similarity DESC, id LIMIT :{limit}"""
_BEST = """
    SELECT id, version_num, embedding_model, similarity, lexical FROM judged
    WHERE lexical > 0 {floor} ORDER BY lexical DESC, id LIMIT :{limit}"""

_FOUND = (
    column("id", Uuid()),
    column("version_num", Integer()),
    column("embedding_model", Text()),
    column("similarity", Float()),
    column("lexical", Float()),
)


@cache
def statement(
    shape: frozenset[str],
    *,
    vector: bool,
    words: bool,
    floor: bool,
    beside: int | None = None,
    sharded: bool = False,
) -> Select[*tuple[Any, ...]]:
    """Return the best memories as they were and how each leg judged them, best first.

    Columns: those that :func:`as_it_was` reads, score, similarity, lexical, and the
    four of :class:`~ibex_db_memory.search.query.HitParts`.  Parameters: org_id,
    as_of, limit, those of the filters; query; text, k1, b; min_similarity where
    ``floor``; with both legs near_limit, word_limit and vector_weight; those of the space
    (:mod:`~ibex_db_memory.search.spaces`), whose dimensions are ``beside`` where its vectors lie beside the memories.
    """
    judged = (
        _judged(shape, vector=vector, words=words, floor=floor, beside=beside, sharded=sharded)
        .cte("candidates")
        .prefix_with("MATERIALIZED")
    )
    model = judged.c.embedding_model
    if vector and words:
        parts = fusion.scored(judged, judged.c.version_num, model)
        order: ColumnElement[Any] = parts.c.score
        columns: list[ColumnElement[Any]] = [
            parts.c.score,
            parts.c.similarity,
            parts.c.lexical,
            *(parts.c[name] for name in PARTS),
        ]
    else:
        parts = judged
        order = judged.c.similarity if vector else judged.c.lexical
        place = func.row_number().over(order_by=[order.desc(), judged.c.id])
        ranks = {"vector_rank" if vector else "lexical_rank": place}
        columns = [
            order.label("score"),
            judged.c.similarity,
            (null() if vector else judged.c.lexical).label("lexical"),
            *(cast("Any", ranks.get(name, null())).label(name) for name in PARTS),
        ]
    best = select(parts.c.id, parts.c.version_num, parts.c.embedding_model, *columns)
    top = best.order_by(order.desc(), parts.c.id).limit(LIMIT).subquery("top")
    return (
        select(
            *(_MEMORY.c[name] for name in NOW),
            *(_VERSION.c[name] for name in _THEN),
            case((_VERSION.c.valid_from.is_(None), _MEMORY.c.valid_from), else_=_VERSION.c.valid_from).label(
                "valid_from"
            ),
            case((_VERSION.c.valid_from.is_(None), _MEMORY.c.valid_until), else_=_VERSION.c.valid_until).label(
                "valid_until"
            ),
            *(case((_MEMORY.c.status == _VERSION.c.status, _MEMORY.c[name])).label(name) for name in _POINTERS),
            case((_MEMORY.c.deleted_at <= _BINDS["as_of"], _MEMORY.c.deleted_at)).label("deleted_at"),
            _VERSION.c.created_at.label("updated_at"),
            top.c.embedding_model,
            top.c.version_num,
            top.c.score,
            top.c.similarity,
            top.c.lexical,
            *(top.c[name] for name in PARTS),
        )
        .select_from(top)
        .join(_MEMORY, and_(_MEMORY.c.org_id == ORG, _MEMORY.c.id == top.c.id))
        .join(
            _VERSION,
            and_(
                _VERSION.c.org_id == ORG,
                _VERSION.c.memory_id == top.c.id,
                _VERSION.c.version_num == top.c.version_num,
            ),
        )
        .order_by(top.c.score.desc(), top.c.id)
    )


def _judged(
    shape: frozenset[str], *, vector: bool, words: bool, floor: bool, beside: int | None, sharded: bool
) -> TextualSelect:
    passes = " AND ".join(
        [CONDITIONS[name] for name in CONDITIONS if name in shape]
        + [condition for name, condition in UNLESS.items() if name not in shape]
    )
    similarity = _AT_HOME if beside is None else _BESIDE
    columns = [f"{similarity if vector else 'CAST(NULL AS float8)'} AS similarity"]
    if words:
        columns += [f"{_WORDS} AS words", f"{_LENGTH} AS length", f"{passes} AS passes"]
    # The words' statistics are of all that the named agents knew, whatever the other filters let through.
    scope = f"AND {CONDITIONS['agents']}" if "agents" in shape else ""
    where = scope if words else f"AND {passes}"
    if vector:  # what is believed of the space holds, or nothing is found
        holds = _HOME if beside is None else _MOVED
        # Evaluated once, which Citus refuses beside an outer join; or for each row, where it is one of the row's.
        where += holds.replace("s.org_id = :org_id", "s.org_id = m.org_id") if sharded else holds
    vectors = _VECTORS if vector and beside is not None else ""
    past = _PAST.format(model=_MODEL, columns=", ".join(columns), vectors=vectors, where=where)
    over = "AND similarity >= :min_similarity" if floor else ""
    near, worded = ("near_limit", "word_limit") if vector and words else ("limit", "limit")
    nearest = _NEAREST.format(
        judged="judged" if words else "past", lexical="lexical" if words else 0.0, floor=over, limit=near
    )
    best = _BEST.format(floor=over, limit=worded)
    legs = f"({nearest}) UNION ({best})" if vector and words else nearest if vector else best
    clause = text(f"WITH {past}{_LEXICAL if words else ''} {legs}")
    binds = {**_BINDS, "query": spaces.query(beside)}
    return clause.bindparams(*(binds[name] for name in set(_NAMED.findall(clause.text)))).columns(*_FOUND)


_MEMORY = cast("Table", Memory.__table__)
_VERSION = cast("Table", MemoryVersion.__table__)
_POINTERS = ("superseded_by", "merged_into")
_THEN = ("content", "category", "status", "confidence", "metadata")
OVERLAID = {*_THEN, *_POINTERS, "valid_from", "valid_until", "updated_at", "deleted_at", "embedding_model"}
NOW = tuple(
    column.name
    for column in _MEMORY.columns
    if column.name not in {*OVERLAID, "content_hash", "embedding", "search_vector"}
)
PARTS: Final = ("vector_rank", "vector_part", "lexical_rank", "lexical_part")


def as_it_was(row: RowMapping) -> Memory:
    """Return a memory as it was then, from a row of the statement; it belongs to no session."""
    memory = Memory()
    for name in (*NOW, *OVERLAID):
        attribute = Memory.__mapper__.get_property_by_column(_MEMORY.c[name]).key
        set_committed_value(memory, attribute, row[name])
    set_committed_value(memory, "content_hash", content_hash(memory.content))
    make_transient_to_detached(memory)
    return memory
