"""Whom a service may connect as: a login that cannot read past the policies."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core.errors import MigrationError, UnsafeRoleError
from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, SEARCH_ROLE

_UNSAFE = (
    "is a superuser",
    "has BYPASSRLS",
    f"owns the tables (it is {OWNER_ROLE} or a member of it)",
    f"inherits {PLATFORM_ROLE}, whose policies show every organization",
    f"inherits {SEARCH_ROLE}, whose policies show every organization",
)
_WHO = text(
    f"""
    SELECT current_user AS login,
           EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{APP_ROLE}')
           AND pg_catalog.to_regclass('ibex_core.alembic_version') IS NOT NULL AS migrated,
           me.rolsuper, me.rolbypassrls,
           EXISTS (SELECT FROM pg_catalog.pg_roles r
                   WHERE r.rolname = '{OWNER_ROLE}' AND pg_catalog.pg_has_role(me.oid, r.oid, 'MEMBER')),
           EXISTS (SELECT FROM pg_catalog.pg_roles r
                   WHERE r.rolname = '{PLATFORM_ROLE}' AND pg_catalog.pg_has_role(me.oid, r.oid, 'USAGE')),
           EXISTS (SELECT FROM pg_catalog.pg_roles r
                   WHERE r.rolname = '{SEARCH_ROLE}' AND pg_catalog.pg_has_role(me.oid, r.oid, 'USAGE'))
    FROM pg_catalog.pg_roles me WHERE me.rolname = current_user
    """
)


async def verify(engine: AsyncEngine, *, step_down: bool) -> None:
    """Refuse a login that could read past the policies, and a database without our schema.

    Args:
        engine: of the login.
        step_down: accept it: each transaction steps down to ibex_app.

    Raises:
        MigrationError: there is no ibex_core schema.
        UnsafeRoleError: the login is a superuser, the owner, or another that the policies do not hold.
    """
    async with engine.connect() as connection:
        row = (await connection.execute(_WHO)).one()
    if not row.migrated:
        raise MigrationError("this database has no ibex_core schema: run `ibex-db upgrade`, or await db.upgrade()")
    why = next((reason for reason, holds in zip(_UNSAFE, row[2:], strict=True) if holds), None)
    if why is not None and not step_down:
        raise UnsafeRoleError(row.login, why)
