"""Every public name of every installed ibex-db wheel.

The code lives in `ibex_db_core`, `ibex_db_tenancy` and `ibex_db_memory`, one
package per wheel; this is the front door.  Importing it imports every installed
wheel, so that `Base.metadata` is complete (Alembic depends on that).  A name
whose wheel is not installed raises ImportError, naming the wheel.
"""

from typing import TYPE_CHECKING

from ibex_db_core import (
    SCHEMA as SCHEMA,
    AccessDeniedError as AccessDeniedError,
    Base as Base,
    BaseRepository as BaseRepository,
    CommitUnknownError as CommitUnknownError,
    ConfigurationError as ConfigurationError,
    ConflictError as ConflictError,
    ConnectionLostError as ConnectionLostError,
    Created as Created,
    Database as Database,
    DatabaseError as DatabaseError,
    DeadlockError as DeadlockError,
    EmbeddedPostgresError as EmbeddedPostgresError,
    EngineSettings as EngineSettings,
    ForeignKeyError as ForeignKeyError,
    IbexError as IbexError,
    Identified as Identified,
    IllegalTransitionError as IllegalTransitionError,
    InvalidInputError as InvalidInputError,
    InvalidTokenError as InvalidTokenError,
    JsonObject as JsonObject,
    LockTimeoutError as LockTimeoutError,
    MigrationError as MigrationError,
    Migrator as Migrator,
    NotFoundError as NotFoundError,
    OrgScoped as OrgScoped,
    Page as Page,
    PoolExhaustedError as PoolExhaustedError,
    Revision as Revision,
    RuleViolationError as RuleViolationError,
    ScopedSession as ScopedSession,
    SerializationError as SerializationError,
    SoftDeleted as SoftDeleted,
    StatementTimeoutError as StatementTimeoutError,
    SteppedRepository as SteppedRepository,
    TenantError as TenantError,
    TenantMismatchError as TenantMismatchError,
    TenantMissingError as TenantMissingError,
    Timestamped as Timestamped,
    TokenIdentity as TokenIdentity,
    TokenKind as TokenKind,
    TransientError as TransientError,
    UnsafeRoleError as UnsafeRoleError,
    Vector as Vector,
    VectorLike as VectorLike,
)

try:
    from ibex_db_tenancy import (
        Agent as Agent,
        AgentRepository as AgentRepository,
        AgentStatus as AgentStatus,
        Directive as Directive,
        DirectiveRepository as DirectiveRepository,
        DirectiveVersion as DirectiveVersion,
        DirectiveVersionStatus as DirectiveVersionStatus,
        IssuedToken as IssuedToken,
        Organization as Organization,
        OrganizationRepository as OrganizationRepository,
        OrganizationStatus as OrganizationStatus,
        OrganizationTier as OrganizationTier,
        Token as Token,
        TokenRepository as TokenRepository,
        TokenState as TokenState,
        User as User,
        UserRepository as UserRepository,
        UserRole as UserRole,
        UserStatus as UserStatus,
    )
except ModuleNotFoundError as exc:
    if exc.name != "ibex_db_tenancy":  # installed but broken: do not hide it
        raise

try:
    from ibex_db_memory import (
        EMBEDDING_DIMENSIONS as EMBEDDING_DIMENSIONS,
        HALF_LIFE_DAYS as HALF_LIFE_DAYS,
        MAX_CONTENT_LENGTH as MAX_CONTENT_LENGTH,
        MAX_TAG_LENGTH as MAX_TAG_LENGTH,
        MIN_CONTENT_LENGTH as MIN_CONTENT_LENGTH,
        SESSION_STEPS as SESSION_STEPS,
        Checkpoint as Checkpoint,
        CheckpointDamagedError as CheckpointDamagedError,
        Direction as Direction,
        Hit as Hit,
        HitParts as HitParts,
        Hits as Hits,
        HotMemory as HotMemory,
        HotWeights as HotWeights,
        Kept as Kept,
        Memory as Memory,
        MemoryCategory as MemoryCategory,
        MemoryDraft as MemoryDraft,
        MemoryRelationship as MemoryRelationship,
        MemoryRepository as MemoryRepository,
        MemorySource as MemorySource,
        MemoryStatus as MemoryStatus,
        MemoryTag as MemoryTag,
        MemoryVersion as MemoryVersion,
        Neighbor as Neighbor,
        Outcome as Outcome,
        Plan as Plan,
        RelationshipType as RelationshipType,
        RememberedMany as RememberedMany,
        Resumed as Resumed,
        ScoreParts as ScoreParts,
        Session as Session,
        SessionRepository as SessionRepository,
        SessionStatus as SessionStatus,
        TagCount as TagCount,
        VersionOperation as VersionOperation,
        content_hash as content_hash,
        normalise as normalise,
        normalise_tag as normalise_tag,
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
        "IssuedToken",
        "Organization",
        "OrganizationRepository",
        "OrganizationStatus",
        "OrganizationTier",
        "Token",
        "TokenRepository",
        "TokenState",
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
        "Direction",
        "Hit",
        "HitParts",
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
        "Neighbor",
        "Outcome",
        "Plan",
        "RelationshipType",
        "RememberedMany",
        "Resumed",
        "ScoreParts",
        "Session",
        "SessionRepository",
        "SessionStatus",
        "TagCount",
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
