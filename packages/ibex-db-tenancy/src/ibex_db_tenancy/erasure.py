"""What goes when something is erased, how many rows that is, and what may be kept of it.

Which rows: those that foreign keys take along (ON DELETE CASCADE), over every
installed wheel's tables; and, where a person is erased wholly, those that an
``owned`` link (parent_key) calls theirs.

How many: exactly.  Rows are locked from the parent down before they are
counted.  A child checks its foreign key, so it waits for the lock, and then
fails; nothing is added between the count and the end.  Rows of append-only
tables need no lock: nobody may delete one, but with its parent.

The fingerprint: HMAC-SHA-256 under a random key of the organization's own.  The
hash of a content alone would let whoever reads a receipt test guesses ("did it
say that she is pregnant?"), for contents are short.  Receipts can leave the
database; the key does not, and it ends with the organization.  Who may read the
organization's rows may read the key: there, import_ itself answers the same
question.  The message is the model's name and the values of the columns that
``info["fingerprint"]`` of its table names, each on a line of its own.
"""

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Delete,
    ForeignKeyConstraint,
    LargeBinary,
    MetaData,
    Select,
    Table,
    Text,
    Uuid,
    bindparam,
    cast as sql_cast,
    delete,
    func,
    literal,
    null,
    or_,
    select,
)

from ibex_db_core.policies import tenant_tables


@dataclass(frozen=True, slots=True)
class Erased(Mapping[str, int]):
    """What is gone, and the receipt that stays: also a mapping of table to the number of its rows.

    Attributes:
        receipt_id: of the ErasureReceipt; of the OrganizationErasure where an organization was erased.
        org_id: whose it was.
        subject_kind: memory, agent, user or organization.
        subject_id: its id.
        counts: table to the number of its rows that are gone; tables without any are named, too.
        fingerprint: HMAC-SHA-256 of what the subject is recognised by, 64 hexadecimal digits.
        erased_at: the transaction's time.
        erased_by: who erased it, as told.
        reason: as told.
    """

    receipt_id: UUID
    org_id: UUID
    subject_kind: str
    subject_id: UUID
    counts: Mapping[str, int]
    fingerprint: str
    erased_at: datetime
    erased_by: UUID | None
    reason: str | None

    def __getitem__(self, table: str) -> int:
        """Return how many rows of a table are gone."""
        return self.counts[table]

    def __iter__(self) -> Iterator[str]:
        """Yield the tables."""
        return iter(self.counts)

    def __len__(self) -> int:
        """Return the number of tables."""
        return len(self.counts)

    @property
    def rows(self) -> int:
        """How many rows are gone in all."""
        return sum(self.counts.values())


# Rows of one DELETE: with all that hangs on them, a second or two, and far from any statement_timeout.
BATCH = 1000


@dataclass(frozen=True, slots=True)
class Doomed:
    """The rows of one table that go.

    Attributes:
        where: the condition that tells them from the rest.
        by_cascade: they go with their parents, and need not be deleted by name; naming grandchildren would read
            all of their parents for each batch.
    """

    table: Table
    where: ColumnElement[bool]
    by_cascade: bool = False

    @property
    def counted(self) -> Select[int, Any]:
        """The statement that locks and counts them, and names the last row of each batch, in the order of the ids."""
        ids = select(self.table.c["id"]).where(self.where)
        if self.append_only:
            return select(func.count(), cast("ColumnElement[Any]", null())).select_from(ids.subquery())
        locked = ids.order_by(self.table.c["id"]).with_for_update().subquery()
        numbered = select(locked.c["id"], func.row_number().over(order_by=locked.c["id"]).label("number")).subquery()
        last = func.array_agg(numbered.c["id"], type_=ARRAY(Uuid())).filter(numbered.c["number"] % BATCH == 0)
        return select(func.count(), cast("ColumnElement[Any]", last))

    @property
    def append_only(self) -> bool:
        """Nobody may delete them: they go with their parents."""
        return bool(self.table.info["append_only"])

    def deletions(self, ends: Sequence[UUID]) -> Iterator[Delete]:
        """Yield the statements that delete them, batch by batch."""
        column = self.table.c["id"]
        for start, end in zip([None, *ends], [*ends, None], strict=True):
            batch = [column > start] if start is not None else []
            batch += [column <= end] if end is not None else []
            yield delete(self.table).where(self.where, *batch)


