"""Signing switched on and off in a live database: every policy and every function that reads the tenant, at once.

Signing is on while the database holds a key.  What is signed is found in the
catalog (each tenant table's two policies of ibex_app) and in the models (their
functions), so tables of a service's own, made with secure(), are signed too.
"""

import random
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection, MetaData, text

from ibex_db_core.base import SCHEMA
from ibex_db_core.errors import ConfigurationError, LockTimeoutError, MigrationError
from ibex_db_core.guards import Function, Guards
from ibex_db_core.policies import (
    APP_ROLE,
    FROZEN_EXPRESSION,
    OWNER_ROLE,
    PARALLEL_RESTRICTED,
    PARALLEL_SAFE,
    SIGNED_CALL,
    SIGNED_EXPRESSION,
    SIGNING_KEYS,
    TENANT_EXPRESSION,
    sign_text,
    tenant_predicate,
    unsign_text,
)

if TYPE_CHECKING:
    from ibex_db_core.signing import SigningKey

__all__ = ["Key", "Signing", "disable", "enable", "is_on", "rotate", "sign_new", "status"]


@dataclass(frozen=True, slots=True)
class Key:
    """A key that the database holds.

    Attributes:
        id: 8 hexadecimal digits; a service's key shows the same.
        valid_until: None: until the next rotation.
    """

    id: str
    created_at: datetime
    valid_until: datetime | None


@dataclass(frozen=True, slots=True)
class Signing:
    """Whether tenants must be signed, and with which keys, the newest first."""

    enabled: bool
    keys: tuple[Key, ...]
    signed: int
    """Tables that demand a signature."""
    unsigned: int
    """Tables that do not, or not in both of their policies."""


_POLICIES = """
    SELECT c.oid::regclass::text AS "table", quote_ident(p.polname) AS name, quote_ident(a.attname) AS column,
           NOT p.polpermissive AS floor, strpos(pg_get_expr(p.polqual, p.polrelid), '( SELECT ') > 0 AS signed
      FROM pg_catalog.pg_policy p
      JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
      JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_policy'::regclass AND d.objid = p.oid
       AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid > 0
      JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
     WHERE p.polname = c.relname || CASE WHEN p.polpermissive THEN '_tenant' ELSE '_floor' END AND p.polcmd = '*'
       AND p.polroles = ARRAY[(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = :app)]
       AND a.attname IN ('org_id', 'id')
     GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2
"""
# As the owner of the function, who may not be the owner role: memories_bm25 is
# ibex_search's, which may make nothing in the schema but for this moment.
_FUNCTION = """
    SELECT pg_get_functiondef(f.oid) AS definition, pg_get_userbyid(f.proowner)::text AS owner
      FROM pg_catalog.pg_proc f WHERE f.oid = to_regprocedure(:signature)
"""

_PATIENCE = 60.0  # seconds that switching waits for its moment in all
_LOCK_TIMEOUT = "100ms"  # below deadlock_timeout: it is always us who gives way


def is_on(connection: Connection) -> bool:
    """Tell whether this database demands signed tenants."""
    made = connection.scalar(text(f"SELECT to_regclass('{SCHEMA}.{SIGNING_KEYS}') IS NOT NULL"))
    return bool(made and connection.scalar(text(f"SELECT EXISTS (SELECT FROM {SCHEMA}.{SIGNING_KEYS})")))


def status(connection: Connection) -> Signing:
    """Return what the database says of signing.

    Raises:
        MigrationError: revision core_0002 is not applied.
    """
    _require(connection)
    keys = connection.execute(
        text(f"SELECT id, created_at, valid_until FROM {SCHEMA}.{SIGNING_KEYS} ORDER BY created_at DESC, id")
    )
    found = tuple(Key(row.id, row.created_at, row.valid_until) for row in keys)
    policies = _policies(connection)
    tables = {policy.table for policy in policies}
    unsigned = {policy.table for policy in policies if not policy.signed}
    return Signing(bool(found), found, len(tables - unsigned), len(unsigned))


def enable(connection: Connection, key: "SigningKey", models: MetaData) -> Signing:
    """Demand signed tenants from now on; services must have the key by then.  Again: signs what is not signed yet.

    Raises:
        ConfigurationError: signing is on with another key: rotate() changes keys.
        LockTimeoutError: the tables were never free together; nothing was changed.
        MigrationError: revision core_0002 is not applied.
    """
    _require(connection)
    known = {found.id for found in status(connection).keys}
    connection.rollback()
    if known and key.id not in known:
        raise ConfigurationError(f"signing is on with another key ({', '.join(sorted(known))}): --rotate changes keys")
    if not known:
        # On its own and first: a transaction that looks at the policies anew finds the key that they ask for.
        with connection.begin():
            _insert(connection, key)
    try:
        _switch(connection, models, on=True)
    except BaseException:
        if not known:
            with connection.begin():
                _as_owner(connection)
                connection.execute(text(f"DELETE FROM {SCHEMA}.{SIGNING_KEYS}"))
        raise
    return status(connection)


def disable(connection: Connection, models: MetaData) -> Signing:
    """Demand no signatures any more, and forget the keys.

    Raises:
        LockTimeoutError: the tables were never free together; nothing was changed.
        MigrationError: revision core_0002 is not applied.
    """
    _require(connection)
    connection.rollback()
    _switch(connection, models, on=False)
    return status(connection)


