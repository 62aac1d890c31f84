"""Every error of ours, one tree; each message says what, why and what to do.

    IbexError
    ├── ConfigurationError            the service is set up wrongly
    │   ├── UnsafeRoleError           the login could read past the policies
    │   ├── EmbeddedPostgresError     the server in the wheel cannot run here
    │   └── MigrationError            the schema is not where the code expects it
    │       └── DestructiveMigrationError   refused: data would go, and nobody allowed it
    ├── TenantError                   work without a tenant, or with a wrong one
    │   ├── TenantMissingError
    │   ├── TenantMismatchError
    │   └── SignatureError            the database demands a signed tenant (IB001)
    ├── InvalidInputError             refused before SQL: field, value, rule
    ├── InvalidTokenError             a token that opens nothing
    ├── NotFoundError                 no such row for this tenant
    ├── NotLoadedError                an attribute that was not asked for when its row was read
    ├── IllegalTransitionError        a step that the row's state does not allow
    ├── ConflictError                 a unique rule (SQLSTATE 23505)
    ├── ForeignKeyError               a foreign key (23503)
    ├── RuleViolationError            a CHECK or NOT NULL rule (23514, 23502)
    ├── AccessDeniedError             a policy or a grant (42501)
    ├── TransientError                the same work may succeed when tried again
    │   ├── SerializationError        40001
    │   ├── DeadlockError             40P01
    │   ├── LockTimeoutError          55P03
    │   │   └── MigrationBlockedError a revision never got its lock; nothing of it was applied
    │   ├── ConnectionLostError       the server or the network went away
    │   ├── SchemaChangedError        a migration changed what a prepared statement reads
    │   ├── SignatureLateError        the tenant was signed too long before its transaction (IB002)
    │   └── PoolExhaustedError        no connection within pool_timeout
    ├── CommitUnknownError            the connection broke during COMMIT
    ├── StatementTimeoutError         57014
    └── DatabaseError                 anything else the server said

Upper wheels derive theirs from these.  Facts are attributes; the driver's
exception is chained as ``__cause__``.
"""

import pickle
from collections.abc import Mapping, Sequence, Sized
from uuid import UUID

__all__ = [
    "AccessDeniedError",
    "CommitUnknownError",
    "ConfigurationError",
    "ConflictError",
    "ConnectionLostError",
    "DatabaseError",
    "DeadlockError",
    "DestructiveMigrationError",
    "EmbeddedPostgresError",
    "ForeignKeyError",
    "IbexError",
    "IllegalTransitionError",
    "InvalidInputError",
    "InvalidTokenError",
    "LockTimeoutError",
    "MigrationBlockedError",
    "MigrationError",
    "NotFoundError",
    "NotLoadedError",
    "PoolExhaustedError",
    "RuleViolationError",
    "SchemaChangedError",
    "SerializationError",
    "SignatureError",
    "SignatureLateError",
    "StatementTimeoutError",
    "TenantError",
    "TenantMismatchError",
    "TenantMissingError",
    "TransientError",
    "UnsafeRoleError",
]


class IbexError(Exception):
    """Root of every error that ibex-db raises on purpose."""

    def __str__(self) -> str:
        """Fall back on the class's promise where no message was given."""
        return super().__str__() or (self.__doc__ or type(self).__name__).splitlines()[0]


class ConfigurationError(IbexError):
    """The database, its URL or its settings cannot be used as they are."""


class UnsafeRoleError(ConfigurationError):
    """The login role could see past row-level security, so tenant work is refused."""

    def __init__(self, role: str, why: str) -> None:
        self.role = role
        self.why = why
        super().__init__(
            f"login {role!r} is refused for tenant work: it {why}, so row-level security would not hold. "
            "Connect as a login that is only a member of ibex_app (GRANT ibex_app TO your_login), "
            "or, for development, pass step_down=True (IBEX_STEP_DOWN=1)"
        )

    def __reduce__(self) -> tuple[type["UnsafeRoleError"], tuple[str, str]]:
        """Survive pickling, as errors do on their way out of worker processes."""
        return type(self), (self.role, self.why)


class EmbeddedPostgresError(ConfigurationError):
    """The embedded Postgres cannot run on this machine."""


