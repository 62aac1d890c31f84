"""Every public name of every installed ibex-db wheel.

The code lives in `ibex_db_core`, `ibex_db_tenancy` and `ibex_db_memory`, one
package per wheel; this is the front door.  Importing it imports every installed
wheel, so that `Base.metadata` is complete (Alembic depends on that).  A name
whose wheel is not installed raises ImportError, naming the wheel.
"""

from typing import TYPE_CHECKING

from ibex_db_core import (
    SCHEMA as SCHEMA,
)
from ibex_db_core import (
    AccessDeniedError as AccessDeniedError,
)
from ibex_db_core import (
    Base as Base,
)
from ibex_db_core import (
    BaseRepository as BaseRepository,
)
from ibex_db_core import (
    CommitUnknownError as CommitUnknownError,
)
from ibex_db_core import (
    ConfigurationError as ConfigurationError,
)
from ibex_db_core import (
    ConflictError as ConflictError,
)
from ibex_db_core import (
    ConnectionLostError as ConnectionLostError,
)
from ibex_db_core import (
    Created as Created,
)
from ibex_db_core import (
    Database as Database,
)
from ibex_db_core import (
    DatabaseError as DatabaseError,
)
from ibex_db_core import (
    DeadlockError as DeadlockError,
)
from ibex_db_core import (
    EmbeddedPostgresError as EmbeddedPostgresError,
)
from ibex_db_core import (
    EngineSettings as EngineSettings,
)
from ibex_db_core import (
    ForeignKeyError as ForeignKeyError,
)
from ibex_db_core import (
    IbexError as IbexError,
)
from ibex_db_core import (
    Identified as Identified,
)
from ibex_db_core import (
    InvalidInputError as InvalidInputError,
)
from ibex_db_core import (
    JsonObject as JsonObject,
)
from ibex_db_core import (
    LockTimeoutError as LockTimeoutError,
)
from ibex_db_core import (
    MigrationError as MigrationError,
)
from ibex_db_core import (
    Migrator as Migrator,
)
from ibex_db_core import (
    NotFoundError as NotFoundError,
)
from ibex_db_core import (
    OrgScoped as OrgScoped,
)
from ibex_db_core import (
    Page as Page,
)
from ibex_db_core import (
    PoolExhaustedError as PoolExhaustedError,
)
from ibex_db_core import (
    Revision as Revision,
)
from ibex_db_core import (
    RuleViolationError as RuleViolationError,
)
from ibex_db_core import (
    ScopedSession as ScopedSession,
)
from ibex_db_core import (
    SerializationError as SerializationError,
)
from ibex_db_core import (
    SoftDeleted as SoftDeleted,
)
from ibex_db_core import (
    StatementTimeoutError as StatementTimeoutError,
)
from ibex_db_core import (
    TenantError as TenantError,
)
from ibex_db_core import (
    TenantMismatchError as TenantMismatchError,
)
from ibex_db_core import (
    TenantMissingError as TenantMissingError,
)
from ibex_db_core import (
    Timestamped as Timestamped,
)
from ibex_db_core import (
    TransientError as TransientError,
)
from ibex_db_core import (
    UnsafeRoleError as UnsafeRoleError,
)
from ibex_db_core import (
    Vector as Vector,
)
from ibex_db_core import (
    VectorLike as VectorLike,
)

try:
    from ibex_db_tenancy import (
        Agent as Agent,
    )
    from ibex_db_tenancy import (
        AgentRepository as AgentRepository,
    )
    from ibex_db_tenancy import (
        AgentStatus as AgentStatus,
    )
    from ibex_db_tenancy import (
        Directive as Directive,
    )
    from ibex_db_tenancy import (
        DirectiveRepository as DirectiveRepository,
    )
    from ibex_db_tenancy import (
        DirectiveVersion as DirectiveVersion,
    )
    from ibex_db_tenancy import (
        DirectiveVersionStatus as DirectiveVersionStatus,
    )
    from ibex_db_tenancy import (
        InvalidTokenError as InvalidTokenError,
    )
    from ibex_db_tenancy import (
        IssuedToken as IssuedToken,
    )
    from ibex_db_tenancy import (
        Organization as Organization,
    )
    from ibex_db_tenancy import (
        OrganizationRepository as OrganizationRepository,
    )
    from ibex_db_tenancy import (
        OrganizationStatus as OrganizationStatus,
    )
    from ibex_db_tenancy import (
        OrganizationTier as OrganizationTier,
    )
    from ibex_db_tenancy import (
        Token as Token,
    )
    from ibex_db_tenancy import (
        TokenKind as TokenKind,
    )
    from ibex_db_tenancy import (
        TokenRepository as TokenRepository,
    )
    from ibex_db_tenancy import (
        User as User,
    )
    from ibex_db_tenancy import (
        UserRepository as UserRepository,
    )
    from ibex_db_tenancy import (
        UserRole as UserRole,
    )
    from ibex_db_tenancy import (
        UserStatus as UserStatus,
    )