def doomed_with(root: Table, org_id: UUID, ident: UUID, *, wholly: bool) -> list[Doomed]:
    """Return what goes with one row, parents first.

    Args:
        root: the row's table.
        org_id: the row's organization.
        ident: the row's id.
        wholly: follow owned links as well as the database's cascades.
    """
    found = {root: Doomed(root, (root.c["org_id"] == org_id) & (root.c["id"] == ident))}
    for table in root.metadata.sorted_tables:
        if table is root:
            continue
        links = [
            (link, found[link.referred_table])
            for link in sorted(table.foreign_key_constraints, key=lambda link: str(link.name))
            if link.referred_table in found and link.referred_table is not table and _follows(link, wholly=wholly)
        ]
        if links:
            mine = table.c["org_id"] == org_id
            theirs = or_(*(_column(link).in_(_ids(parent)) for link, parent in links))
            deep = all(link.ondelete == "CASCADE" and parent.table is not root for link, parent in links)
            found[table] = Doomed(table, mine & theirs, deep)
    return list(found.values())


def doomed_with_organization(metadata: MetaData, org_id: UUID) -> list[Doomed]:
    """Return what goes with an organization, parents first: every row of every tenant table."""
    return [Doomed(table, table.c[str(table.info["tenant_column"])] == org_id) for table in tenant_tables(metadata)]


def _follows(link: ForeignKeyConstraint, *, wholly: bool) -> bool:
    return link.ondelete == "CASCADE" or (wholly and bool(link.info.get("owned")))


def _column(link: ForeignKeyConstraint) -> ColumnElement[UUID]:
    """Return the child's column of a link by (org_id, x_id)."""
    return next(element.parent for element in link.elements if element.parent.name != "org_id")


def _ids(parent: Doomed) -> Select[UUID]:
    return select(parent.table.c["id"]).where(parent.where)


def columns(table: Table) -> Sequence[str]:
    """Return the columns that a row of the table is recognised by."""
    return cast("Sequence[str]", table.info["fingerprint"])


def fingerprint_sql(table: Table, kind: str, key: bytes) -> ColumnElement[str]:
    """Return the expression of a row's fingerprint: HMAC by hand (RFC 2104); Postgres has it in an extension only."""
    inner, outer = (
        bindparam(None, bytes(byte ^ pad for byte in key.ljust(64, b"\0")), type_=LargeBinary, unique=True)
        for pad in (0x36, 0x5C)
    )
    parts = [sql_cast(table.c[name], Text) for name in columns(table)]
    message = func.convert_to(func.concat_ws("\n", literal(kind, Text), *parts), "UTF8")
    digest = func.sha256(outer.op("||")(func.sha256(inner.op("||")(message))))
    return cast("ColumnElement[str]", func.encode(digest, "hex"))


def fingerprint(key: bytes, kind: str, *values: object) -> str:
    """Return what fingerprint_sql computes, for values at hand.

    Args:
        key: the organization's, 32 bytes.
        kind: the model's name in lower case.
        values: of the columns, in the order of ``info["fingerprint"]``; UUIDs as their text.
    """
    return hmac.digest(key, "\n".join((kind, *map(str, values))).encode(), "sha256").hex()


def lock_number(org_id: UUID) -> int:
    """Return the number of the advisory lock between one organization's erasures and its imports."""
    return int.from_bytes(org_id.bytes[:8], "big", signed=True) ^ 0x1BEC_DB02


def forget_loaded(identity_map: Any, gone: set[tuple[str, UUID]], tables: set[str]) -> list[object]:
    """Return the loaded objects that are among the doomed rows, as far as their loaded links tell."""
    found: list[object] = []
    rest = [row for row in identity_map.values() if getattr(row, "__tablename__", None) in tables]
    while True:
        taken = [row for row in rest if _is_gone(row, gone)]
        if not taken:
            return found
        gone |= {(row.__tablename__, row.__dict__["id"]) for row in taken if "id" in row.__dict__}
        found += taken
        rest = [row for row in rest if row not in taken]


def _is_gone(row: Any, gone: set[tuple[str, UUID]]) -> bool:
    loaded = row.__dict__
    if (row.__tablename__, loaded.get("id")) in gone:
        return True
    return any(
        (link.referred_table.name, loaded.get(element.parent.key)) in gone
        for link in row.__table__.foreign_key_constraints
        if link.ondelete == "CASCADE"
        for element in link.elements
        if element.parent.name != "org_id"
    )
