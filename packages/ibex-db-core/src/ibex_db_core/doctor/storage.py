"""Storage: indexes that answer, room for HOT updates, vectors in line, and every partition in its place."""

from collections.abc import Iterator
from fractions import Fraction
from typing import cast

from sqlalchemy import Index

from ibex_db_core.doctor import definitions
from ibex_db_core.doctor.catalog import Audit, LiveTable
from ibex_db_core.doctor.findings import Finding, finding

__all__ = ["check_indexes", "check_options", "check_partitions"]

_INDEXES = """
    SELECT c.oid, n.nspname, c.relname::text AS name, i.indrelid, c.relkind = 'I' AS partitioned,
           i.indisvalid AND i.indisready AND i.indislive AS usable, i.indisunique AS unique,
           a.amname::text AS method, pg_get_expr(i.indpred, i.indrelid) AS predicate,
           COALESCE(c.reloptions, '{}') AS options, k.oid IS NOT NULL AS constrained,
           pg_get_indexdef(c.oid) AS definition,
           COALESCE((SELECT p.relname FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
                      WHERE h.inhrelid = c.oid), c.relname)::text AS declared
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_am a ON a.oid = c.relam
      LEFT JOIN pg_constraint k ON k.conindid = c.oid AND k.contype IN ('p', 'u', 'x')
     WHERE i.indrelid = ANY (:tables) ORDER BY n.nspname, c.relname
"""


def check_indexes(audit: Audit) -> Iterator[Finding]:
    """Indexes are valid, and those of the models are what the models say."""
    predicates: dict[int, list[tuple[Index, str, str, str]]] = {}
    for row in audit.rows(_INDEXES, tables=list(audit.tables)):
        table = audit.tables[row.indrelid]
        name = audit.qualified(row.nspname, row.name)
        if not row.usable:
            again = [f"REINDEX INDEX {name}"]
            if row.partitioned and not row.constrained:
                again = [f"DROP INDEX {name}", row.definition.replace(" ON ONLY ", " ON ")]
            yield finding(
                "index-invalid",
                name,
                "a build or a rebuild of it failed: queries do not use it, writes pay for it, and a unique one "
                "may hold duplicates",
                *again,
            )
        declared = table.mapped.indexes if table.mapped is not None else ()
        index = next((index for index in declared if index.name == row.declared), None)
        if index is None:
            continue
        if not row.partitioned:
            yield from _options(name, index, row.options)
        if not table.partition:
            wanted = definitions.predicate(index)
            method = index.dialect_options["postgresql"].get("using") or "btree"
            if (row.method, row.unique, row.predicate is None) != (method, bool(index.unique), wanted is None):
                yield _changed(name, index, row.definition)
            elif wanted is not None:
                predicates.setdefault(table.oid, []).append((index, name, row.predicate, row.definition))
    for oid, found in predicates.items():
        pairs = [(live, definitions.predicate(index) or "") for index, _, live, _ in found]
        same = audit.alike(audit.tables[oid], pairs)
        yield from (_changed(i[1], i[0], i[3]) for i, alike in zip(found, same, strict=True) if not alike)


def _changed(name: str, index: Index, definition: str) -> Finding:
    return finding(
        "index-changed",
        name,
        f"it is {definition}: a rule that it keeps (one live row of a kind) no longer holds, or a query lost its index",
        f"DROP INDEX {name}",
        definitions.create_index(index),
    )


def _options(name: str, index: Index, live: list[str]) -> Iterator[Finding]:
    options = cast("dict[str, object]", index.dialect_options["postgresql"].get("with") or {})
    wanted = {option: str(value) for option, value in options.items()}
    found = dict(option.split("=", 1) for option in live)
    if wrong := {option: value for option, value in wanted.items() if found.get(option) != value}:
        settings = ", ".join(f"{option} = {value}" for option, value in wrong.items())
        yield finding(
            "index-options",
            name,
            f"built without {settings}: searches miss rows that they should find",
            f"ALTER INDEX {name} SET ({settings})",
            f"REINDEX INDEX {name}",
        )


