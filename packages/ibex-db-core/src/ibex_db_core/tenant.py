"""The tenant: how it rides in BEGIN, the session that is bound to it, the guard for other sessions.

Four lines that must agree before a row is seen: the repository's own filter,
the session's, the policy that reads ``app.current_org_id``, and the role.
With a signing key, BEGIN also carries the tenant's signature: see signing.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, TypeVar, cast
from uuid import UUID

from sqlalchemy import Connection, Engine, event, inspect, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, SessionTransaction, with_loader_criteria
from sqlalchemy.pool import PoolProxiedConnection

from ibex_db_core import validation
from ibex_db_core.base import OrgScoped
from ibex_db_core.connection import FoldedConnection
from ibex_db_core.errors import InvalidInputError, TenantError, TenantMismatchError, TenantMissingError
from ibex_db_core.policies import SIGNATURE_SETTING, TENANT_SETTING
from ibex_db_core.sharding import is_sharded, note_sharded
from ibex_db_core.signing import ASK, key_of_environment

if TYPE_CHECKING:
    from ibex_db_core.telemetry.watch import Watch

O = TypeVar("O")  # noqa: E741 - SQLAlchemy's own name for "an entity"

# Statements that already filter on the organization say so, and are not given the filter twice.
SCOPED = "ibex_scoped"


class _Taking(Protocol):
    """The pool of our engines (ibex_db_core.lending)."""

    def offer(self, lease: PoolProxiedConnection | None) -> None: ...


def set_tenant(org_id: UUID) -> str:
    """Return the statement that names the tenant.

    SET LOCAL takes no bind parameter; a UUID that we formatted ourselves, whatever a subclass says of itself, is
    safe as a literal, and a literal also reaches the workers of a sharded engine.
    """
    return f"SET LOCAL {TENANT_SETTING} = '{UUID.__str__(org_id)}'"


OWN_ROLE = "SET LOCAL ROLE NONE"


class SyncScopedSession(Session):
    """The synchronous half of ScopedSession: arms BEGIN, fills org_id in, completes identities."""

    org_id: UUID | None = None
    settings: str | None = None
    watch: "Watch | None" = None
    """What its Database's telemetry tells of it; None: nothing."""

    lease: PoolProxiedConnection | None = None
    """A connection that the unit of work lends, armed or begun already; None once SQLAlchemy's transaction has it."""

    took: PoolProxiedConnection | None = None
    """What SQLAlchemy's transaction is taking over at this moment."""

    held: PoolProxiedConnection | None = None
    """What the last transaction ran on; empty once it is back in the pool."""

    when_over: tuple[Callable[[], None], ...] = ()
    """What to call once when the transaction under way is over, however it ended."""

    def over(self) -> None:
        """Tell those who wait that the transaction is over."""
        told, self.when_over = self.when_over, ()
        for call in told:
            call()

    def begin(self, nested: bool = False) -> SessionTransaction:  # noqa: FBT001, FBT002 - as Session has it
        """Begin; what has been lent is in a transaction already."""
        self._take_over()
        return super().begin(nested)

    def in_transaction(self) -> bool:
        """Tell whether a transaction is under way, SQLAlchemy's or one that has been lent."""
        return self.lease is not None or super().in_transaction()

    def get_transaction(self) -> SessionTransaction | None:
        """Return the transaction, which from here on is SQLAlchemy's."""
        self._take_over()
        return super().get_transaction()

    def commit(self) -> None:
        """Commit, also what was done on a lent connection."""
        self._take_over()
        super().commit()

    def rollback(self) -> None:
        """Roll back, also what was done on a lent connection."""
        self._take_over()
        super().rollback()

    def close(self) -> None:
        """Close, and give back what was lent."""
        self._take_over()
        super().close()

    def reset(self) -> None:
        """Start afresh, and give back what was lent."""
        self._take_over()
        super().reset()

    def invalidate(self) -> None:
        """Close, and have what was lent closed for good."""
        self._take_over()
        super().invalidate()

    def _take_over(self) -> None:
        if self.lease is not None:
            self.connection()

    def get(self, entity: Any, ident: Any, **options: Any) -> Any:
        """Load by key; the bare id stands for (org_id, id)."""
        return super().get(entity, self.identity(entity, ident), **options)

    def get_one(self, entity: Any, ident: Any, **options: Any) -> Any:
        """Load by key or raise; the bare id stands for (org_id, id)."""
        return super().get_one(entity, self.identity(entity, ident), **options)

    def identity(self, entity: object, ident: object) -> object:
        """Complete a bare id with the session's organization.

        Raises:
            InvalidInputError: it is neither an id nor the pair (org_id, id).
            TenantMismatchError: the identity names another organization.
        """
        mapper = cast("Mapper[object]", inspect(entity))
        if getattr(mapper.class_, "__tenant_column__", None) != "org_id":
            return ident
        name = mapper.class_.__name__
        if isinstance(ident, Mapping):
            named = cast("Mapping[str, object]", ident)
            org, key = named.get("org_id", self.org_id), named.get("id")
        elif isinstance(ident, (tuple, list)):
            parts = cast("Sequence[object]", ident)
            if len(parts) != len(("org_id", "id")):
                raise InvalidInputError("ident", parts, f"must be the id of a {name}, or the pair (org_id, id)")
            org, key = parts
        else:
            org, key = self.org_id, ident
        if org is None:
            raise TenantMissingError(f"{name} is identified by (org_id, id): give both in a cross-tenant session")
        org, key = validation.uuid("org_id", org), validation.uuid("id", key)
        if self.org_id is not None and org != self.org_id:
            raise TenantMismatchError(self.org_id, org, f"{name} identity")
        return (org, key)


