"""Sessions, checkpoints and memories: the memory wheel's public names."""

from ibex_db_memory.content import (
    MAX_CONTENT_LENGTH,
    MAX_TAG_LENGTH,
    MIN_CONTENT_LENGTH,
    content_hash,
    normalise,
    normalise_tag,
)
from ibex_db_memory.models import (
    EMBEDDING_DIMENSIONS,
    SESSION_STEPS,
    Checkpoint,
    Memory,
    MemoryCategory,
    MemoryRelationship,
    MemorySource,
    MemoryStatus,
    MemoryTag,
    MemoryVersion,
    RelationshipType,
    Session,
    SessionStatus,
    VersionOperation,
)
from ibex_db_memory.state import state_hash

__all__ = [
    "EMBEDDING_DIMENSIONS",
    "MAX_CONTENT_LENGTH",
    "MAX_TAG_LENGTH",
    "MIN_CONTENT_LENGTH",
    "SESSION_STEPS",
    "Checkpoint",
    "Memory",
    "MemoryCategory",
    "MemoryRelationship",
    "MemorySource",
    "MemoryStatus",
    "MemoryTag",
    "MemoryVersion",
    "RelationshipType",
    "Session",
    "SessionStatus",
    "VersionOperation",
    "content_hash",
    "normalise",
    "normalise_tag",
    "state_hash",
]
