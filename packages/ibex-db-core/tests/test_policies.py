"""Policies: what raw SQL can and cannot see under a service's login, with nothing of ours in between."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest
from toys import AddBot, ToyBase

from ibex_db_core.policies import (
    APP_ROLE,
    PLATFORM_ROLE,
    ROLES,
    TENANT_EXPRESSION,
    TENANT_SETTING,
    TRIGGER_FUNCTIONS,
    secure,
    tenant_tables,
)
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN
from ibex_db_core.testing import TestDatabase

COUNT = "SELECT count(*) FROM ibex_core.bots"


@pytest.fixture
async def service(service_address: str) -> AsyncIterator[asyncpg.Connection]:
    """A service's raw connection: no session, no repository, no folded BEGIN."""
    connection = await asyncpg.connect(service_address)
    yield connection
    await connection.close()


async def set_tenant(connection: asyncpg.Connection, org_id: UUID | str) -> None:
    """Name the tenant for the transaction that is open."""
    await connection.execute(f"SET LOCAL {TENANT_SETTING} = '{org_id}'")


# -- reading


async def test_raw_sql_sees_the_rows_of_its_own_organization_only(
    service: asyncpg.Connection, admin: asyncpg.Connection, acme: UUID, globex: UUID, add_bot: AddBot
) -> None:
    mine, theirs = await add_bot(acme), await add_bot(globex)
    both = await admin.fetchval(f"{COUNT} WHERE id = ANY($1)", [mine, theirs])
    assert both == 2  # there is something to leak

    async with service.transaction():
        await set_tenant(service, acme)
        assert [row["id"] for row in await service.fetch("SELECT id FROM ibex_core.bots")] == [mine]
        assert await service.fetchval(f"{COUNT} WHERE org_id = $1", globex) == 0
        assert await service.fetchval(f"{COUNT} WHERE id = $1 OR true", theirs) == 1
        assert [row["id"] for row in await service.fetch("SELECT id FROM ibex_core.organizations")] == [acme]


async def test_no_tenant_is_no_rows_and_no_error_however_often_one_connection_is_used(
    service: asyncpg.Connection, acme: UUID, add_bot: AddBot
) -> None:
    await add_bot(acme)

    assert await service.fetchval(f"SELECT current_setting('{TENANT_SETTING}', true)") is None
    assert await service.fetchval(COUNT) == 0
    async with service.transaction():
        await set_tenant(service, acme)
        assert await service.fetchval(COUNT) == 1
    assert await service.fetchval(f"SELECT current_setting('{TENANT_SETTING}', true)") == ""  # no longer NULL
    for _ in range(2):
        assert await service.fetchval(COUNT) == 0


async def test_without_nullif_the_second_use_of_a_connection_would_be_an_error(
    service: asyncpg.Connection, acme: UUID
) -> None:
    bare = f"SELECT current_setting('{TENANT_SETTING}', true)::uuid"
    assert await service.fetchval(bare) is None
    async with service.transaction():
        await set_tenant(service, acme)

    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await service.fetchval(bare)
    assert await service.fetchval(f"SELECT {TENANT_EXPRESSION}") is None


async def test_one_prepared_statement_serves_each_tenant_its_own_rows(
    service: asyncpg.Connection, acme: UUID, globex: UUID, add_bot: AddBot
) -> None:
    mine, theirs = await add_bot(acme), await add_bot(globex)
    statement = await service.prepare("SELECT id FROM ibex_core.bots")

    for _ in range(8):  # past the five executions after which a plan is kept
        async with service.transaction():
            await set_tenant(service, acme)
            assert await statement.fetchval() == mine
    async with service.transaction():
        await set_tenant(service, globex)
        assert await statement.fetchval() == theirs
    assert await statement.fetchval() is None


async def test_a_setting_that_is_no_uuid_is_an_error_and_never_a_row(service: asyncpg.Connection) -> None:
    async with service.transaction():
        await set_tenant(service, "nonsense")
        with pytest.raises(asyncpg.InvalidTextRepresentationError):
            await service.fetchval(COUNT)


async def test_the_platforms_login_sees_every_organization(
    toy_database: TestDatabase, acme: UUID, globex: UUID, add_bot: AddBot
) -> None:
    ids = {await add_bot(acme), await add_bot(globex)}
    address = toy_database.cluster.url(toy_database.name, user=PLATFORM_LOGIN)
    connection = await asyncpg.connect(address.render_as_string(hide_password=False))

    assert ids <= {row["id"] for row in await connection.fetch("SELECT id FROM ibex_core.bots")}
    await connection.close()


# -- writing