class MigrationError(ConfigurationError):
    """The schema is not at a revision that this code can work with."""


class DestructiveMigrationError(MigrationError):
    """A revision would destroy data, and nobody allowed that; nothing was changed.

    Attributes:
        losses: what would go, one line each.
    """

    def __init__(self, losses: Sequence[str]) -> None:
        self.losses = tuple(losses)
        lost = "".join(f"\n  - {line}" for line in self.losses)
        super().__init__(
            f"refused, for data would be lost, and nothing was changed:{lost}\n"
            "Back up what you need; then pass --allow-destructive (in Python: allow_destructive=True)"
        )

    def __reduce__(self) -> tuple[type["DestructiveMigrationError"], tuple[tuple[str, ...]]]:
        """Survive pickling."""
        return type(self), (self.losses,)


class TenantError(IbexError):
    """Work that names no tenant, or the wrong one."""


class TenantMissingError(TenantError):
    """No tenant is known here: open the session with db.tenant(org_id), or pass org_id to the repository."""


class TenantMismatchError(TenantError):
    """An object, id or repository names another organization than its session."""

    def __init__(self, expected: UUID | None, got: object, what: str = "object") -> None:
        self.expected = expected
        self.got = got
        self.what = what
        super().__init__(
            f"this {what} belongs to organization {got}, but the session is bound to {expected}; "
            f"open db.tenant({got!s}) for it: a session serves one organization for life"
        )

    def __reduce__(self) -> tuple[type["TenantMismatchError"], tuple[UUID | None, object, str]]:
        """Survive pickling."""
        return type(self), (self.expected, self.got, self.what)


_SHOWN = 80

UNSHOWN = frozenset(
    {
        "content",
        "contents",
        "embedding",
        "metadata",
        "metadata_",
        "password",
        "plaintext",
        "previous_content",
        "query",
        "rules",
        "signing_key",
        "state",
        "text",
        "token",
        "token_hash",
        "vector",
        "vectors",
    }
)
"""Fields whose values no message shows, for messages end in logs: what users said, vectors, secrets."""


def size_of(value: object) -> str:
    """Return what kind of value it is, and how long: what may be told of any."""
    kind = type(value).__name__
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    return f"{kind} of {len(value)}" if isinstance(value, Sized) else kind


def _show(value: object) -> str:
    """Return the repr, cut; the type alone where it has none (a broken __repr__, an int of 5,000 digits)."""
    if isinstance(value, _Shown):
        return str(value)
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 - whatever somebody's __repr__ raises
        return f"<{type(value).__name__}>"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}... ({type(value).__name__})"


class _Shown(str):
    """What is left of a value: its repr, which is shown as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class InvalidInputError(IbexError, ValueError):
    """Input refused before any SQL: which field, which value, which rule."""

    def __init__(self, field: str, value: object, rule: str, *, index: int | None = None) -> None:
        self.field = field
        self.value = value
        self.rule = rule
        self.index = index
        # None and numbers tell nothing of anybody; and what is shown already was sent by pickle.
        shown = size_of(value) if field in UNSHOWN and not isinstance(value, _Shown) else _show(value)
        where = "" if index is None else f"item {index}: "
        super().__init__(f"{where}{field} {rule}; got {shown}")

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling; a value that cannot (it may be anything at all) is sent as it was shown."""
        value = self.value
        try:
            pickle.dumps(value)
        except Exception:  # noqa: BLE001 - whatever somebody's __reduce__ raises
            value = _Shown(size_of(value) if self.field in UNSHOWN else _show(value))
        return _invalid_input, (self.field, value, self.rule, self.index)


def _invalid_input(field: str, value: object, rule: str, index: int | None) -> InvalidInputError:
    return InvalidInputError(field, value, rule, index=index)


class InvalidTokenError(IbexError):
    """The token is not valid; whether malformed, unknown, expired or revoked is not told, on purpose."""


class NotFoundError(IbexError, LookupError):
    """No such row, as this tenant sees the table."""

    def __init__(self, model: str, key: object) -> None:
        self.model = model
        self.key = key
        where = "is visible here" if model == "Organization" else "in this organization"  # that one lies in none
        super().__init__(f"no {model} {key} {where} (soft-deleted rows are hidden unless asked for)")

    def __reduce__(self) -> tuple[type["NotFoundError"], tuple[str, object]]:
        """Survive pickling."""
        return type(self), (self.model, self.key)


