"""Sessions, checkpoints, memories and what hangs on them."""

import ibex_db_tenancy  # noqa: F401  # pyright: ignore[reportUnusedImport] - parents of these tables
from ibex_db_memory.models.checkpoint import Checkpoint
from ibex_db_memory.models.embedding_space import EmbeddingSpace
from ibex_db_memory.models.enums import (
    MEMORY_STEPS,
    SESSION_STEPS,
    MemoryCategory,
    MemorySource,
    MemoryStatus,
    RelationshipType,
    SessionStatus,
    SpaceStatus,
    VersionOperation,
)
from ibex_db_memory.models.memory import EMBEDDING_DIMENSIONS, Memory
from ibex_db_memory.models.memory_relationship import MemoryRelationship
from ibex_db_memory.models.memory_tag import MemoryTag
from ibex_db_memory.models.memory_vector import INDEXED_DIMENSIONS, MemoryVector
from ibex_db_memory.models.memory_version import MemoryVersion
from ibex_db_memory.models.session import Session

__all__ = [
    "EMBEDDING_DIMENSIONS",
    "INDEXED_DIMENSIONS",
    "MEMORY_STEPS",
    "SESSION_STEPS",
    "Checkpoint",
    "EmbeddingSpace",
    "Memory",
    "MemoryCategory",
    "MemoryRelationship",
    "MemorySource",
    "MemoryStatus",
    "MemoryTag",
    "MemoryVector",
    "MemoryVersion",
    "RelationshipType",
    "Session",
    "SessionStatus",
    "SpaceStatus",
    "VersionOperation",
]