async def test_a_row_is_written_for_its_own_organization_only(
    service: asyncpg.Connection, acme: UUID, globex: UUID
) -> None:
    insert = "INSERT INTO ibex_core.bots (org_id, slug) VALUES ($1, 'robin')"
    async with service.transaction():
        await set_tenant(service, acme)
        await service.execute(insert, acme)  # the statement is sound
    for tenant, org_id in ((acme, globex), (None, acme)):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            async with service.transaction():
                if tenant is not None:
                    await set_tenant(service, tenant)
                await service.execute(insert, org_id)


async def test_no_row_is_written_without_an_organization(service: asyncpg.Connection, acme: UUID) -> None:
    with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.NotNullViolationError)):
        async with service.transaction():
            await set_tenant(service, acme)
            await service.execute("INSERT INTO ibex_core.bots (org_id, slug) VALUES (NULL, 'robin')")


async def test_another_organizations_rows_are_neither_updated_nor_deleted(
    service: asyncpg.Connection, admin: asyncpg.Connection, acme: UUID, globex: UUID, add_bot: AddBot
) -> None:
    theirs = await add_bot(globex)

    async with service.transaction():
        await set_tenant(service, acme)
        assert await service.execute("UPDATE ibex_core.bots SET rank = 5 WHERE id = $1", theirs) == "UPDATE 0"
        assert await service.execute("DELETE FROM ibex_core.bots WHERE id = $1", theirs) == "DELETE 0"

    assert await admin.fetchval("SELECT rank FROM ibex_core.bots WHERE id = $1", theirs) == 0


@pytest.mark.parametrize("login", [SERVICE_LOGIN, PLATFORM_LOGIN, None])
async def test_org_id_is_immutable_for_everyone(
    toy_database: TestDatabase, acme: UUID, globex: UUID, add_bot: AddBot, login: str | None
) -> None:
    bot_id = await add_bot(acme)
    address = toy_database.cluster.url(toy_database.name, user=login)
    connection = await asyncpg.connect(address.render_as_string(hide_password=False))

    with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"immutable|row-level security"):
        async with connection.transaction():
            await set_tenant(connection, acme)
            await connection.execute("UPDATE ibex_core.bots SET org_id = $1 WHERE id = $2", globex, bot_id)
    await connection.close()


@pytest.mark.parametrize("login", [SERVICE_LOGIN, PLATFORM_LOGIN, None])
async def test_an_append_only_row_is_never_updated(toy_database: TestDatabase, acme: UUID, login: str | None) -> None:
    address = toy_database.cluster.url(toy_database.name, user=login)
    connection = await asyncpg.connect(address.render_as_string(hide_password=False))
    insert = "INSERT INTO ibex_core.entries (org_id, line) VALUES ($1, 'once')"

    with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"append-only|permission denied"):
        async with connection.transaction():
            await set_tenant(connection, acme)
            await connection.execute(insert, acme)
            await connection.execute("UPDATE ibex_core.entries SET line = 'twice' WHERE org_id = $1", acme)
    await connection.close()


async def test_updated_at_is_kept_by_the_database(service: asyncpg.Connection, acme: UUID, add_bot: AddBot) -> None:
    bot_id = await add_bot(acme)
    moments = "SELECT created_at, updated_at FROM ibex_core.bots WHERE id = $1"

    async with service.transaction():
        await set_tenant(service, acme)
        before = await service.fetchrow(moments, bot_id)
        await service.execute("UPDATE ibex_core.bots SET updated_at = '2000-01-01' WHERE id = $1", bot_id)
        after = await service.fetchrow(moments, bot_id)

    assert before is not None
    assert after is not None
    assert after["updated_at"] > before["updated_at"]
    assert after["created_at"] == before["created_at"]


async def test_a_foreign_key_does_not_reach_another_organization(
    service: asyncpg.Connection, admin: asyncpg.Connection, acme: UUID, globex: UUID, add_bot: AddBot
) -> None:
    theirs = await add_bot(globex)

    with pytest.raises(asyncpg.ForeignKeyViolationError):
        async with service.transaction():
            await set_tenant(service, acme)
            await service.execute(
                "INSERT INTO ibex_core.notes (org_id, bot_id, number) VALUES ($1, $2, 1)", acme, theirs
            )
    assert await admin.fetchval(f"{COUNT} WHERE id = $1", theirs) == 1


# -- the floor, the grants, the catalog


