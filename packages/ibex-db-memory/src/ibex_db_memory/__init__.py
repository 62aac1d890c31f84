"""Sessions, checkpoints and memories: the memory wheel's public names."""

from ibex_db_memory.content import (
    MAX_CONTENT_LENGTH,
    MAX_TAG_LENGTH,
    MIN_CONTENT_LENGTH,
    content_hash,
    normalise,
    normalise_tag,
)
from ibex_db_memory.drafts import MemoryDraft
from ibex_db_memory.errors import CheckpointDamagedError
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
from ibex_db_memory.repositories import Kept, MemoryRepository, Outcome, RememberedMany, SessionRepository
from ibex_db_memory.search import HALF_LIFE_DAYS, Hit, Hits, HotMemory, HotWeights, Plan, ScoreParts
from ibex_db_memory.state import state_hash

__all__ = [
    "EMBEDDING_DIMENSIONS",
    "HALF_LIFE_DAYS",
    "MAX_CONTENT_LENGTH",
    "MAX_TAG_LENGTH",
    "MIN_CONTENT_LENGTH",
    "SESSION_STEPS",
    "Checkpoint",
    "CheckpointDamagedError",
    "Hit",
    "Hits",
    "HotMemory",
    "HotWeights",
    "Kept",
    "Memory",
    "MemoryCategory",
    "MemoryDraft",
    "MemoryRelationship",
    "MemoryRepository",
    "MemorySource",
    "MemoryStatus",
    "MemoryTag",
    "MemoryVersion",
    "Outcome",
    "Plan",
    "RelationshipType",
    "RememberedMany",
    "ScoreParts",
    "Session",
    "SessionRepository",
    "SessionStatus",
    "VersionOperation",
    "content_hash",
    "normalise",
    "normalise_tag",
    "state_hash",
]
