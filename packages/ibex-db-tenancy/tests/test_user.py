"""Users."""

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import joinedload

from ibex_db_core.database import Database
from ibex_db_core.errors import ConflictError, InvalidInputError, NotLoadedError, RuleViolationError, TenantMissingError
from ibex_db_core.tenant import ScopedSession
from ibex_db_tenancy import Organization, User, UserRepository, UserRole, UserStatus


async def test_what_is_left_out_is_filled_in(session: ScopedSession, org: Organization) -> None:
    user = await UserRepository(session).add(User(email="Ann@Acme.example", name="Ann"))

    assert user.org_id == org.id
    assert (user.role, user.status, user.preferences) == (UserRole.MEMBER, UserStatus.ACTIVE, {})
    assert (user.email, user.email_lower) == ("Ann@Acme.example", "ann@acme.example")
    assert user.last_login_at is None


async def test_the_database_fills_in_the_same_for_raw_sql(session: ScopedSession, org: Organization) -> None:
    await session.execute(
        text("INSERT INTO ibex_core.users (org_id, email, name) VALUES (:org, 'a@b.example', 'A')"), {"org": org.id}
    )
    raw = (await session.scalars(select(User))).one()

    assert (raw.role, raw.status, raw.preferences) == (UserRole.MEMBER, UserStatus.ACTIVE, {})


@pytest.mark.parametrize("email", ["", "ann", "@b.c", "ann@", "ann@host", "a n@b.c", "a@b@c.d", "x" * 318 + "@b.c", 7])
def test_what_is_no_address_is_refused_before_sql(email: str) -> None:
    with pytest.raises(InvalidInputError, match="email"):
        User(email=email, name="Ann")


@pytest.mark.parametrize("email", ["ann", "ann@host", "a n@b.c"])
async def test_the_database_refuses_what_is_no_address(session: ScopedSession, org: Organization, email: str) -> None:
    with pytest.raises(RuleViolationError) as caught:
        async with session.begin_nested():
            await session.execute(
                text("INSERT INTO ibex_core.users (org_id, email, name) VALUES (:org, :email, 'A')"),
                {"org": org.id, "email": email},
            )

    assert caught.value.constraint == "users_email_format"


async def test_one_address_is_one_live_user_whatever_the_case(session: ScopedSession) -> None:
    users = UserRepository(session)
    await users.add(User(email="ann@acme.example", name="Ann"))

    with pytest.raises(ConflictError) as caught:
        async with session.begin_nested():
            await users.add(User(email="ANN@acme.example", name="Ann again"))

    assert caught.value.constraint == "users_org_id_email_lower_live"


async def test_a_deleted_user_frees_the_address(session: ScopedSession) -> None:
    users = UserRepository(session)
    gone = await users.add(User(email="ann@acme.example", name="Ann"))
    await users.delete(gone.id)

    again = await users.add(User(email="ann@acme.example", name="Ann again"))

    assert await users.by_email("ann@acme.example") is again


async def test_two_organizations_may_share_an_address(
    ibex_db: Database, session: ScopedSession, rival: Organization
) -> None:
    ours = await UserRepository(session).add(User(email="ann@acme.example", name="Ann"))
    async with ibex_db.tenant(rival.id) as other:
        theirs = await UserRepository(other).add(User(email="ann@acme.example", name="Ann"))
        found = await UserRepository(other).by_email("ann@acme.example")

    assert found is theirs
    assert ours.id != theirs.id


async def test_by_email_ignores_case_and_finds_nobody_else(session: ScopedSession) -> None:
    users = UserRepository(session)
    ann = await users.add(User(email="Ann@Acme.example", name="Ann"))

    assert await users.by_email("aNN@acme.EXAMPLE") is ann
    assert await users.by_email("bob@acme.example") is None
    with pytest.raises(InvalidInputError):
        await users.by_email("no address")


async def test_upsert_by_address_changes_the_live_user(session: ScopedSession) -> None:
    users = UserRepository(session)
    ann = await users.add(User(email="ann@acme.example", name="Ann"))

    same = await users.upsert(User(email="ANN@acme.example", name="Anna"), on="users_org_id_email_lower_live")

    assert (same.id, same.name, same.email, same.email_lower) == (ann.id, "Anna", "ANN@acme.example", ann.email_lower)


async def test_by_email_needs_an_organization(ibex_db: Database) -> None:
    async with ibex_db.platform(reason="test") as session:
        with pytest.raises(TenantMissingError):
            await UserRepository(session).by_email("ann@acme.example")


async def test_by_email_is_one_index_probe_under_the_policies(session: ScopedSession, org: Organization) -> None:
    await session.execute(
        text(
            "INSERT INTO ibex_core.users (org_id, email, name) "
            "SELECT :org, 'user' || n || '@acme.example', 'User' FROM generate_series(1, 2000) n"
        ),
        {"org": org.id},
    )

    plan = await session.scalars(
        text(
            "EXPLAIN SELECT * FROM ibex_core.users WHERE org_id = :org AND deleted_at IS NULL "
            "AND email_lower = lower('User7@acme.example')"
        ),
        {"org": org.id},
    )

    told = "\n".join(plan)
    assert "users_org_id_email_lower_live" in told
    assert "(email_lower = 'user7@acme.example'::text)" in told.partition("Index Cond")[2].partition("\n")[0]


async def test_an_organization_is_loaded_when_asked_for_and_never_by_surprise(
    session: ScopedSession, org: Organization
) -> None:
    users = UserRepository(session)
    ann = await users.add(User(email="ann@acme.example", name="Ann"))

    with pytest.raises(NotLoadedError, match=r"User\.organization was not loaded"):
        _ = ann.organization
    session.expunge_all()
    ann = await users.get(ann.id, options=[joinedload(User.organization)])

    assert ann.organization.id == org.id
