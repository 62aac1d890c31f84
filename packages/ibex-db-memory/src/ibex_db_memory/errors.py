"""Errors of the memory wheel.

IbexError
├── CheckpointDamagedError     a stored state is not the one that was saved
└── ExportDamagedError         a file of memories is not whole
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


class ExportDamagedError(IbexError):
    """A file of memories is not the whole that was exported, so nothing of it is imported."""

    def __init__(self, line: int, why: str) -> None:
        self.line = line
        self.why = why
        super().__init__(f"line {line}: {why}; nothing was imported: export again, or fetch the file again")

    def __reduce__(self) -> tuple[type["ExportDamagedError"], tuple[int, str]]:
        """Survive pickling."""
        return type(self), (self.line, self.why)
