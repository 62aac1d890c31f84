"""Errors of the memory wheel.

IbexError
└── CheckpointDamagedError     a stored state is not the one that was saved
"""

from uuid import UUID

from ibex_db_core.errors import IbexError


class CheckpointDamagedError(IbexError):
    """A checkpoint's state does not match its hash, so it is not handed out."""

    def __init__(self, session_id: UUID, sequence_number: int, expected: str, got: str) -> None:
        self.session_id = session_id
        self.sequence_number = sequence_number
        self.expected = expected
        self.got = got
        super().__init__(
            f"checkpoint {sequence_number} of session {session_id} is damaged: its state hashes to {got[:12]}..., "
            f"but {expected[:12]}... was saved; resume from an older one: checkpoints(session_id)"
        )

    def __reduce__(self) -> tuple[type["CheckpointDamagedError"], tuple[UUID, int, str, str]]:
        """Survive pickling."""
        return type(self), (self.session_id, self.sequence_number, self.expected, self.got)