def is_dirty(session: Session) -> bool:
    """Tell whether there is anything to flush; may say so where nothing is."""
    return bool(session.identity_map.check_modified() or session.new or session.deleted)


class ScopedSession(AsyncSession):
    """What db.tenant() and db.platform() give: an AsyncSession that serves one organization for life.

    In a tenant session a new object's org_id is filled in when left out, an
    object of another organization is refused, ``get(Memory, id)`` takes the
    bare id, and every transaction (also the next, after commit or rollback)
    carries the tenant in its first statement.
    """

    sync_session_class = SyncScopedSession

    @property
    def org_id(self) -> UUID | None:
        """The organization; None in a cross-tenant session."""
        return cast("SyncScopedSession", self.sync_session).org_id


def watch_of(session: ScopedSession) -> "Watch | None":
    """Return what its Database's telemetry tells of a session; None: nothing."""
    return cast("SyncScopedSession", session.sync_session).watch


def scope(session: ScopedSession, org_id: UUID | None, settings: str, watch: "Watch | None" = None) -> None:
    """Bind a fresh session to an organization, to what its BEGIN carries, and to what is told of it.

    Raises:
        TenantMismatchError: it is bound already; its identity map would hand one tenant's objects to the other.
    """
    sync = cast("SyncScopedSession", session.sync_session)
    if sync.settings is not None:
        raise TenantMismatchError(sync.org_id, org_id, "binding")
    sync.org_id = org_id
    sync.settings = settings
    sync.watch = watch


@event.listens_for(SyncScopedSession, "after_transaction_create")
def _take_lease(session: SyncScopedSession, _transaction: SessionTransaction) -> None:
    """Give the first transaction that SQLAlchemy begins the connection that has been lent, as it is."""
    lease = session.lease
    if lease is None:
        return
    pool = cast("_Taking", cast("Engine", session.bind).pool)
    session.lease, session.took = None, lease
    pool.offer(lease)
    try:
        session.connection()
    finally:
        pool.offer(None)
        session.took = None


