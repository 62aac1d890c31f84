"""Whom a service may connect as: a login that cannot read past the policies."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core.errors import ConfigurationError, MigrationError, UnsafeRoleError
from ibex_db_core.policies import APP_ROLE, OWNER_ROLE, PLATFORM_ROLE, SEARCH_ROLE
from ibex_db_core.sharding import note_sharded

_UNSAFE = (
    "is a superuser",
    "has BYPASSRLS",
    f"owns the tables (it is {OWNER_ROLE} or a member of it)",
    f"inherits {PLATFORM_ROLE}, whose policies show every organization",
    f"is a member of {SEARCH_ROLE}, whose policies show every organization",
    "may become a superuser or a role with BYPASSRLS by SET ROLE",
    "may create roles, and so make itself a member of others (CREATEROLE)",
    "may grant our roles (ADMIN OPTION), and so give itself more of them",
)
_MEMBER = "pg_catalog.pg_has_role(me.oid, r.oid, 'MEMBER')"
_WHO = text(
    f"""
    SELECT current_user AS login,
           EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{APP_ROLE}')
           AND pg_catalog.to_regclass('ibex_core.alembic_version') IS NOT NULL AS migrated,
           -- No such table without the extension, and nobody without it pays for looking further.
           pg_catalog.to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AS citus,
           me.rolsuper, me.rolbypassrls,
           EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = '{OWNER_ROLE}' AND {_MEMBER}),
           EXISTS (SELECT FROM pg_catalog.pg_roles r
                   WHERE r.rolname = '{PLATFORM_ROLE}' AND pg_catalog.pg_has_role(me.oid, r.oid, 'USAGE')),
           EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = '{SEARCH_ROLE}' AND {_MEMBER}),
           EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE (r.rolsuper OR r.rolbypassrls) AND {_MEMBER}),
           me.rolcreaterole,
           EXISTS (SELECT FROM pg_catalog.pg_auth_members g JOIN pg_catalog.pg_roles r ON r.oid = g.roleid
                   WHERE g.admin_option AND pg_catalog.pg_has_role(me.oid, g.member, 'MEMBER')
                     AND r.rolname IN ('{APP_ROLE}', '{PLATFORM_ROLE}', '{OWNER_ROLE}', '{SEARCH_ROLE}'))
    FROM pg_catalog.pg_roles me WHERE me.rolname = current_user
    """
)
_PLATFORM = text(
    f"""
    SELECT current_user AS login, pg_catalog.to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AS citus,
           me.rolsuper, me.rolbypassrls,
           EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = '{OWNER_ROLE}' AND {_MEMBER}),
           NOT EXISTS (SELECT FROM pg_catalog.pg_roles r
                       WHERE r.rolname = '{PLATFORM_ROLE}' AND pg_catalog.pg_has_role(me.oid, r.oid, 'USAGE'))
    FROM pg_catalog.pg_roles me WHERE me.rolname = current_user
    """
)


_DISTRIBUTED = text(
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_partition p "
    "WHERE p.logicalrelid = to_regclass('ibex_core.organizations'))"
)


async def verify(engine: AsyncEngine, *, step_down: bool) -> None:
    """Refuse a login that could read past the policies, and a database without our schema; note a distributed one.

    Args:
        engine: of the login.
        step_down: accept it: each transaction steps down to ibex_app.

    Raises:
        MigrationError: there is no ibex_core schema.
        UnsafeRoleError: the login is a superuser, the owner, or another that the policies do not hold.
    """
    async with engine.connect() as connection:
        row = (await connection.execute(_WHO)).one()
        sharded = bool(row.citus and await connection.scalar(_DISTRIBUTED))
    note_sharded(engine, sharded=sharded)
    if not row.migrated:
        raise MigrationError("this database has no ibex_core schema: run `ibex-db upgrade`, or await db.upgrade()")
    why = next((reason for reason, holds in zip(_UNSAFE, row[3:], strict=True) if holds), None)
    if why is not None and not step_down:
        raise UnsafeRoleError(row.login, why)


async def verify_platform(engine: AsyncEngine, *, step_down: bool) -> None:
    """Refuse a login for cross-tenant work that no policy holds, and one that would see no row and say nothing.

    Args:
        engine: of the login.
        step_down: accept the owner's and a superuser's: for development.

    Raises:
        ConfigurationError: it is a superuser, the owner, or no member of ibex_platform.
    """
    async with engine.connect() as connection:
        row = (await connection.execute(_PLATFORM)).one()
        sharded = bool(row.citus and await connection.scalar(_DISTRIBUTED))
    note_sharded(engine, sharded=sharded)
    reasons = (*_UNSAFE[:3], f"does not inherit {PLATFORM_ROLE}, so every query of db.platform() would find nothing")
    why = next((reason for reason, holds in zip(reasons, row[2:], strict=True) if holds), None)
    if why is not None and not (step_down and why in _UNSAFE):
        raise ConfigurationError(
            f"login {row.login!r} is refused for cross-tenant work: it {why}. Name in platform_url (IBEX_PLATFORM_URL) "
            f"a login that is only a member of {PLATFORM_ROLE} (GRANT {PLATFORM_ROLE} TO your_login)"
        )