async def test_the_floor_holds_when_a_second_policy_would_open_the_table(own_database: TestDatabase) -> None:
    cluster = own_database.cluster
    admin = await asyncpg.connect(cluster.url(own_database.name).render_as_string(hide_password=False))
    service = await asyncpg.connect(
        cluster.url(own_database.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
    )
    orgs = [uuid4(), uuid4()]
    await admin.executemany("INSERT INTO ibex_core.organizations (id, name) VALUES ($1, 'x')", [(o,) for o in orgs])
    await admin.executemany("INSERT INTO ibex_core.bots (org_id, slug) VALUES ($1, 'robin')", [(o,) for o in orgs])

    async def seen() -> int:
        async with service.transaction():
            await set_tenant(service, orgs[0])
            found = await service.fetchval(COUNT)
            assert isinstance(found, int)
            return found

    await admin.execute("CREATE POLICY mistake ON ibex_core.bots FOR ALL TO PUBLIC USING (true) WITH CHECK (true)")
    with_floor = await seen()
    await admin.execute("DROP POLICY bots_floor ON ibex_core.bots")
    without_floor = await seen()
    await service.close()
    await admin.close()

    assert without_floor == 2  # the leak that the floor closes
    assert with_floor == 1


async def test_grants_are_what_each_kind_of_table_needs_and_nothing_more(admin: asyncpg.Connection) -> None:
    granted = await admin.fetch(
        """
        SELECT table_name, grantee, array_agg(privilege_type::text ORDER BY privilege_type) AS verbs
        FROM information_schema.role_table_grants
        WHERE table_schema = 'ibex_core' AND table_name = ANY($1) AND grantee IN ($2, $3, 'PUBLIC')
        GROUP BY 1, 2
        """,
        [table.name for table in tenant_tables(ToyBase.metadata)],
        APP_ROLE,
        PLATFORM_ROLE,
    )

    every, append = ["DELETE", "INSERT", "SELECT", "UPDATE"], ["INSERT", "SELECT"]
    assert {(row["table_name"], row["grantee"]): row["verbs"] for row in granted} == {
        (table, role): append if table == "entries" else every
        for table in ("organizations", "bots", "notes", "entries")
        for role in (APP_ROLE, PLATFORM_ROLE)
    }


async def test_every_tenant_table_has_its_policies_forced_and_its_trigger(admin: asyncpg.Connection) -> None:
    names = sorted(table.name for table in tenant_tables(ToyBase.metadata))
    found = await admin.fetch(
        """
        SELECT relname AS name, relrowsecurity AND relforcerowsecurity AS forced,
               (SELECT array_agg(polname::text ORDER BY polname) FROM pg_policy WHERE polrelid = c.oid) AS policies,
               (SELECT count(*) FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal) AS triggers
        FROM pg_class c WHERE relnamespace = 'ibex_core'::regnamespace AND relname = ANY($1) ORDER BY 1
        """,
        names,
    )

    assert [row["name"] for row in found] == names
    for row in found:
        assert row["forced"]
        assert row["policies"] == [f"{row['name']}_{kind}" for kind in ("floor", "platform", "tenant")]
        assert row["triggers"] == 1


async def test_no_policy_calls_a_function_that_a_plan_could_fold(admin: asyncpg.Connection) -> None:
    called = await admin.fetch("SELECT provolatile FROM pg_proc WHERE proname = 'current_setting'")

    assert {row["provolatile"] for row in called} == {b"s"}  # STABLE
    assert TENANT_EXPRESSION.count("(") == 2  # NULLIF and current_setting, bare and inline


async def test_the_roles_may_not_log_in_nor_see_past_policies(admin: asyncpg.Connection) -> None:
    found = await admin.fetch(
        "SELECT rolname, rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb AS may "
        "FROM pg_roles WHERE rolname = ANY($1)",
        list(ROLES),
    )

    assert {row["rolname"]: row["may"] for row in found} == dict.fromkeys(ROLES, False)


def test_tables_come_parents_first_and_those_without_tenants_not_at_all() -> None:
    names = [table.name for table in tenant_tables(ToyBase.metadata)]

    assert names[0] == "organizations"
    assert names.index("bots") < names.index("notes")


def test_the_statements_of_a_table_say_its_column_and_its_kind() -> None:
    plain, appended, root = (
        "\n".join(secure("things")),
        "\n".join(secure("things", append_only=True)),
        "\n".join(secure("things", tenant_column="id")),
    )

    assert f"org_id = {TENANT_EXPRESSION}" in plain
    assert "AS RESTRICTIVE" in plain
    assert "GRANT SELECT, INSERT ON" in appended
    assert "refuse_update" in appended
    assert f"(id = {TENANT_EXPRESSION})" in root
    assert set(TRIGGER_FUNCTIONS) >= {"touch", "keep_org", "touch_and_keep_org", "refuse_update"}