except ModuleNotFoundError as exc:
    if exc.name != "ibex_db_tenancy":  # installed but broken: do not hide it
        raise

try:
    from ibex_db_memory import (
        EMBEDDING_DIMENSIONS as EMBEDDING_DIMENSIONS,
    )
    from ibex_db_memory import (
        HALF_LIFE_DAYS as HALF_LIFE_DAYS,
    )
    from ibex_db_memory import (
        MAX_CONTENT_LENGTH as MAX_CONTENT_LENGTH,
    )
    from ibex_db_memory import (
        MAX_TAG_LENGTH as MAX_TAG_LENGTH,
    )
    from ibex_db_memory import (
        MIN_CONTENT_LENGTH as MIN_CONTENT_LENGTH,
    )
    from ibex_db_memory import (
        SESSION_STEPS as SESSION_STEPS,
    )
    from ibex_db_memory import (
        Checkpoint as Checkpoint,
    )
    from ibex_db_memory import (
        CheckpointDamagedError as CheckpointDamagedError,
    )
    from ibex_db_memory import (
        Hit as Hit,
    )
    from ibex_db_memory import (
        Hits as Hits,
    )
    from ibex_db_memory import (
        HotMemory as HotMemory,
    )
    from ibex_db_memory import (
        HotWeights as HotWeights,
    )
    from ibex_db_memory import (
        Kept as Kept,
    )
    from ibex_db_memory import (
        Memory as Memory,
    )
    from ibex_db_memory import (
        MemoryCategory as MemoryCategory,
    )
    from ibex_db_memory import (
        MemoryDraft as MemoryDraft,
    )
    from ibex_db_memory import (
        MemoryRelationship as MemoryRelationship,
    )
    from ibex_db_memory import (
        MemoryRepository as MemoryRepository,
    )
    from ibex_db_memory import (
        MemorySource as MemorySource,
    )
    from ibex_db_memory import (
        MemoryStatus as MemoryStatus,
    )
    from ibex_db_memory import (
        MemoryTag as MemoryTag,
    )
    from ibex_db_memory import (
        MemoryVersion as MemoryVersion,
    )
    from ibex_db_memory import (
        Outcome as Outcome,
    )
    from ibex_db_memory import (
        Plan as Plan,
    )
    from ibex_db_memory import (
        RelationshipType as RelationshipType,
    )
    from ibex_db_memory import (
        RememberedMany as RememberedMany,
    )
    from ibex_db_memory import (
        ScoreParts as ScoreParts,
    )
    from ibex_db_memory import (
        Session as Session,
    )
    from ibex_db_memory import (
        SessionRepository as SessionRepository,
    )
    from ibex_db_memory import (
        SessionStatus as SessionStatus,
    )
    from ibex_db_memory import (
        VersionOperation as VersionOperation,
    )
    from ibex_db_memory import (
        content_hash as content_hash,
    )
    from ibex_db_memory import (
        normalise as normalise,
    )
    from ibex_db_memory import (
        normalise_tag as normalise_tag,
    )
    from ibex_db_memory import (
        state_hash as state_hash,
    )
except ModuleNotFoundError as exc:
    if exc.name != "ibex_db_memory":  # installed but broken: do not hide it
        raise

# What each optional wheel adds; a test holds it to the wheels.
_ADDED_BY = {
    "ibex-db-tenancy": (
        "Agent",
        "AgentRepository",
        "AgentStatus",
        "Directive",
        "DirectiveRepository",
        "DirectiveVersion",
        "DirectiveVersionStatus",
        "InvalidTokenError",
        "IssuedToken",
        "Organization",
        "OrganizationRepository",
        "OrganizationStatus",
        "OrganizationTier",
        "Token",
        "TokenKind",
        "TokenRepository",
        "User",
        "UserRepository",
        "UserRole",
        "UserStatus",
    ),
    "ibex-db-memory": (
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
    ),
}

if not TYPE_CHECKING:  # hidden from checkers, or they would accept any name

    def __getattr__(name: str) -> object:
        """Name the wheel to install; reached only for names that are not bound above."""
        for wheel, names in _ADDED_BY.items():
            if name in names:
                raise ImportError(f"ibex_db.{name} is in the {wheel} wheel: uv add {wheel}", name=__name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
