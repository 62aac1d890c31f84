"""Organizations."""

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import selectinload

from ibex_db_core.database import Database
from ibex_db_core.errors import AccessDeniedError, ConflictError, InvalidInputError, RuleViolationError, TenantError
from ibex_db_core.tenant import ScopedSession
from ibex_db_tenancy import (
    Agent,
    Organization,
    OrganizationRepository,
    OrganizationStatus,
    OrganizationTier,
    User,
)


async def test_what_is_left_out_is_filled_in(org: Organization) -> None:
    assert org.tier is OrganizationTier.FREE
    assert org.status is OrganizationStatus.ACTIVE
    assert org.settings == {}
    assert org.deleted_at is None
    assert org.created_at == org.updated_at


async def test_the_database_fills_in_the_same_for_raw_sql(ibex_db: Database) -> None:
    async with ibex_db.platform(reason="test") as session:
        await session.execute(text("INSERT INTO ibex_core.organizations (name, slug) VALUES ('Raw', 'raw')"))
        raw = (await session.scalars(select(Organization))).one()

    assert (raw.tier, raw.status, raw.settings) == (OrganizationTier.FREE, OrganizationStatus.ACTIVE, {})


@pytest.mark.parametrize("slug", ["", "Acme", "a b", "ä", "a_b", "acme\n", "x" * 101, 7, None])
def test_a_bad_slug_is_refused_before_sql(slug: str) -> None:
    with pytest.raises(InvalidInputError, match="slug"):
        Organization(name="Acme", slug=slug)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", ""), ("name", " \t"), ("name", "x" * 256), ("tier", "gold"), ("status", "gone"), ("settings", [1])],
)
def test_bad_input_is_refused_before_sql(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Organization(**{field: value})

    assert caught.value.field == field


@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("slug", "Acme", "organizations_slug_format"),
        ("slug", "x" * 101, "organizations_slug_length"),
        ("name", " ", "organizations_name_length"),
        ("tier", "gold", "organizations_organization_tier_known"),
        ("status", "gone", "organizations_organization_status_known"),
        ("settings", "[1]", "organizations_settings_is_object"),
    ],
)
async def test_the_database_holds_raw_sql_to_the_same_rules(
    ibex_db: Database, org: Organization, column: str, value: str, constraint: str
) -> None:
    # Every value here is a literal of this file.
    statement = text(f"UPDATE ibex_core.organizations SET {column} = '{value}'")

    with pytest.raises(RuleViolationError) as caught:
        async with ibex_db.platform(reason="test") as session:
            await session.execute(statement)

    assert (org.slug, caught.value.constraint) == ("acme", constraint)


async def test_a_slug_is_unique_over_all_organizations(ibex_db: Database, org: Organization) -> None:
    with pytest.raises(ConflictError) as caught:
        async with ibex_db.platform(reason="test") as session:
            await OrganizationRepository(session).add(Organization(name="Other", slug=org.slug))

    assert caught.value.constraint == "organizations_slug_key"


async def test_a_tenant_sees_its_own_organization_only(
    session: ScopedSession, org: Organization, rival: Organization
) -> None:
    organizations = OrganizationRepository(session)

    assert await organizations.by_slug(org.slug) is not None
    assert await organizations.by_slug(rival.slug) is None
    assert (await session.scalars(select(Organization.id))).all() == [org.id]


async def test_a_tenant_cannot_make_an_organization(ibex_db: Database, org: Organization) -> None:
    with pytest.raises(AccessDeniedError):
        async with ibex_db.tenant(org.id) as session:
            session.add(Organization(name="Mine", slug="mine"))


@pytest.mark.parametrize("slug", ["globex", "free", "acme"])
async def test_a_tenant_changes_no_slug_whether_it_is_taken_or_free(
    session: ScopedSession, org: Organization, rival: Organization, slug: str
) -> None:
    assert rival.slug == "globex"

    with pytest.raises(TenantError, match="platform"):
        await OrganizationRepository(session).update(org.id, slug=slug)

    assert (await OrganizationRepository(session).update(org.id, name="Acme Ltd")).name == "Acme Ltd"


async def test_the_platform_changes_a_slug(ibex_db: Database, org: Organization, rival: Organization) -> None:
    async with ibex_db.platform(reason="test") as session:
        renamed = await OrganizationRepository(session).update(org.id, slug="acme-ltd")

    with pytest.raises(ConflictError):
        async with ibex_db.platform(reason="test") as session:
            await OrganizationRepository(session).update(org.id, slug=rival.slug)

    assert renamed.slug == "acme-ltd"


async def test_the_platform_finds_any_by_slug(ibex_db: Database, org: Organization, rival: Organization) -> None:
    async with ibex_db.platform(reason="test") as session:
        organizations = OrganizationRepository(session)

        found = [await organizations.by_slug(slug) for slug in (org.slug, rival.slug, "nobody")]

    assert [one.id if one else None for one in found] == [org.id, rival.id, None]


async def test_users_and_agents_are_made_with_their_organization(ibex_db: Database) -> None:
    async with ibex_db.platform(reason="test") as session:
        user = User(email="ann@acme.example", name="Ann")
        session.add(Organization(name="Acme", slug="acme", users=[user], agents=[Agent(name="Bot", slug="bot")]))
        await session.flush()
        assert user.org_id is not None
        session.expunge_all()
        options = (selectinload(Organization.users), selectinload(Organization.agents))
        found = (await session.scalars(select(Organization).options(*options))).one()

    assert [one.name for one in found.users] == ["Ann"]
    assert [one.name for one in found.agents] == ["Bot"]


async def test_erasing_an_organization_takes_all_that_it_owns(ibex_db: Database, org: Organization) -> None:
    async with ibex_db.tenant(org.id) as session:
        user = User(email="ann@acme.example", name="Ann")
        session.add(user)
        await session.flush()
        session.add(Agent(name="Bot", slug="bot", created_by=user.id))

    async with ibex_db.platform(reason="test") as session:
        await OrganizationRepository(session).erase(org.id)

        assert (await session.scalars(select(User.id))).all() == []
        assert (await session.scalars(select(Agent.id))).all() == []
