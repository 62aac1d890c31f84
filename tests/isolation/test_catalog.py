"""Rules 10 to 19 and 23, read from the live catalog: a table that is added next year is held to them at once."""

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest
from two import Two

from ibex_db import Base
from ibex_db_core.policies import tenant_predicate
from ibex_db_core.provisioning import SERVICE_LOGIN
from ibex_db_core.testing import TestDatabase


@pytest.fixture
async def owner(shared: TestDatabase) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection, which sees every row and the whole catalog."""
    connection = await asyncpg.connect(shared.cluster.url(shared.name).render_as_string(hide_password=False))
    yield connection
    await connection.close()


async def _tenant_tables(owner: asyncpg.Connection) -> dict[str, str]:
    """Return every table that carries an organization, and the column that names it; partitions apart."""
    rows = await owner.fetch(
        """
        SELECT c.relname, CASE c.relname WHEN 'organizations' THEN 'id' ELSE 'org_id' END AS org
        FROM pg_class c WHERE c.relnamespace = 'ibex_core'::regnamespace AND c.relkind IN ('r', 'p')
        AND NOT c.relispartition AND (c.relname = 'organizations' OR EXISTS (
            SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped))
        """
    )
    return {row["relname"]: row["org"] for row in rows}


async def test_every_tenant_table_of_the_models_is_looked_at_and_has_rows_of_two_organizations(
    owner: asyncpg.Connection,
) -> None:
    """A catalog test over empty tables would prove nothing."""
    tables = await _tenant_tables(owner)

    assert set(tables) == {name.removeprefix("ibex_core.") for name in Base.metadata.tables} - _PLATFORM_ONLY
    for table, column in tables.items():
        assert await owner.fetchval(f"SELECT count(DISTINCT {column}) FROM ibex_core.{table}") == 2, table


async def test_rule_10_each_table_has_one_permissive_policy_and_one_floor_for_the_app_role(
    owner: asyncpg.Connection,
) -> None:
    for table, column in (await _tenant_tables(owner)).items():
        policies = await owner.fetch(
            "SELECT permissive, cmd, qual, with_check FROM pg_policies "
            "WHERE schemaname = 'ibex_core' AND tablename = $1 AND 'ibex_app' = ANY(roles)",
            table,
        )
        expected = await _deparsed(owner, column)

        assert sorted(row["permissive"] for row in policies) == ["PERMISSIVE", "RESTRICTIVE"], table
        assert {row["cmd"] for row in policies} == {"ALL"}
        assert {row["qual"] for row in policies} == {row["with_check"] for row in policies} == {expected}, table


async def _deparsed(owner: asyncpg.Connection, column: str) -> str:
    """Return the predicate as the catalog spells it, by asking the catalog."""
    transaction = owner.transaction()
    await transaction.start()
    await owner.execute(f"CREATE TABLE ibex_core.spelling ({column} uuid)")
    await owner.execute(f"CREATE POLICY p ON ibex_core.spelling USING ({tenant_predicate(column)})")
    found = await owner.fetchval("SELECT qual FROM pg_policies WHERE tablename = 'spelling'")
    await transaction.rollback()
    return str(found)


async def test_rule_10_no_policy_is_for_everybody(owner: asyncpg.Connection) -> None:
    found = await owner.fetch("SELECT tablename, policyname FROM pg_policies WHERE roles && '{public}'::name[]")

    assert found == []


async def test_rule_11_no_function_in_a_policy_could_be_folded_into_a_plan(owner: asyncpg.Connection) -> None:
    immutable = await owner.fetch(
        """
        SELECT p.polname, f.proname FROM pg_policy p
        JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
            AND d.refclassid = 'pg_proc'::regclass
        JOIN pg_proc f ON f.oid = d.refobjid WHERE f.provolatile = 'i'
        """
    )
    stable = await owner.fetchval("SELECT provolatile FROM pg_proc WHERE proname = 'current_setting' AND pronargs = 2")

    assert immutable == []
    assert stable == b"s"


async def test_rule_11_a_prepared_statement_serves_the_second_tenant_its_own_rows_after_eight_of_the_first(
    shared: TestDatabase, two: Two
) -> None:
    address = shared.cluster.url(shared.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
    connection = await asyncpg.connect(address)
    statement = await connection.prepare("SELECT DISTINCT org_id FROM ibex_core.memories")

    async def seen(org_id: UUID) -> list[UUID]:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL app.current_org_id = '{org_id}'")
            return [row["org_id"] for row in await statement.fetch()]

    assert [await seen(two.a.org_id) for _ in range(8)] == [[two.a.org_id]] * 8
    assert await seen(two.b.org_id) == [two.b.org_id]
    await connection.close()


async def test_rule_12_row_security_is_enabled_and_forced_on_every_table_and_partition(
    owner: asyncpg.Connection,
) -> None:
    rows = await owner.fetch(
        """
        SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity AS closed FROM pg_class c
        WHERE c.relnamespace = 'ibex_core'::regnamespace AND c.relkind IN ('r', 'p')
        AND (c.relname = 'organizations' OR EXISTS (
            SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'org_id'))
        """
    )

    assert len(rows) >= 12 + 16  # the partitions of memories, too
    assert [row["relname"] for row in rows if not row["closed"]] == []


async def test_rule_13_the_organization_can_be_neither_null_nor_changed(owner: asyncpg.Connection) -> None:
    for table in (await _tenant_tables(owner)).keys() - {"organizations"}:
        nullable = await owner.fetchval(
            "SELECT NOT attnotnull FROM pg_attribute WHERE attrelid = $1::text::regclass AND attname = 'org_id'",
            f"ibex_core.{table}",
        )
        assert nullable is False, table

        # Even the superuser, whom no policy binds, is refused: by the trigger.
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match=r"immutable|append-only"):
            await owner.execute(f"UPDATE ibex_core.{table} SET org_id = gen_random_uuid()")


async def test_rule_14_every_foreign_key_between_tenant_tables_carries_the_organization_on_both_sides(
    owner: asyncpg.Connection,
) -> None:
    rows = await owner.fetch(
        """
        SELECT k.conname,
            (SELECT array_agg(a.attname::text ORDER BY n) FROM unnest(k.conkey) WITH ORDINALITY AS u (num, n)
                JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num) AS here,
            (SELECT array_agg(a.attname::text ORDER BY n) FROM unnest(k.confkey) WITH ORDINALITY AS u (num, n)
                JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.num) AS there
        FROM pg_constraint k WHERE k.contype = 'f' AND k.connamespace = 'ibex_core'::regnamespace
            AND k.confrelid <> 'ibex_core.organizations'::regclass
        """
    )

    assert len(rows) > 15
    for row in rows:
        assert row["here"][row["there"].index("org_id")] == "org_id", row["conname"]


async def test_rule_14_the_organization_itself_is_pointed_at_by_org_id_alone(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        """
        SELECT k.conname, array_agg(a.attname::text) AS here FROM pg_constraint k
        JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)
        WHERE k.contype = 'f' AND k.confrelid = 'ibex_core.organizations'::regclass GROUP BY k.oid, 1
        """
    )

    assert rows
    assert {tuple(row["here"]) for row in rows} == {("org_id",)}


async def test_rule_15_every_unique_key_of_a_tenant_table_leads_with_the_organization(
    owner: asyncpg.Connection,
) -> None:
    rows = await owner.fetch(
        """
        SELECT t.relname, i.relname AS index, a.attname FROM pg_index x
        JOIN pg_class t ON t.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
        LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = x.indkey[0]
        WHERE x.indisunique AND t.relnamespace = 'ibex_core'::regnamespace
            AND t.relname NOT IN ('alembic_version', 'signing_keys') AND t.relname <> ALL ($1::text[])
        """,
        list(_PLATFORM_ONLY),
    )

    assert len(rows) > 15
    others = {
        row["index"] for row in rows if row["attname"] != ("id" if row["relname"] == "organizations" else "org_id")
    }
    # Names in URLs are unique over all organizations; the next test proves that no tenant can ask this key.
    assert others == {"organizations_slug_key"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ibex_core.organizations SET slug = '{slug}'",
        "UPDATE ibex_core.organizations SET name = 'Other', slug = '{slug}' WHERE id = '{a}'",
        (
            "INSERT INTO ibex_core.organizations (id, name, slug) VALUES ('{a}', 'Other', '{slug}') "
            "ON CONFLICT (slug) DO NOTHING"
        ),
        (
            "INSERT INTO ibex_core.organizations (id, name, slug) VALUES ('{a}', 'Other', '{slug}') "
            "ON CONFLICT (slug) DO UPDATE SET name = 'Other'"
        ),
    ],
)
async def test_rule_15_the_one_key_across_organizations_tells_a_tenant_nothing(
    own: TestDatabase, two: Two, statement: str
) -> None:
    async def answer(slug: str) -> tuple[str, str]:
        service = await asyncpg.connect(
            own.cluster.url(own.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
        )
        try:
            async with service.transaction():
                await service.execute(f"SET LOCAL app.current_org_id = '{two.a.org_id}'")
                done = await service.execute(statement.format(slug=slug, a=two.a.org_id))
        except asyncpg.PostgresError as exc:
            return exc.sqlstate or "", str(exc)
        finally:
            await service.close()
        return "", done

    taken, free = await answer("beta"), await answer("nobodys")

    assert taken == free
    assert taken[0] == "42501"

    # Without the guard the same statement tells the two apart.
    owner = await asyncpg.connect(own.cluster.url(own.name).render_as_string(hide_password=False))
    await owner.execute("DROP TRIGGER organizations_keep_slug ON ibex_core.organizations")
    await owner.close()
    assert await answer("beta") != await answer("nobodys")


async def test_rule_16_there_is_no_view_and_every_definer_function_is_known(owner: asyncpg.Connection) -> None:
    views = await owner.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'ibex_core'::regnamespace AND relkind IN ('v', 'm')"
    )
    definers = await owner.fetch(
        "SELECT proname::text AS name, proconfig, proowner::regrole::text AS owner, "
        "has_function_privilege('public', oid, 'EXECUTE') AS public "
        "FROM pg_proc WHERE pronamespace = 'ibex_core'::regnamespace AND prosecdef"
    )

    assert views == []
    for row in definers:
        # signed_org() reads one table, the signing keys, which is the owner's alone.
        assert row["owner"] == ("ibex_owner" if row["name"] == "signed_org" else "ibex_search"), row["name"]
        assert any(setting.startswith("search_path=") for setting in row["proconfig"] or ()), row["name"]
        assert not row["public"], row["name"]


async def test_rule_17_the_app_role_may_do_exactly_what_its_tables_need(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        "SELECT table_name, array_agg(privilege_type::text ORDER BY privilege_type) AS may "
        "FROM information_schema.role_table_grants "
        "WHERE table_schema = 'ibex_core' AND grantee = 'ibex_app' GROUP BY 1"
    )
    granted = {row["table_name"]: set(row["may"]) for row in rows}
    tables = await _tenant_tables(owner)

    for table in tables:
        append_only = Base.metadata.tables[f"ibex_core.{table}"].info["append_only"]
        wanted = {"SELECT", "INSERT"} if append_only else {"SELECT", "INSERT", "UPDATE", "DELETE"}
        if table == "checkpoints":  # pruned: a trigger keeps each session's newest (decision 0033)
            wanted.add("DELETE")
        assert granted[table] == wanted, table
    assert granted.keys() <= tables.keys()  # partitions have none of their own


async def test_rule_17_nothing_is_granted_to_everybody(owner: asyncpg.Connection) -> None:
    tables = await owner.fetch(
        "SELECT table_name FROM information_schema.role_table_grants "
        "WHERE table_schema = 'ibex_core' AND grantee = 'PUBLIC'"
    )
    usage = await owner.fetchval("SELECT has_schema_privilege('public', 'ibex_core', 'USAGE, CREATE')")

    assert (tables, usage) == ([], False)


@pytest.mark.parametrize("role", ["ibex_owner", "ibex_app", "ibex_platform", "ibex_search"])
async def test_rule_18_no_role_of_ours_logs_in_or_passes_by_the_policies(owner: asyncpg.Connection, role: str) -> None:
    found = await owner.fetchrow(
        "SELECT rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication "
        "FROM pg_roles WHERE rolname = $1",
        role,
    )

    assert found is not None
    assert not any(found.values())


async def test_rule_18_the_services_login_is_a_member_of_the_app_role_and_of_nothing_else(
    owner: asyncpg.Connection,
) -> None:
    member_of = await owner.fetch(
        "SELECT roleid::regrole::text AS role FROM pg_auth_members WHERE member = $1::text::regrole", SERVICE_LOGIN
    )
    app_member_of = await owner.fetch("SELECT roleid FROM pg_auth_members WHERE member = 'ibex_app'::regrole")

    assert [row["role"] for row in member_of] == ["ibex_app"]
    assert app_member_of == []


async def test_rule_18_row_security_is_active_for_the_service_on_every_table(
    shared: TestDatabase, owner: asyncpg.Connection
) -> None:
    address = shared.cluster.url(shared.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
    service = await asyncpg.connect(address)

    for table in await _tenant_tables(owner):
        assert await service.fetchval("SELECT row_security_active($1::text::regclass)", f"ibex_core.{table}"), table

    await service.close()


async def test_rule_19_a_data_migration_by_the_forced_owner_is_an_error_and_not_silence(
    own: TestDatabase,
) -> None:
    connection = await asyncpg.connect(own.cluster.url(own.name).render_as_string(hide_password=False))
    await connection.execute("SET ROLE ibex_owner")
    silent = await connection.execute("UPDATE ibex_core.agents SET name = 'Renamed'")

    await connection.execute("SET row_security = off")  # as the migrator does
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await connection.execute("UPDATE ibex_core.agents SET name = 'Renamed'")

    assert silent == "UPDATE 0"
    await connection.close()


async def test_rule_23_copy_is_refused_under_row_security(shared: TestDatabase, two: Two) -> None:
    """So bulk writes are INSERT ... SELECT FROM unnest(...), which the policies check row by row."""
    service = await asyncpg.connect(
        shared.cluster.url(shared.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
    )
    tag = (two.a.org_id, two.a.memory_id, "copied")
    planted = (two.b.org_id, two.b.memory_id, "planted")
    bulk = (
        "INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag) "
        "SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[])"
    )
    columns = ["org_id", "memory_id", "tag"]
    transaction = service.transaction()
    await transaction.start()
    await service.execute(f"SET LOCAL app.current_org_id = '{two.a.org_id}'")

    with pytest.raises(asyncpg.FeatureNotSupportedError, match="row-level security"):
        async with service.transaction():
            await service.copy_records_to_table("memory_tags", schema_name="ibex_core", columns=columns, records=[tag])
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        async with service.transaction():
            await service.execute(bulk, *([value] for value in planted))
    done = await service.execute(bulk, *([value] for value in tag))

    await transaction.rollback()
    await service.close()
    assert done == "INSERT 0 1"


# Tables that belong to no tenant: only the platform role reads them.
_PLATFORM_ONLY = {"organization_erasures"}