@event.listens_for(SyncScopedSession, "after_transaction_end")
def _tell(session: SyncScopedSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:  # a savepoint's end is not that
        session.over()


@event.listens_for(SyncScopedSession, "after_begin")
def _arm(session: SyncScopedSession, transaction: SessionTransaction, connection: Connection) -> None:
    if transaction.nested:
        return  # a savepoint: its transaction already carries the tenant
    if session.took is not None and connection.connection is session.took:
        _claim(connection, session.org_id)  # armed when it was lent, and maybe begun since
        return
    if session.settings is None:
        raise TenantMissingError
    driver = connection.connection.driver_connection
    # Not isinstance(): asyncpg's metaclass takes every connection for an instance of every connection class.
    if not issubclass(type(driver), FoldedConnection):
        raise TenantError("a ScopedSession works on the engine of its Database only: use db.tenant(org_id)")
    session.held = connection.connection
    if cast("Any", connection.connection.dbapi_connection).autocommit:
        raise FoldedConnection.outside_a_transaction()
    _claim(connection, session.org_id)
    cast("FoldedConnection", driver).arm(session.settings, session.org_id)


def _claim(connection: Connection, org_id: UUID | None) -> None:
    """Have a transaction serve one organization, whatever sessions share its connection.

    Raises:
        TenantMismatchError: another session has bound it to another one; that one would read this one's rows.
    """
    info = cast("dict[str, object]", connection.info)
    root = connection.get_transaction()
    held = cast("tuple[object, UUID | None] | None", info.get(_HOLDER))
    if held is not None and held[0] is root and root is not None and held[1] != org_id:
        raise TenantMismatchError(held[1], org_id, "transaction")
    info[_HOLDER] = (root, org_id)


_HOLDER = "ibex_tenant"


def _scoped(instance: object) -> TypeGuard[OrgScoped]:
    return isinstance(instance, OrgScoped)


@event.listens_for(SyncScopedSession, "before_attach")
def _fill_org(session: SyncScopedSession, instance: object) -> None:
    if session.org_id is None or not _scoped(instance):
        return
    found = cast("UUID | None", instance.__dict__.get("org_id"))
    if found is None and inspect(instance).key is None:
        instance.org_id = session.org_id
    elif found is not None and found != session.org_id:
        raise TenantMismatchError(session.org_id, found, type(instance).__name__)


@event.listens_for(SyncScopedSession, "before_flush")
def _check_orgs(session: SyncScopedSession, _context: object, _instances: object) -> None:
    if session.org_id is None:
        return
    changed = cast("Iterable[object]", (*session.new, *session.dirty))
    for instance in changed:
        if _scoped(instance):
            found = instance.__dict__.get("org_id", session.org_id)
            if found is None:
                instance.org_id = session.org_id
            elif found != session.org_id:
                raise TenantMismatchError(session.org_id, found, type(instance).__name__)


@event.listens_for(OrgScoped, "before_insert", propagate=True)
def _require_org(mapper: "Mapper[Any]", _connection: Connection, instance: OrgScoped) -> None:
    """Hold what no session filled in: by now a child has its parent's organization, if it has a parent."""
    if instance.__dict__.get("org_id") is None:
        raise TenantMissingError(
            f"this {mapper.class_.__name__} names no organization: set its org_id, or add it through a repository "
            "that has one"
        )


@event.listens_for(SyncScopedSession, "do_orm_execute")
def _filter_org(state: ORMExecuteState) -> None:
    """Give the caller's own ORM statements the filter: it prunes partitions, and routes on a sharded engine.

    A help, never the guarantee: Core statements and text() do not pass here.
    """
    org_id = cast("SyncScopedSession", state.session).org_id
    if org_id is None or state.is_column_load or state.is_relationship_load or SCOPED in state.execution_options:
        return
    if state.is_select or state.is_update or state.is_delete:
        state.statement = state.statement.options(
            with_loader_criteria(OrgScoped, lambda model: model.org_id == org_id, include_aliases=True)
        )


# -- sessions that we did not make

# What somebody else has set stays, so that whoever reads after us reads its own rows; and we are told of it.
_MINE = (
    f"set_config('{TENANT_SETTING}', "
    f"coalesce(nullif(current_setting('{TENANT_SETTING}', true), ''), CAST(:org AS text)), true)"
)
# Of a distributed database set_config() reaches the coordinator alone.
_THERE = "to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AS sharded"
_SET = text(f"SELECT {_MINE} AS tenant, {_THERE}")
_SET_SIGNED = text(
    f"SELECT {_MINE} AS tenant, {_THERE}, set_config('{SIGNATURE_SETTING}', :signature, true) AS signature"
)
_ASK = text(ASK)
_GUARD = "ibex_guard"


class Guard:
    """Sets the tenant before every statement on an AsyncSession that somebody else made.

    Once for each transaction (on its first connection), and again when a
    rollback to a savepoint undid it.  Signed with the key of the session's own
    Database, else with IBEX_SIGNING_KEY, which costs one round trip more.
    """

    def __init__(self, session: AsyncSession, org_id: UUID) -> None:
        self.org_id = org_id
        self._session = session
        self._set_in: SessionTransaction | None = None
        event.listen(session.sync_session, "after_begin", self._after_begin)

    @classmethod
    def of(cls, session: AsyncSession, org_id: UUID) -> "Guard":
        """Return the session's one guard.

        Raises:
            TenantMismatchError: the session already serves another organization.
        """
        info = cast("dict[str, object]", session.info)
        found = info.get(_GUARD)
        if not isinstance(found, Guard):
            found = info[_GUARD] = cls(session, org_id)
        if found.org_id != org_id:
            raise TenantMismatchError(found.org_id, org_id, "repository")
        return found

    async def ensure(self) -> None:
        """Have the tenant set in the current transaction, beginning one where there is none.

        Raises:
            TenantError: the session runs in AUTOCOMMIT, where the setting would vanish.
        """
        await self._session.connection()  # begins, and so calls _after_begin, where nothing has begun yet
        if not self._holds():
            await self._session.run_sync(lambda sync: self._set(sync, sync.connection()))

    def _holds(self) -> bool:
        """Tell whether the transaction that the tenant was set in is still one of those we are inside of."""
        sync = self._session.sync_session
        inside = sync.get_nested_transaction() or sync.get_transaction()
        while inside is not None:
            if inside is self._set_in:
                return True
            inside = inside.parent
        return False

    def _after_begin(self, session: Session, transaction: SessionTransaction, connection: Connection) -> None:
        if not (transaction.nested and self._holds()):
            self._set(session, connection, transaction)

    def _set(self, session: Session, connection: Connection, transaction: SessionTransaction | None = None) -> None:
        _claim(connection, self.org_id)
        signature = self._signature(connection)
        statement = _SET if signature is None else _SET_SIGNED
        parameters = {"org": str(self.org_id), "signature": signature}
        found, sharded = cast("tuple[str, bool]", tuple(connection.execute(statement, parameters).one())[:2])
        if is_sharded(connection) is None:
            note_sharded(connection, sharded=sharded)
        if sharded and found == str(self.org_id):
            connection.execute(text("SET LOCAL citus.propagate_set_commands = 'local'"))
            connection.execute(text(set_tenant(self.org_id)))
        if found != str(self.org_id):
            raise TenantMismatchError(validation.uuid(TENANT_SETTING, found), self.org_id, "transaction")
        if connection.dialect.detect_autocommit_setting(connection.connection.dbapi_connection):  # type: ignore[arg-type]
            raise TenantError(
                "this session runs in AUTOCOMMIT: the tenant is a transaction-local setting and would vanish, "
                "so every query would silently find nothing; use a session with transactions"
            )
        self._set_in = transaction or session.get_nested_transaction() or session.get_transaction()

    def _signature(self, connection: Connection) -> str | None:
        driver = connection.connection.driver_connection
        if issubclass(type(driver), FoldedConnection):
            folded = cast("FoldedConnection", driver)
            if folded.signer is None:
                return None
            key = folded.signer.key
            if not folded.signer.asks:
                # Where BEGIN has not been sent, it goes with the statement that this is for.
                moment = folded.began if folded.is_in_transaction() else folded.signer.now()
                return folded.signer.sign(self.org_id, moment, folded.get_server_pid())
        elif (found := key_of_environment()) is not None:
            key = found
        else:
            return None
        database, moment, pid = connection.execute(_ASK).one()
        return key.sign(self.org_id, database, moment, pid)
