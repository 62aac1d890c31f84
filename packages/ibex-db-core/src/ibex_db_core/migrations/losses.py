"""What a statement would destroy: tables, columns, rows, or part of their values.

Read from the SQL that a revision emits, before it is sent: the statements that lose data are a small closed set, so
this is a reader of their first words and no parser.  What it cannot see, a revision declares (``destroys``).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

__all__ = ["Loss", "described", "existing", "read"]


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that a statement destroys.

    Attributes:
        what: table, column, type, rows, partition, schema, cascade, or block for a DO whose body may.
        table: as the statement names it; None where it names none.
        column: of a column or its type.
        new_type: what a column's values would become.
    """

    what: str
    table: str | None
    column: str | None = None
    new_type: str | None = None


# A name, perhaps qualified, perhaps quoted.
_PART = r'(?:"(?:[^"]|"")+"|\w+)'
_NAME = rf"{_PART}(?:\s*\.\s*{_PART})*"
_IF = r"(?:IF\s+EXISTS\s+)?"

# Comments, strings and bodies of functions hold words that are no statement's.
_MUTE = re.compile(
    r"--[^\n]*|/\*.*?\*/|[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|(?P<tag>\$(?:[A-Za-z_]\w*)?\$).*?(?P=tag)", re.DOTALL
)
_DO = re.compile(r"\s*DO\b", re.IGNORECASE)
_IN_BLOCK = re.compile(
    r"\b(?:DROP\s+(?:TABLE|COLUMN|SCHEMA|OWNED)|TRUNCATE|DELETE\s+FROM|DETACH\s+PARTITION|"
    r"ALTER\s+(?:COLUMN\s+)?\S+\s+(?:SET\s+DATA\s+)?TYPE)\b",
    re.IGNORECASE,
)
_DROP = re.compile(
    rf"\s*DROP\s+(?P<kind>TABLE|SCHEMA|OWNED|FOREIGN\s+TABLE|MATERIALIZED\s+VIEW|\w+)\b\s*{_IF}(?P<names>.*)",
    re.IGNORECASE | re.DOTALL,
)
_TRUNCATE = re.compile(r"\s*TRUNCATE\s+(?:TABLE\s+)?(?:ONLY\s+)?(?P<names>.*)", re.IGNORECASE | re.DOTALL)
_DELETE = re.compile(rf"(?:^|\(|\))\s*DELETE\s+FROM\s+(?:ONLY\s+)?(?P<name>{_NAME})", re.IGNORECASE)
_MERGE = re.compile(
    rf"\s*(?:WITH\b.*)?\bMERGE\s+INTO\s+(?:ONLY\s+)?(?P<name>{_NAME}).*\bTHEN\s+DELETE\b", re.IGNORECASE | re.DOTALL
)
_ALTER = re.compile(
    rf"\s*ALTER\s+(?:FOREIGN\s+)?TABLE\s+{_IF}(?:ONLY\s+)?(?P<name>{_NAME})\s*\*?(?P<actions>.*)",
    re.IGNORECASE | re.DOTALL,
)
_DROP_COLUMN = re.compile(
    rf"^\s*DROP\s+(?!CONSTRAINT\b)(?:COLUMN\s+)?{_IF}(?P<column>{_PART})\s*(?:RESTRICT|CASCADE)?\s*$", re.IGNORECASE
)
_RETYPE = re.compile(
    rf"^\s*ALTER\s+(?:COLUMN\s+)?(?P<column>{_PART})\s+(?:SET\s+DATA\s+)?TYPE\s+(?P<type>.*?)(?:\s+COLLATE\s+{_NAME})?"
    r"(?P<using>\s+USING\s.*)?$",
    re.IGNORECASE | re.DOTALL,
)
_DETACH = re.compile(rf"^\s*DETACH\s+PARTITION\s+(?P<name>{_NAME})", re.IGNORECASE)


def read(sql: str) -> Iterator[Loss]:
    """Yield what one statement destroys, as far as its words tell; nothing for the revisions' own table."""
    if _DO.match(sql):
        if _IN_BLOCK.search(re.sub(r"--[^\n]*", "", sql)):
            yield Loss("block", None)
        return
    said = _MUTE.sub(lambda found: " " if found[0].startswith(("--", "/*")) else "''", sql).strip().rstrip(";").strip()
    for loss in _read(said):
        if loss.table is None or not loss.table.endswith("alembic_version"):
            yield loss


def _read(said: str) -> Iterator[Loss]:
    if found := _DROP.match(said):
        yield from _dropped(re.sub(r"\s+", " ", found["kind"].upper()), found["names"])
    elif found := _TRUNCATE.match(said):
        yield from (Loss("rows", name) for name in _names(found["names"]))
    elif found := _ALTER.match(said):
        for action in _actions(found["actions"]):
            yield from _altered(_plain(found["name"]), action)
    elif found := _MERGE.match(said):
        yield Loss("rows", _plain(found["name"]))
    elif re.match(r"\s*(?:DELETE|WITH)\b", said, re.IGNORECASE):
        yield from (Loss("rows", _plain(found["name"])) for found in _DELETE.finditer(said))


