"""What the function behind lexical search may not do: show, or count, another tenant's rows."""

from uuid import UUID

import asyncpg
import pytest
from homes import Home, neighbour_of
from sqlalchemy import text

from ibex_db_core.database import Database
from ibex_db_core.errors import AccessDeniedError
from ibex_db_memory import MemoryRepository

CALL = "SELECT memory_id, score FROM ibex_core.memories_bm25(:words, NULL, 100, 5, 0.6, 0.3)"
FUNCTION = "ibex_core.memories_bm25(text, uuid[], bigint, float8, float8, float8)"


async def fill(database: Database, home: Home, *contents: str) -> None:
    async with database.tenant(home.org_id) as session:
        await MemoryRepository(session).remember_many(
            {"agent_id": home.agent_id, "content": content, "category": "factual"} for content in contents
        )


async def scores(database: Database, home: Home, words: str) -> list[tuple[UUID, float]]:
    async with database.tenant(home.org_id) as session:
        hits = await MemoryRepository(session).search(text=words, limit=1000, exact=True)
        return [(hit.memory.id, hit.score) for hit in hits]


async def test_rule_20_another_tenants_rows_are_neither_found_nor_counted(
    ibex_db: Database, home: Home, other_home: Home, owner: "asyncpg.Connection"
) -> None:
    """Equal to the last bit, before and after the other tenant uses the words thousands of times."""
    await fill(
        ibex_db, home, *(f"Tea and item {n} by the window" for n in range(40)), "Coffee.", "Green tea, tea again."
    )
    before = await scores(ibex_db, home, "tea window coffee")

    await fill(ibex_db, other_home, *(f"Tea tea coffee window {n}" for n in range(4000)))
    await owner.execute("ANALYZE ibex_core.memories")

    assert await scores(ibex_db, home, "tea window coffee") == before
    assert len(before) == 42
    assert len(await scores(ibex_db, other_home, "tea")) == 1000


async def entries_read(database: Database, home: Home, owner: "asyncpg.Connection", words: str) -> tuple[int, int]:
    """Return how many hits a search has, and how many entries it read in the index of words."""
    query = (
        "SELECT sum(idx_tup_read)::int FROM pg_stat_user_indexes WHERE indexrelname LIKE 'memories\\_words\\_idx\\_p%'"
    )
    before = await owner.fetchval(query)
    async with database.tenant(home.org_id) as session:
        hits = await MemoryRepository(session).search(text=words, limit=1000)
        await session.execute(text("SELECT pg_stat_force_next_flush()"))
    return len(hits), await owner.fetchval(query) - before


async def test_what_neighbours_in_a_partition_say_is_not_even_visited(
    ibex_db: Database, home: Home, owner: "asyncpg.Connection"
) -> None:
    """The time of a search tells nothing of them: it reads the entries that it would read without them."""
    neighbour = await neighbour_of(ibex_db, home, owner)
    await fill(ibex_db, home, "Tea at noon.", "Coffee.")
    await fill(ibex_db, neighbour, *(f"Tea, tea and biscuits {n}." for n in range(900)))
    await owner.execute("ANALYZE ibex_core.memories")

    assert await entries_read(ibex_db, neighbour, owner, "tea biscuits") == (900, 1800)
    assert await entries_read(ibex_db, home, owner, "tea biscuits") == (1, 1)
    assert await entries_read(ibex_db, home, owner, "nobody") == (0, 0)


async def test_no_tenant_no_rows(ibex_db: Database, home: Home, owner: "asyncpg.Connection") -> None:
    await fill(ibex_db, home, "Tea.")
    call = CALL.replace(":words", "'tea'")

    assert await owner.fetch(call) == []
    async with owner.transaction():
        await owner.execute("SET LOCAL app.current_org_id = ''")
        assert await owner.fetch(call) == []
    async with owner.transaction():
        await owner.execute(f"SET LOCAL app.current_org_id = '{home.org_id}'")
        assert len(await owner.fetch(call)) == 1