class NotLoadedError(IbexError):
    """An attribute was read that its row was loaded without; nothing is loaded behind your back."""

    def __init__(self, model: str, attribute: str, way_out: str) -> None:
        self.model = model
        self.attribute = attribute
        self.way_out = way_out
        super().__init__(f"{model}.{attribute} was not loaded: {way_out}")

    def __reduce__(self) -> tuple[type["NotLoadedError"], tuple[str, str, str]]:
        """Survive pickling."""
        return type(self), (self.model, self.attribute, self.way_out)


class IllegalTransitionError(IbexError):
    """A step that the row's present state does not allow."""

    def __init__(self, entity: str, from_state: str, to_state: str, way_out: str = "") -> None:
        self.entity = entity
        self.from_state = from_state
        self.to_state = to_state
        self.way_out = way_out
        super().__init__(f"{entity} is {from_state} and cannot become {to_state}" + (f": {way_out}" if way_out else ""))

    def __reduce__(self) -> tuple[type["IllegalTransitionError"], tuple[str, str, str, str]]:
        """Survive pickling."""
        return type(self), (self.entity, self.from_state, self.to_state, self.way_out)


class _ServerError(IbexError):
    """What the server's refusals have in common: the constraint's name and the SQLSTATE."""

    def __init__(
        self,
        message: str = "",
        *,
        constraint: str | None = None,
        table: str | None = None,
        values: Mapping[str, object] | None = None,
        sqlstate: str | None = None,
    ) -> None:
        self.constraint = constraint
        self.table = table
        self.values = dict(values or {})
        self.sqlstate = sqlstate
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling; keyword-only facts travel in the state."""
        return type(self), self.args, self.__dict__


class SignatureError(_ServerError, TenantError):
    """The database has signing on, and this transaction's tenant came with no signature that it believes."""


class _RowError(_ServerError):
    """What a refusal of one row has beside: its position, where it was one of many that were given."""

    index: int | None = None


class ConflictError(_RowError):
    """Another row already holds these values of a unique key."""


class ForeignKeyError(_RowError):
    """The row points at one that this organization does not have, or is still pointed at."""


class RuleViolationError(_ServerError):
    """A CHECK or NOT NULL rule of the table refused the row."""


class AccessDeniedError(_ServerError):
    """A row-level security policy or a missing grant refused the statement."""


class TransientError(_ServerError):
    """The unit of work was rolled back and may succeed when tried again: see Database.run()."""


class SerializationError(TransientError):
    """A concurrent transaction changed what this one had read."""


class DeadlockError(TransientError):
    """Two transactions waited for each other; this one was chosen to give way."""


class LockTimeoutError(TransientError):
    """A lock was not granted within lock_timeout."""


class MigrationBlockedError(LockTimeoutError):
    """A revision did not get a lock within lock_timeout, as often as it tried; nothing of it was applied.

    Attributes:
        revision: which.
        relation: what it waited for last; None: unknown.
        holders: who was in its way then: pid, application_name, state and for how long, one line each.
    """

    revision: str = ""
    relation: str | None = None
    holders: tuple[str, ...] = ()


class ConnectionLostError(TransientError):
    """The connection to the server broke; work that was not committed is gone."""


class SchemaChangedError(TransientError):
    """The schema changed under a prepared statement, which was not run; the next attempt prepares it anew."""


class SignatureLateError(TransientError):
    """The tenant's signature was not made as its transaction began: a clock jumped, or the service stood still."""


class PoolExhaustedError(TransientError):
    """No connection came free within pool_timeout: enlarge pool_size, or hold transactions for less time."""


class CommitUnknownError(_ServerError):
    """The connection broke during COMMIT: the work may or may not have been done."""


class StatementTimeoutError(_ServerError):
    """The statement was cancelled: it ran longer than statement_timeout, or someone cancelled it."""


class DatabaseError(_ServerError):
    """The server refused the statement for another reason; the cause is chained."""