_STORAGE = """
    SELECT a.attrelid, a.attname::text AS column,
           CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'm' THEN 'MAIN' WHEN 'e' THEN 'EXTERNAL' ELSE 'EXTENDED' END
           AS storage
      FROM pg_attribute a WHERE a.attrelid = ANY (:tables) AND a.attnum > 0 AND NOT a.attisdropped
     ORDER BY a.attrelid, a.attnum
"""


def check_options(audit: Audit) -> Iterator[Finding]:
    """Tables leave room on their pages, and columns lie, as the models say."""
    guarded = {oid: table for oid, table in audit.tables.items() if table.mapped is not None}
    for table in guarded.values():
        wanted = table.guards.fillfactor
        if not table.partitioned and int(table.options.get("fillfactor", "100")) != wanted:
            yield finding(
                "fillfactor",
                table.name,
                "updates find no room on their page and enter every index anew, the vector index first: "
                "50 to 80 ms for the counters of one search"
                if wanted < 100  # noqa: PLR2004 - percent
                else "pages are left partly empty: the table is larger and scans are slower than they need be",
                f"ALTER TABLE {table.name} SET (fillfactor = {wanted})",
            )
    stored = {oid: table for oid, table in guarded.items() if table.guards.storage}
    for row in audit.rows(_STORAGE, tables=list(stored)):
        table, column = stored[row.attrelid], audit.quote(row.column)
        meant = table.guards.storage.get(row.column, row.storage)
        if row.storage != meant:
            only = "ONLY " if table.partitioned else ""
            yield finding(
                "column-storage",
                f"{table.name}.{column}",
                f"{row.storage}: values are pushed out of line, and an exact scan takes 3.5 times as long",
                f"ALTER TABLE {only}{table.name} ALTER COLUMN {column} SET STORAGE {meant}",
            )


_PARTITIONS = r"""
    SELECT i.inhparent, c.relname::text AS name, b.numbers[1] AS modulus, b.numbers[2] AS remainder
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_partitioned_table p ON p.partrelid = i.inhparent,
           regexp_match(pg_get_expr(c.relpartbound, c.oid), 'modulus (\d+), remainder (\d+)') b (numbers)
     WHERE i.inhparent = ANY (:tables) AND p.partstrat = 'h' ORDER BY 1, 2
"""


def check_partitions(audit: Audit) -> Iterator[Finding]:
    """The partitions of a hash-partitioned table leave no organization without a place."""
    parents = {oid: table for oid, table in audit.tables.items() if table.partitioned}
    held: dict[int, list[tuple[int, int]]] = {}
    for row in audit.rows(_PARTITIONS, tables=list(parents)):
        held.setdefault(row.inhparent, []).append((int(row.modulus), int(row.remainder)))
    for oid, found in held.items():
        if sum(Fraction(1, modulus) for modulus, _ in found) == 1:
            continue
        count = max(modulus for modulus, _ in found)
        for number in range(count):
            if not any(number % modulus == remainder for modulus, remainder in found):
                yield _absent(audit, parents[oid], number, count)


def _absent(audit: Audit, parent: LiveTable, number: int, count: int) -> Finding:
    relname = f"{parent.relname}_p{number:02d}"
    name, bounds = audit.qualified(parent.schema, relname), f"FOR VALUES WITH (MODULUS {count}, REMAINDER {number})"
    options = f" WITH (fillfactor = {parent.guards.fillfactor})" if parent.guards.fillfactor != 100 else ""  # noqa: PLR2004
    if any((table.schema, table.relname) == (parent.schema, relname) for table in audit.tables.values()):
        remedy = [f"ALTER TABLE {parent.name} ATTACH PARTITION {name} {bounds}"]
    else:
        remedy = [
            f"CREATE TABLE {name} PARTITION OF {parent.name} {bounds}{options}",
            f"ALTER TABLE {name} OWNER TO {audit.quote(parent.owner)}",
            f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY",
        ]
    return finding(
        "partition-missing",
        name,
        f"one organization in {count} sees none of its rows and can write none",
        *remedy,
    )