@pytest.mark.parametrize("forged", ["5b1a7f0e-2f5e-4c0e-9d57-0d1f3c2b4a69", "' OR true --", "*"])
async def test_a_forged_setting_shows_what_the_policies_show(ibex_db: Database, home: Home, forged: str) -> None:
    """Nothing for an organization that is not there; for text that is no id, the policies' own error."""
    await fill(ibex_db, home, "Tea.")
    outcomes: list[object] = []
    for statement in (CALL, "SELECT id, 1 FROM ibex_core.memories WHERE content ILIKE '%' || :words || '%'"):
        async with ibex_db.tenant(home.org_id) as session:
            await session.execute(text("SELECT set_config('app.current_org_id', :forged, true)"), {"forged": forged})
            try:
                outcomes.append((await session.execute(text(statement), {"words": "tea"})).all())
            except Exception as exc:  # noqa: BLE001 - which one is the question
                outcomes.append(type(exc))
                await session.rollback()

    assert outcomes[0] == outcomes[1]
    assert outcomes[0] == [] or isinstance(outcomes[0], type)


async def test_agents_of_another_tenant_add_nothing(ibex_db: Database, home: Home, other_home: Home) -> None:
    await fill(ibex_db, home, "Tea.")
    await fill(ibex_db, other_home, "Tea.")
    async with ibex_db.tenant(home.org_id) as session:
        hits = await MemoryRepository(session).search(text="tea", agent_id=other_home.agent_id)

    assert len(hits) == 0


async def test_rule_20_services_are_no_members_of_the_search_role(owner: "asyncpg.Connection") -> None:
    members = await owner.fetch(
        "SELECT member::regrole::text AS member FROM pg_auth_members WHERE roleid = 'ibex_search'::regrole"
    )
    may = await owner.fetchrow(
        "SELECT rolcanlogin, rolsuper, rolbypassrls, pg_has_role('ibex_app', 'ibex_search', 'MEMBER') "
        "OR pg_has_role('ibex_service', 'ibex_search', 'MEMBER') FROM pg_roles WHERE rolname = 'ibex_search'"
    )

    # The owner may step into it, to hand the function over; nobody who serves requests may.
    assert [row["member"] for row in members] == ["ibex_owner"]
    assert may is not None
    assert tuple(may) == (False, False, False, False)


async def test_the_function_is_its_owners_closed_and_pinned(owner: "asyncpg.Connection") -> None:
    row = await owner.fetchrow(
        "SELECT proowner::regrole::text AS owner, prosecdef, provolatile, proconfig, "
        "has_function_privilege('ibex_app', oid, 'EXECUTE') AS app, "
        "EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0) AS public, "
        "has_function_privilege('ibex_platform', oid, 'EXECUTE') AS platform "
        f"FROM pg_proc WHERE oid = '{FUNCTION}'::regprocedure"
    )

    assert row is not None
    assert (row["owner"], row["prosecdef"], row["provolatile"]) == ("ibex_search", True, b"s")
    assert "search_path=pg_catalog, pg_temp" in row["proconfig"]
    assert (row["app"], row["public"], row["platform"]) == (True, False, False)


async def test_the_search_role_reads_five_columns_and_makes_nothing(owner: "asyncpg.Connection") -> None:
    columns = await owner.fetchval(
        "SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute "
        "WHERE attrelid = 'ibex_core.memories'::regclass AND attnum > 0 AND NOT attisdropped "
        "AND has_column_privilege('ibex_search', attrelid, attnum, 'SELECT')"
    )
    tables = await owner.fetch(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'ibex_core'::regnamespace AND c.relkind IN ('r', 'p') "
        "AND has_table_privilege('ibex_search', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')"
    )
    create = await owner.fetchval("SELECT has_schema_privilege('ibex_search', 'ibex_core', 'CREATE')")

    assert columns == ["agent_id", "content", "id", "org_id", "search_vector"]
    assert tables == []
    assert create is False


async def test_a_platform_login_may_not_call_it(ibex_db: Database) -> None:
    async with ibex_db.platform(reason="test") as session:
        with pytest.raises(AccessDeniedError):
            await session.execute(text(CALL), {"words": "tea"})
        await session.rollback()
