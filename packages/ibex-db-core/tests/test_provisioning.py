"""A server made ready: roles, logins that are nothing but members, databases; again and again, and all at once."""

import asyncio
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import make_url

from ibex_db_core.policies import APP_ROLE, PLATFORM_ROLE
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN, Cluster, replace_login
from ibex_db_core.testing import TestDatabase


async def names(cluster: Cluster) -> set[str]:
    connection = await asyncpg.connect(cluster.admin.render_as_string(hide_password=False))
    found = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
    await connection.close()
    return found


async def test_logins_are_members_of_one_role_and_nothing_else(admin: asyncpg.Connection) -> None:
    found = await admin.fetch(
        """
        SELECT m.rolname AS login, array_agg(r.rolname::text) AS roles,
               bool_or(m.rolsuper OR m.rolbypassrls OR m.rolcreaterole OR m.rolcreatedb) AS more
        FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member JOIN pg_roles r ON r.oid = a.roleid
        WHERE m.rolname = ANY($1) GROUP BY 1
        """,
        [SERVICE_LOGIN, PLATFORM_LOGIN],
    )

    assert {row["login"]: row["roles"] for row in found} == {
        SERVICE_LOGIN: [APP_ROLE],
        PLATFORM_LOGIN: [PLATFORM_ROLE],
    }
    assert not any(row["more"] for row in found)


async def test_logins_may_be_made_again_and_by_many_at_once(ibex_cluster: Cluster, toy_database: TestDatabase) -> None:
    with_password = Cluster(ibex_cluster.admin, ibex_cluster.password or "a password for everyone")
    await asyncio.gather(*(with_password.create_logins() for _ in range(6)))

    async with toy_database.connect() as db, db.engine.connect():
        pass  # those who were there before still get in


async def test_whoever_knows_a_servers_address_agrees_on_its_logins() -> None:
    one, two = (Cluster.at("postgresql://postgres:geheim@db.example/postgres") for _ in range(2))
    other = Cluster.at("postgresql://postgres:another@db.example/postgres")

    assert one.password == two.password != other.password
    assert "geheim" not in str(one.password)


async def test_a_database_is_made_once_and_dropped_with_its_connections(ibex_cluster: Cluster) -> None:
    name = f"ibex_test_{uuid4().hex[:12]}"
    await asyncio.gather(*(ibex_cluster.create_database(name) for _ in range(2)))
    assert name in await names(ibex_cluster)
    held = await asyncpg.connect(ibex_cluster.url(name).render_as_string(hide_password=False))

    await ibex_cluster.drop_database(name)

    assert name not in await names(ibex_cluster)
    await ibex_cluster.drop_database(name)  # it is gone, and that is no error
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError)):
        await held.fetchval("SELECT 1")


async def test_a_copy_has_what_its_template_has(ibex_cluster: Cluster, toy_template: str) -> None:
    name = f"ibex_test_{uuid4().hex[:12]}"
    await ibex_cluster.create_database(name, template=toy_template)
    connection = await asyncpg.connect(ibex_cluster.url(name).render_as_string(hide_password=False))

    assert await connection.fetchval("SELECT count(*) FROM ibex_core.bots") == 0
    await connection.close()
    await ibex_cluster.drop_database(name)


def test_an_address_for_another_login_keeps_everything_else() -> None:
    address = make_url("postgresql://postgres:geheim@db.example:5433/ibex?sslmode=require")

    other = replace_login(address, "ann", "secret")

    assert other.render_as_string(hide_password=False) == (
        "postgresql://ann:secret@db.example:5433/ibex?sslmode=require"
    )


def test_addresses_name_the_superuser_or_a_login() -> None:
    cluster = Cluster.at("postgres://postgres:geheim@db.example/postgres")

    assert cluster.url("ibex").username == "postgres"
    assert cluster.url("ibex").database == "ibex"
    assert cluster.url("ibex", user=SERVICE_LOGIN).username == SERVICE_LOGIN
    assert cluster.url("ibex", user=SERVICE_LOGIN).password == cluster.password
