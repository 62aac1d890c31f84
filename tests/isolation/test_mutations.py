"""A guard is worth what its test notices: each is taken away in turn, and the leak must show.

Everything happens in a database of the test's own, which is thrown away.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from two import ONE, Two

from ibex_db import AgentRepository, IbexError
from ibex_db_core import tenant
from ibex_db_core.connection import FoldedConnection
from ibex_db_core.policies import tenant_predicate
from ibex_db_core.provisioning import SERVICE_LOGIN
from ibex_db_core.testing import TestDatabase
from ibex_db_memory.demo.isolation import prove_isolation

Probe = Callable[[TestDatabase, Two], Awaitable[bool]]


@dataclass(frozen=True)
class Guard:
    """One guard: what it is, the SQL that takes it away, and a probe that is True while it holds."""

    name: str
    removal: Sequence[str]
    probe: Probe


async def _as_service(own: TestDatabase, org_id: UUID | None, sql: str, *values: object) -> Sequence[asyncpg.Record]:
    """Run SQL as a service's login, in a transaction that is rolled back."""
    connection = await asyncpg.connect(
        own.cluster.url(own.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
    )
    try:
        transaction = connection.transaction()
        await transaction.start()
        if org_id is not None:
            await connection.execute(f"SET LOCAL app.current_org_id = '{org_id}'")
        return await connection.fetch(sql, *values)
    finally:
        await connection.close()


async def _the_proof_holds(own: TestDatabase, two: Two) -> bool:
    async with own.connect() as db:
        return all(claim.holds for claim in await prove_isolation(db, two.a.org_id, two.b.org_id))


def _a_sees_only_a(table: str, column: str = "org_id") -> Probe:
    async def probe(own: TestDatabase, two: Two) -> bool:
        rows = await _as_service(own, two.a.org_id, f"SELECT {column} AS org FROM {table}")
        return {row["org"] for row in rows} == {two.a.org_id}

    return probe


async def _the_owners_member_sees_nothing(own: TestDatabase, _two: Two) -> bool:
    """A login that migrates: a member of the owner role, no superuser, without BYPASSRLS."""
    connection = await asyncpg.connect(own.cluster.url(own.name).render_as_string(hide_password=False))
    try:
        # Rolled back when the connection closes: roles are the whole cluster's.
        await connection.transaction().start()
        name = f"plain_member_{own.name[-12:]}"
        await connection.execute(f"CREATE ROLE {name} NOSUPERUSER NOBYPASSRLS IN ROLE ibex_owner")
        await connection.execute(f"SET LOCAL ROLE {name}")
        return int(await connection.fetchval("SELECT count(*) FROM ibex_core.agents")) == 0
    finally:
        await connection.close()


async def _a_revoked_token_stays_revoked(own: TestDatabase, two: Two) -> bool:
    revived = "UPDATE ibex_core.tokens SET revoked_at = NULL, revoked_by = NULL, revoke_reason = NULL"
    connection = await asyncpg.connect(
        own.cluster.url(own.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
    )
    try:
        await connection.transaction().start()
        await connection.execute(f"SET LOCAL app.current_org_id = '{two.a.org_id}'")
        await connection.execute("UPDATE ibex_core.tokens SET revoked_at = now()")
        await connection.execute(revived)
    except asyncpg.CheckViolationError:
        return True
    finally:
        await connection.close()
    return False


async def _no_tenant_is_no_error_twice(own: TestDatabase, two: Two) -> bool:
    connection = await asyncpg.connect(
        own.cluster.url(own.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
    )
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL app.current_org_id = '{two.a.org_id}'")
        await connection.fetch("SELECT org_id FROM ibex_core.agents")
    except asyncpg.InvalidTextRepresentationError:
        return False
    finally:
        await connection.close()
    return True


def _refused(statement: Callable[[Two], str]) -> Probe:
    """A's statement is refused by the server."""

    async def probe(own: TestDatabase, two: Two) -> bool:
        try:
            await _as_service(own, two.a.org_id, statement(two))
        except asyncpg.PostgresError:
            return True
        return False

    return probe


async def _a_row_keeps_its_organization(own: TestDatabase, two: Two) -> bool:
    async with own.connect() as db:
        try:
            async with db.platform(reason="isolation tests: try to move a row") as session:
                await session.execute(
                    text("UPDATE ibex_core.users SET org_id = :b, email = 'moved@example.com' WHERE org_id = :a"),
                    {"a": two.a.org_id, "b": two.b.org_id},
                )
                await session.rollback()
        except IbexError:
            return True
    return False


async def _a_second_policy_stays_shut(own: TestDatabase, two: Two) -> bool:
    owner = await asyncpg.connect(own.cluster.url(own.name).render_as_string(hide_password=False))
    await owner.execute("DROP POLICY IF EXISTS mistake ON ibex_core.agents")
    await owner.execute("CREATE POLICY mistake ON ibex_core.agents TO ibex_app USING (true)")
    await owner.close()
    return await _a_sees_only_a("ibex_core.agents")(own, two)


async def _eight_of_a_then_b(own: TestDatabase, two: Two) -> bool:
    connection = await asyncpg.connect(
        own.cluster.url(own.name, user=SERVICE_LOGIN).render_as_string(hide_password=False)
    )
    statement = await connection.prepare("SELECT DISTINCT org_id FROM ibex_core.agents")
    seen: list[set[UUID]] = []
    for org_id in [two.a.org_id] * 8 + [two.b.org_id]:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL app.current_org_id = '{org_id}'")
            seen.append({row["org_id"] for row in await statement.fetch()})
    await connection.close()
    return seen == [{two.a.org_id}] * 8 + [{two.b.org_id}]


_OPEN = "(SELECT true)"
_FOLDED = (
    (
        "CREATE FUNCTION ibex_core.me() RETURNS uuid LANGUAGE sql IMMUTABLE AS "
        "$$ SELECT NULLIF(current_setting('app.current_org_id', true), '')::uuid $$"
    ),
    "GRANT EXECUTE ON FUNCTION ibex_core.me() TO ibex_app",
    "ALTER POLICY agents_tenant ON ibex_core.agents USING (org_id = ibex_core.me())",
    "ALTER POLICY agents_floor ON ibex_core.agents USING (org_id = ibex_core.me())",
)
GUARDS = [
    Guard(
        "row security on the table",
        ["ALTER TABLE ibex_core.memories DISABLE ROW LEVEL SECURITY"],
        _the_proof_holds,
    ),
    Guard(
        "row security on a small table",
        ["ALTER TABLE ibex_core.tokens DISABLE ROW LEVEL SECURITY"],
        _a_sees_only_a("ibex_core.tokens"),
    ),
    Guard(
        "FORCE",
        ["ALTER TABLE ibex_core.agents NO FORCE ROW LEVEL SECURITY"],
        _the_owners_member_sees_nothing,
    ),
    Guard(
        "both policies' predicate",
        [f"ALTER POLICY memories_{name} ON ibex_core.memories USING ({_OPEN})" for name in ("tenant", "floor")],
        _the_proof_holds,
    ),
    Guard(
        "WITH CHECK",
        [
            f"ALTER POLICY memory_tags_{name} ON ibex_core.memory_tags WITH CHECK ({_OPEN})"
            for name in ("tenant", "floor")
        ],
        _refused(
            lambda two: (
                "INSERT INTO ibex_core.memory_tags (org_id, memory_id, tag) "
                f"VALUES ('{two.b.org_id}', '{two.b.memory_id}', 'planted')"
            )
        ),
    ),
    Guard("the restrictive floor", ["DROP POLICY agents_floor ON ibex_core.agents"], _a_second_policy_stays_shut),
    Guard(
        "the policy on organizations' own id",
        [
            f"ALTER POLICY organizations_{name} ON ibex_core.organizations USING ({_OPEN})"
            for name in ("tenant", "floor")
        ],
        _a_sees_only_a("ibex_core.organizations", "id"),
    ),
    Guard(
        "NULLIF",
        [
            f"ALTER POLICY agents_{name} ON ibex_core.agents "
            "USING (org_id = current_setting('app.current_org_id', true)::uuid)"
            for name in ("tenant", "floor")
        ],
        _no_tenant_is_no_error_twice,
    ),
    Guard("STABLE, not IMMUTABLE", _FOLDED, _eight_of_a_then_b),
    Guard(
        "the composite key",
        [
            "ALTER TABLE ibex_core.sessions DROP CONSTRAINT sessions_org_id_agent_id_fkey",
            "CREATE UNIQUE INDEX mutant ON ibex_core.agents (id)",
            "ALTER TABLE ibex_core.sessions ADD FOREIGN KEY (agent_id) REFERENCES ibex_core.agents (id)",
        ],
        _refused(
            lambda two: (
                f"INSERT INTO ibex_core.sessions (org_id, agent_id) VALUES ('{two.a.org_id}', '{two.b.agent_id}')"
            )
        ),
    ),
    Guard(
        "the trigger that keeps org_id",
        [
            "ALTER TABLE ibex_core.users DISABLE TRIGGER users_before_update",
            "ALTER TABLE ibex_core.agents DROP CONSTRAINT agents_org_id_created_by_fkey",
            "ALTER TABLE ibex_core.directives DROP CONSTRAINT directives_org_id_created_by_fkey",
            "ALTER TABLE ibex_core.tokens DROP CONSTRAINT tokens_org_id_user_id_fkey",
        ],
        _a_row_keeps_its_organization,
    ),
    Guard(
        "the trigger that keeps slugs the platform's",
        ["DROP TRIGGER organizations_keep_slug ON ibex_core.organizations"],
        _refused(lambda _: "UPDATE ibex_core.organizations SET slug = 'nobodys'"),
    ),
    Guard(
        "the trigger that keeps tokens revoked",
        ["DROP TRIGGER tokens_stay_revoked ON ibex_core.tokens"],
        _a_revoked_token_stays_revoked,
    ),
    Guard(
        "no grant on a partition",
        [
            "ALTER TABLE ibex_core.memories_p00 DISABLE ROW LEVEL SECURITY",
            "GRANT SELECT ON ibex_core.memories_p00 TO ibex_app",
        ],
        _refused(lambda _: "SELECT * FROM ibex_core.memories_p00"),
    ),
    Guard(
        "no UPDATE on append-only tables",
        [
            "GRANT UPDATE ON ibex_core.memory_versions TO ibex_app",
            "DROP TRIGGER memory_versions_before_update ON ibex_core.memory_versions",
        ],
        _refused(lambda _: "UPDATE ibex_core.memory_versions SET content = 'history, rewritten'"),
    ),
    Guard(
        "no TRUNCATE, which row security does not bind",
        ["GRANT TRUNCATE ON ibex_core.memory_tags TO ibex_app"],
        _refused(lambda _: "TRUNCATE ibex_core.memory_tags"),
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
async def test_without_the_guard_the_leak_shows(own: TestDatabase, two: Two, guard: Guard) -> None:
    assert await guard.probe(own, two), "the guard stands, so the probe must hold"

    owner = await asyncpg.connect(own.cluster.url(own.name).render_as_string(hide_password=False))
    for statement in guard.removal:
        await owner.execute(statement)
    await owner.close()

    assert not await guard.probe(own, two), "the guard is gone, and nobody noticed"


def _nothing(*_: object) -> None:
    """Stand in for a guard that does nothing."""


def _true(_: object) -> bool:
    return True


def _for_the_whole_session(org_id: UUID) -> str:
    return f"SET app.current_org_id = '{org_id}'"


async def _rows_of_a(own: TestDatabase, two: Two) -> int:
    async with own.connect(ONE) as db, db.tenant(two.a.org_id) as session:
        return len((await session.execute(text("SELECT 1 FROM ibex_core.agents"))).all())


async def test_without_the_begin_hook_a_tenant_would_see_nothing(
    own: TestDatabase, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await _rows_of_a(own, two) == 1

    monkeypatch.setattr(FoldedConnection, "arm", _nothing)

    assert await _rows_of_a(own, two) == 0


async def _left_on_the_connection(own: TestDatabase, two: Two) -> int:
    """Count what a transaction without tenant sees on the connection that A used last."""
    async with own.connect(ONE) as db:
        async with db.tenant(two.a.org_id) as session:
            await session.execute(text("SELECT 1"))
        async with db.engine.connect() as connection:
            return len((await connection.execute(text("SELECT 1 FROM ibex_core.agents"))).all())


async def test_with_a_session_level_setting_the_connection_would_stay_a_s(
    own: TestDatabase, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await _left_on_the_connection(own, two) == 0

    monkeypatch.setattr("ibex_db_core.database.set_tenant", _for_the_whole_session)

    assert await _left_on_the_connection(own, two) == 1


async def _after_commit_on_a_plain_session(own: TestDatabase, two: Two) -> int:
    address = own.cluster.url(own.name, user=SERVICE_LOGIN).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(address, pool_size=1)
    async with AsyncSession(engine) as session:
        agents = AgentRepository(session, two.a.org_id)
        await agents.count()
        await session.commit()
        found = await agents.count()
    await engine.dispose()
    return found


async def test_without_the_repositorys_own_guard_a_plain_session_would_see_nothing_after_commit(
    own: TestDatabase, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await _after_commit_on_a_plain_session(own, two) == 1

    monkeypatch.setattr(tenant.Guard, "_after_begin", _nothing)
    monkeypatch.setattr(tenant.Guard, "_holds", _true)

    assert await _after_commit_on_a_plain_session(own, two) == 0


async def test_the_predicate_that_the_mutations_replace_is_the_one_in_use(own: TestDatabase) -> None:
    owner = await asyncpg.connect(own.cluster.url(own.name).render_as_string(hide_password=False))
    found = await owner.fetchval("SELECT qual FROM pg_policies WHERE policyname = 'agents_tenant'")
    await owner.close()

    assert "NULLIF" in found
    assert "current_setting" in found
    assert "NULLIF" in tenant_predicate("org_id")