def rotate(connection: Connection, key: "SigningKey", overlap: float) -> Signing:
    """Take a new key; those before it stay valid for ``overlap`` seconds more, and are then forgotten at the next one.

    Raises:
        ConfigurationError: signing is off, or this is no new key.
        MigrationError: revision core_0002 is not applied.
    """
    found = status(connection)
    connection.rollback()
    if not found.enabled:
        raise ConfigurationError("signing is off: --enable takes the first key")
    if key.id in {known.id for known in found.keys}:
        raise ConfigurationError(f"{key!r} is in use already: rotate to a new one (`ibex-db sign --new-key`)")
    with connection.begin():
        _as_owner(connection)
        connection.execute(text(f"DELETE FROM {SCHEMA}.{SIGNING_KEYS} WHERE valid_until < now()"))
        connection.execute(
            text(
                f"UPDATE {SCHEMA}.{SIGNING_KEYS} "
                "SET valid_until = least(valid_until, now() + :overlap * interval '1 second')"
            ),
            {"overlap": overlap},
        )
        _insert(connection, key)
    return status(connection)


def sign_new(connection: Connection, models: MetaData) -> None:
    """Sign what a revision has just made, within its transaction; nothing where signing is off."""
    if is_on(connection):
        _rewrite(connection, models, on=True)


def _require(connection: Connection) -> None:
    if connection.scalar(text(f"SELECT to_regclass('{SCHEMA}.{SIGNING_KEYS}')")) is None:
        raise MigrationError("this database knows nothing of signing yet: run `ibex-db upgrade`, or await db.upgrade()")


def _insert(connection: Connection, key: "SigningKey") -> None:
    _as_owner(connection)
    connection.execute(
        text(f"INSERT INTO {SCHEMA}.{SIGNING_KEYS} (id, inner_pad, outer_pad) VALUES (:id, :inner, :outer)"),
        {"id": key.id, "inner": key.inner, "outer": key.outer},
    )


def _as_owner(connection: Connection) -> None:
    connection.execute(text(f"SET LOCAL ROLE {OWNER_ROLE}"))


@dataclass(frozen=True, slots=True)
class _Policy:
    table: str
    name: str
    column: str
    floor: bool
    signed: bool


def _policies(connection: Connection) -> list[_Policy]:
    rows = connection.execute(text(_POLICIES), {"app": APP_ROLE})
    return [_Policy(row.table, row.name, row.column, row.floor, row.signed) for row in rows]


def _switch(connection: Connection, models: MetaData, *, on: bool) -> None:
    """Rewrite all at once, in one transaction, in a moment in which nobody uses any of the tables.

    ALTER POLICY wants each table to itself.  Services take them in every order,
    so whoever waits while holding some would be one half of a deadlock: we ask
    for a tenth of a second, let go of all, and ask again.
    """
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            with connection.begin():
                _as_owner(connection)
                connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
                tables = {policy.table for policy in _policies(connection) if policy.signed is not on}
                if tables:
                    names = ", ".join(f"ONLY {table}" for table in sorted(tables))
                    connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
                _rewrite(connection, models, on=on)
                if not on:
                    connection.execute(text(f"DELETE FROM {SCHEMA}.{SIGNING_KEYS}"))
        except LockTimeoutError:
            if time.monotonic() > give_up:
                raise
            time.sleep(random.uniform(0.05, 0.3))  # noqa: S311 - apart from others is all it must be
        else:
            return


def _rewrite(connection: Connection, models: MetaData, *, on: bool) -> None:
    """Give each policy, and each function of the models, the text that goes with signing on or off."""
    for policy in _policies(connection):
        if policy.signed is not on:
            signed = SIGNED_EXPRESSION if policy.floor else FROZEN_EXPRESSION
            mine = tenant_predicate(policy.column, signed if on else TENANT_EXPRESSION)
            _as_owner(connection)
            connection.exec_driver_sql(
                f"ALTER POLICY {policy.name} ON {policy.table} USING ({mine}) WITH CHECK ({mine})"
            )
    for function in _functions(models):
        _rewrite_function(connection, function, on=on)
    connection.execute(text("SET LOCAL ROLE NONE"))


def _functions(models: MetaData) -> Iterator[Function]:
    """Yield the functions of the models that read the tenant themselves."""
    for table in models.sorted_tables:
        guards = table.info.get("guards")
        if isinstance(guards, Guards):
            yield from (function for function in guards.functions if TENANT_EXPRESSION in function.body)


def _rewrite_function(connection: Connection, function: Function, *, on: bool) -> None:
    # Its arguments by type: to_regprocedure() takes no names.
    types = ", ".join(argument.strip().partition(" ")[2] for argument in function.arguments.split(","))
    found = connection.execute(text(_FUNCTION), {"signature": f"{function.schema}.{function.name}({types})"}).first()
    if found is None or (SIGNED_CALL in found.definition) is on:
        return
    # From what stands in the database: it may be at an older revision than the models.
    if on:
        definition = sign_text(found.definition).replace(PARALLEL_SAFE, PARALLEL_RESTRICTED)
    else:
        definition = unsign_text(found.definition).replace(PARALLEL_RESTRICTED, PARALLEL_SAFE)
    with _owning(connection, function.schema, found.owner):
        connection.exec_driver_sql(definition)


@contextmanager
def _owning(connection: Connection, schema: str, owner: str) -> Generator[None]:
    """Be the owner of a function, who may replace it in the schema for just this long."""
    _as_owner(connection)
    if owner != OWNER_ROLE:
        connection.exec_driver_sql(f"GRANT CREATE ON SCHEMA {schema} TO {owner}")
        connection.exec_driver_sql(f"SET LOCAL ROLE {owner}")
    yield
    _as_owner(connection)
    if owner != OWNER_ROLE:
        connection.exec_driver_sql(f"REVOKE CREATE ON SCHEMA {schema} FROM {owner}")