def _dropped(kind: str, names: str) -> Iterator[Loss]:
    if kind in {"TABLE", "FOREIGN TABLE", "MATERIALIZED VIEW"}:
        yield from (Loss("table", name) for name in _names(names))
    elif kind in {"SCHEMA", "OWNED"}:
        yield Loss("schema", names.strip())
    elif re.search(r"\bCASCADE\s*$", names, re.IGNORECASE) and kind in {"TYPE", "DOMAIN", "EXTENSION", "FUNCTION"}:
        yield Loss("cascade", f"{kind.lower()} {names.strip()}")


def _altered(table: str, action: str) -> Iterator[Loss]:
    if found := _DROP_COLUMN.match(action):
        yield Loss("column", table, _plain(found["column"]))
    elif found := _RETYPE.match(action):
        # What USING computes may be anything.
        yield Loss("type", table, _plain(found["column"]), "" if found["using"] else found["type"].strip())
    elif found := _DETACH.match(action):
        yield Loss("partition", _plain(found["name"]))


def _names(said: str) -> list[str]:
    return [_plain(found[0]) for part in said.split(",") if (found := re.match(rf"\s*(?:ONLY\s+)?({_NAME})", part))]


def _plain(name: str) -> str:
    return re.sub(r"\s*\.\s*", ".", name.strip()).removeprefix("ONLY ")


def _actions(said: str) -> Iterator[str]:
    """Yield the comma-separated actions of ALTER TABLE; commas within brackets part nothing."""
    depth, start = 0, 0
    for at, letter in enumerate(said):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            yield said[start:at]
            start = at + 1
    yield said[start:]


# -- held against a live database

_TABLE = text("""
    SELECT c.oid::regclass::text AS name, pg_size_pretty(sum(pg_total_relation_size(t.relid))) AS size,
           sum(greatest(l.reltuples, COALESCE(s.n_live_tup, 0), 0))::bigint AS rows,
           bool_and(l.reltuples < 0 AND COALESCE(s.n_live_tup, 0) = 0 AND pg_relation_size(l.oid) > 0) AS unknown
      FROM pg_catalog.pg_class c
      CROSS JOIN LATERAL (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf
                          UNION ALL SELECT c.oid WHERE c.relkind <> 'p') t
      JOIN pg_catalog.pg_class l ON l.oid = t.relid
      LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = l.oid
     WHERE c.oid = to_regclass(:name) GROUP BY c.oid
""")
_COLUMN = text("""
    SELECT format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = to_regclass(:name) AND a.attname = :column AND a.attnum > 0 AND NOT a.attisdropped
""")


def existing(connection: Connection, losses: Iterable[Loss]) -> list[Loss]:
    """Return those whose object is in the database now: what a revision makes itself, it may take away itself."""
    return [loss for loss in losses if _is_there(connection, loss)]


def _is_there(connection: Connection, loss: Loss) -> bool:
    if loss.table is None or loss.what in {"schema", "cascade"}:
        return True
    if loss.column is None:
        return connection.scalar(text("SELECT to_regclass(:name) IS NOT NULL"), {"name": loss.table}) is True
    column = loss.column[1:-1].replace('""', '"') if loss.column.startswith('"') else loss.column.lower()
    live = connection.scalar(_COLUMN, {"name": loss.table, "column": column})
    return live is not None and not (loss.what == "type" and _widens(str(live), loss.new_type or ""))


_WHOLE_NUMBERS = ("smallint", "integer", "bigint", "numeric")
_ALIASES = {"int": "integer", "int4": "integer", "int8": "bigint", "int2": "smallint", "decimal": "numeric"}
_LENGTH = re.compile(r"(?:varchar|character varying)(?:\s*\(\s*(\d+)\s*\))?$")


def _widens(old: str, new: str) -> bool:
    """Tell whether every value of a type is one of the other, as it is."""
    new = _ALIASES.get(new.lower(), new.lower())
    if old == new:
        return True
    if old in _WHOLE_NUMBERS and new in _WHOLE_NUMBERS:
        return _WHOLE_NUMBERS.index(old) <= _WHOLE_NUMBERS.index(new)
    before, after = _LENGTH.match(old), _LENGTH.match(new)
    if before and (new == "text" or (after and after[1] is None)):
        return True
    return bool(before and after and before[1] and after[1] and int(before[1]) <= int(after[1]))


def described(connection: Connection, revision: str, losses: Sequence[Loss]) -> list[str]:
    """Say what goes, in words, with how many rows that is about; the server's estimate, which costs nothing."""
    return [f"{revision}: {_words(connection, loss)}" for loss in dict.fromkeys(losses)]


def _words(connection: Connection, loss: Loss) -> str:
    found = connection.execute(_TABLE, {"name": loss.table}).first() if loss.table and " " not in loss.table else None
    rows = ""
    if found is not None:
        many = "an unknown number of" if found.unknown else f"about {found.rows:,}"
        rows = f" ({many} rows, {found.size})"
    match loss.what:
        case "table":
            return f"table {loss.table} with all its rows{rows}"
        case "column":
            return f"column {loss.table}.{loss.column} with its values{rows}"
        case "type":
            return f"what does not fit of {loss.table}.{loss.column} as {loss.new_type or 'its new type'}{rows}"
        case "rows":
            return f"rows of {loss.table}{rows}"
        case "partition":
            return f"partition {loss.table}, whose rows are no longer seen{rows}"
        case "block":
            return "a DO block, whose body drops or deletes"
        case _:
            return f"{loss.what} {loss.table}"
