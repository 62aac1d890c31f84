"""Checkpoint: the state of a session at one moment, to resume from."""

from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import CheckConstraint, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship, validates

from ibex_db_core.base import Base, Created, OrgScoped, json_is_object, parent_key
from ibex_db_core.types import JsonObject
from ibex_db_memory.models._guards import CHECKPOINTS
from ibex_db_memory.state import fingerprint, state_hash

if TYPE_CHECKING:
    from ibex_db_memory.models.session import Session


class Checkpoint(OrgScoped, Created, Base):
    """A session's state; never changed, numbered from 1 within its session, pruned up to the newest.

    Attributes:
        state: a JSON object; setting it sets the next two.
        state_hash: SHA-256 of the state's canonical form (see ibex_db_memory.state).
        state_size_bytes: length of the canonical form, in bytes.
    """

    __tablename__ = "checkpoints"
    __append_only__ = True
    __guards__ = CHECKPOINTS

    session_id: Mapped[UUID]
    sequence_number: Mapped[int] = mapped_column(info={"range": (1, 2**31 - 1)})
    state: Mapped[JsonObject]
    state_hash: Mapped[str] = mapped_column(String(64), info={"length": (64, 64)})
    state_size_bytes: Mapped[int] = mapped_column(info={"range": (2, 2**31 - 1)})

    session: Mapped["Session"] = relationship(back_populates="checkpoints", lazy="raise")

    __table_args__ = (
        parent_key("sessions", "session_id"),
        # SessionRepository.latest_checkpoint: one probe, backwards from the end.
        UniqueConstraint("org_id", "session_id", "sequence_number", name="checkpoints_sequence_key"),
        CheckConstraint("sequence_number >= 1", name="sequence_number_range"),
        CheckConstraint("state_hash ~ '^[0-9a-f]{64}$'", name="state_hash_format"),
        CheckConstraint("state_size_bytes >= 2", name="state_size_range"),
        json_is_object("state"),
    )

    @validates("state")
    def _describe(self, _key: str, state: JsonObject) -> JsonObject:
        """Keep hash and size in step; a validator runs after the column's own check."""
        self.state_hash, self.state_size_bytes = fingerprint(state)
        return state

    def is_intact(self) -> bool:
        """Tell whether the state is still the one that the hash was made of."""
        return self.state_hash == state_hash(self.state)
