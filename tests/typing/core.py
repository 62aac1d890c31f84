"""A service's file on ibex-db-core alone: what it gives, as the service's type checker sees it.

Never run; `tests/test_typing.py` has mypy and pyright, both strict, read it against the
installed wheel.
"""

from collections.abc import AsyncIterator, Sequence
from typing import assert_type
from uuid import UUID

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

import ibex_db
from ibex_db import (
    Base,
    BaseRepository,
    Database,
    EngineSettings,
    IbexError,
    InvalidInputError,
    MigrationPlan,
    OrgScoped,
    Page,
    PlannedRevision,
    Revision,
    ScopedSession,
    TableLock,
    TokenIdentity,
)


class Note(OrgScoped, Base):
    __tablename__ = "notes"
    text: Mapped[str] = mapped_column(Text)


class NoteRepository(BaseRepository[Note]):
    model = Note


async def sessions(org_id: UUID) -> None:
    assert_type(Database("postgresql:///service", settings=EngineSettings(pool_size=5)), Database)
    async with Database.from_env() as db:
        assert_type(db, Database)
        assert_type(await db.upgrade(), list[Revision])
        async with db.migrator() as migrator:
            plan = await migrator.plan()
            assert_type(plan, MigrationPlan)
            assert_type(plan.revisions, tuple[PlannedRevision, ...])
            assert_type(plan.revisions[0].locks, list[TableLock])
            assert_type(await migrator.losses("base", down=True), list[str])
        assert_type(await db.authenticate("token"), TokenIdentity)
        async with db.platform(reason="sign-up") as session:
            assert_type(session, ScopedSession)
        async with db.tenant(org_id, read_only=True) as session:
            assert_type(session, ScopedSession)
            assert_type(await session.get(Note, org_id), Note | None)


async def count(session: ScopedSession, word: str, *, limit: int) -> int:
    return min(limit, await NoteRepository(session).count(Note.text == word))


async def retried(db: Database, org_id: UUID) -> None:
    assert_type(await db.run(org_id, count, "tea", limit=3), int)


async def rows(session: ScopedSession, ident: UUID) -> None:
    notes = NoteRepository(session)
    assert_type(await notes.get(ident), Note)
    assert_type(await notes.get_or_none(ident), Note | None)
    assert_type(await notes.get_many([ident]), Sequence[Note])
    assert_type(await notes.list(limit=10), Page[Note])
    assert_type(await notes.add(Note(text="Tea.")), Note)
    stream = notes.stream()
    assert_type(stream, AsyncIterator[Note])


def named() -> str:
    assert_type(ibex_db.__version__, str)
    return f"service on ibex-db {ibex_db.__version__}"


def refused(error: IbexError) -> str:
    if isinstance(error, InvalidInputError):
        assert_type(error.field, str)
        assert_type(error.rule, str)
    return str(error)
