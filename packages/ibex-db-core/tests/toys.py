"""Models that stand in for an upper wheel's: an organization, a bot with a vector, its notes, an append-only journal.

On a metadata of their own, so that they meet neither the real tables nor the
migrations' check.  The class names are not those of any wheel, since all models
share one registry.
"""

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Index,
    MetaData,
    Numeric,
    String,
    TextClause,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ibex_db_core import Base, BaseRepository, Created, Identified, OrgScoped, SoftDeleted, Timestamped, Vector
from ibex_db_core.base import NAMES, SCHEMA, json_is_object, parent_key
from ibex_db_core.types import Json, enum_type

DIM = 3


class Mood(StrEnum):
    CALM = "calm"
    CROSS = "cross"


class ToyBase(Base):
    __abstract__ = True
    metadata = MetaData(schema=SCHEMA, naming_convention=NAMES)


class Org(Identified, Timestamped, ToyBase):
    __tablename__ = "organizations"
    __tenant_column__ = "id"

    name: Mapped[str] = mapped_column(info={"length": (1, 100)})


class Bot(OrgScoped, Timestamped, SoftDeleted, ToyBase):
    __tablename__ = "bots"

    slug: Mapped[str] = mapped_column(
        String(32), info={"length": (1, 32), "pattern": (r"[a-z0-9-]+", "lower case letters, digits and -")}
    )
    mood: Mapped[Mood] = mapped_column(enum_type(Mood), default=Mood.CALM, server_default=Mood.CALM.value)
    rank: Mapped[int] = mapped_column(default=0, server_default=text("0"), info={"range": (-100, 100)})
    visits: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    score: Mapped[Decimal] = mapped_column(
        Numeric(4, 3), default=Decimal("0.5"), server_default=text("0.5"), info={"range": (0, 1)}
    )
    active: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    nickname: Mapped[str | None]
    embedding: Mapped[list[float] | None] = mapped_column(Vector(DIM))
    metadata_: Mapped[dict[str, object]] = mapped_column("metadata", Json, default=dict, server_default=text("'{}'"))
    notes: Mapped[list["Note"]] = relationship(back_populates="bot", lazy="raise")

    __table_args__ = (
        # A live bot's slug is its own; deleted ones free theirs.
        Index(
            "bots_slug_live",
            "org_id",
            func.lower(text("slug")),
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index("bots_nickname_live", "org_id", "nickname", unique=True, postgresql_where=text("deleted_at IS NULL")),
        CheckConstraint("rank <> 13", name="rank_not_unlucky"),
        json_is_object("metadata"),
    )


class Note(OrgScoped, Created, ToyBase):
    __tablename__ = "notes"

    bot_id: Mapped[UUID]
    number: Mapped[int]
    body: Mapped[str] = mapped_column(default="", server_default=text("''"))
    bot: Mapped[Bot] = relationship(back_populates="notes", lazy="raise")

    __table_args__ = (parent_key("bots", "bot_id"), UniqueConstraint("org_id", "bot_id", "number"))


class Entry(OrgScoped, Created, ToyBase):
    __tablename__ = "entries"
    __append_only__ = True

    line: Mapped[str]


AddBot = Callable[..., Awaitable[UUID]]
"""The fixture add_bot: ``await add_bot(org_id, slug)`` writes a row past every layer under test, and gives its id."""


class BotRepository(BaseRepository[Bot]):
    model = Bot


class Bots(BotRepository):
    """With any SQL as a query of its own, sent the way that hot verbs are."""

    async def rows(self, sql: str, **parameters: object) -> Sequence[Any]:
        return await self._rows(_once(sql), parameters)


@cache
def _once(sql: str) -> TextClause:
    return text(sql)


class NoteRepository(BaseRepository[Note]):
    model = Note


class EntryRepository(BaseRepository[Entry]):
    model = Entry


class OrgRepository(BaseRepository[Org]):
    model = Org
