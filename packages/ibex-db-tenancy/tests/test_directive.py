"""Directives and their versions."""

import hashlib
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import joinedload, selectinload

from ibex_db_core.errors import ConflictError, InvalidInputError, NotFoundError, RuleViolationError
from ibex_db_core.tenant import ScopedSession
from ibex_db_tenancy import (
    Directive,
    DirectiveRepository,
    DirectiveVersion,
    DirectiveVersionStatus,
    Organization,
    User,
    UserRepository,
)


async def _directive(session: ScopedSession, *contents: str) -> Directive:
    versions = [DirectiveVersion(version_number=at, content=told) for at, told in enumerate(contents, start=1)]
    return await DirectiveRepository(session).add(Directive(name="Manners", versions=versions))


async def test_what_is_left_out_is_filled_in(session: ScopedSession, org: Organization) -> None:
    directive = await _directive(session, "Be kind.")
    version = directive.versions[0]

    assert directive.org_id == version.org_id == org.id
    assert version.directive_id == directive.id
    assert version.status is DirectiveVersionStatus.DRAFT
    assert version.content_hash == hashlib.sha256(b"Be kind.").hexdigest()
    assert (version.parent_version_id, version.activated_at, version.change_summary) == (None, None, None)


async def test_the_status_of_raw_sql_is_draft(session: ScopedSession, org: Organization) -> None:
    directive = await _directive(session)
    await session.execute(
        text(
            "INSERT INTO ibex_core.directive_versions (org_id, directive_id, version_number, content, content_hash) "
            "VALUES (:org, :directive, 1, 'Sei höflich.', :hash)"
        ),
        {"org": org.id, "directive": directive.id, "hash": hashlib.sha256("Sei höflich.".encode()).hexdigest()},
    )

    (version,) = await DirectiveRepository(session).history(directive.id)

    assert version.status is DirectiveVersionStatus.DRAFT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content", ""),
        ("content", "  "),
        ("content", "nul\x00"),
        ("content", "x" * 1_000_001),
        ("content_hash", "no hash"),
        ("version_number", 0),
        ("status", "live"),
        ("directive_id", None),
    ],
)
def test_bad_input_is_refused_before_sql(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        DirectiveVersion(**{field: value})

    assert caught.value.field == field


async def test_a_hash_that_is_not_the_contents_is_refused(session: ScopedSession) -> None:
    directive = await _directive(session)
    session.add(
        DirectiveVersion(directive_id=directive.id, version_number=1, content="Be kind.", content_hash="0" * 64)
    )

    with pytest.raises(RuleViolationError) as caught:
        await session.flush()
    await session.rollback()

    assert caught.value.constraint == "directive_versions_content_hash_matches"


@pytest.mark.parametrize(
    "change",
    [
        "content = 'Be rude.', content_hash = encode(sha256('Be rude.'), 'hex')",
        "content_hash = repeat('0', 64)",
        "version_number = 7",
        "directive_id = gen_random_uuid()",
    ],
)
async def test_what_a_version_says_never_changes(session: ScopedSession, change: str) -> None:
    await _directive(session, "Be kind.")

    with pytest.raises(RuleViolationError, match="immutable") as caught:
        async with session.begin_nested():
            await session.execute(text(f"UPDATE ibex_core.directive_versions SET {change}"))

    assert caught.value.constraint == "directive_versions_content_immutable"


async def test_status_and_moment_of_a_version_move_on(session: ScopedSession) -> None:
    directive = await _directive(session, "Be kind.")

    await session.execute(text("UPDATE ibex_core.directive_versions SET status = 'active', activated_at = now()"))
    session.expunge_all()
    version = await DirectiveRepository(session).active_version(directive.id)

    assert version is not None
    assert version.activated_at is not None


async def test_at_most_one_version_is_active(session: ScopedSession) -> None:
    directive = await _directive(session, "Be kind.", "Be very kind.")
    first, second = directive.versions
    first.status = DirectiveVersionStatus.ACTIVE
    await session.flush()

    with pytest.raises(ConflictError) as caught:
        async with session.begin_nested():
            second.status = DirectiveVersionStatus.ACTIVE

    assert caught.value.constraint == "directive_versions_org_id_directive_id_active"


async def test_a_version_number_is_unique_in_its_directive(session: ScopedSession) -> None:
    directive = await _directive(session, "Be kind.")

    with pytest.raises(ConflictError) as caught:
        async with session.begin_nested():
            session.add(DirectiveVersion(directive_id=directive.id, version_number=1, content="Be rude."))

    assert caught.value.constraint == "directive_versions_org_id_directive_id_version_number_key"


async def test_a_name_is_unique_among_live_directives(session: ScopedSession) -> None:
    directives = DirectiveRepository(session)
    first = await _directive(session)

    with pytest.raises(ConflictError) as caught:
        async with session.begin_nested():
            await _directive(session)
    await directives.delete(first.id)
    second = await _directive(session)

    assert caught.value.constraint == "directives_org_id_name_live"
    assert await directives.by_name("Manners") is second
    assert await directives.by_name("Nobody's") is None


async def test_versions_come_oldest_first_and_the_active_one_on_its_own(session: ScopedSession) -> None:
    directives = DirectiveRepository(session)
    directive = await directives.add(
        Directive(
            name="Manners",
            versions=[
                DirectiveVersion(version_number=3, content="Three."),
                DirectiveVersion(version_number=1, content="One."),
                DirectiveVersion(version_number=2, content="Two.", status=DirectiveVersionStatus.ACTIVE),
            ],
        )
    )
    session.expunge_all()

    options = [selectinload(Directive.versions), joinedload(Directive.active_version)]
    found = await directives.get(directive.id, options=options)

    assert [version.version_number for version in found.versions] == [1, 2, 3]
    assert found.active_version is found.versions[1]
    assert [version.version_number for version in await directives.history(directive.id)] == [1, 2, 3]
    assert await directives.active_version(directive.id) is found.active_version


async def test_an_unknown_directive_has_no_history(session: ScopedSession) -> None:
    directives = DirectiveRepository(session)

    unknown = uuid4()
    with pytest.raises(NotFoundError, match=str(unknown)):
        await directives.history(unknown)
    assert await directives.active_version(unknown) is None


async def test_a_directive_before_its_first_version_has_none_and_a_deleted_one_keeps_its_own(
    session: ScopedSession,
) -> None:
    directives = DirectiveRepository(session)
    bare = await directives.add(Directive(name="Bare"))

    assert await directives.history(bare.id) == []
    await directives.draft(bare.id, content="Be kind.")
    await directives.delete(bare.id)
    assert [version.content for version in await directives.history(bare.id)] == ["Be kind."]


async def test_a_version_knows_its_parent_and_its_author(session: ScopedSession) -> None:
    ann = await UserRepository(session).add(User(email="ann@acme.example", name="Ann"))
    directive = await _directive(session, "Be kind.")
    child = DirectiveVersion(
        directive=directive, version_number=2, content="Kinder.", parent_version=directive.versions[0], creator=ann
    )
    session.add(child)
    await session.flush()
    session.expunge_all()

    links = (DirectiveVersion.parent_version, DirectiveVersion.creator, DirectiveVersion.directive)
    found = await session.get(DirectiveVersion, child.id, options=[joinedload(link) for link in links])

    assert found is not None
    assert found.parent_version is not None
    assert found.parent_version.content == "Be kind."
    assert found.creator is not None
    assert found.creator.name == "Ann"
    assert found.directive.name == "Manners"


async def test_a_version_is_not_its_own_parent(session: ScopedSession) -> None:
    directive = await _directive(session)
    ident = uuid4()
    session.add(
        DirectiveVersion(
            id=ident, parent_version_id=ident, directive_id=directive.id, version_number=1, content="Be kind."
        )
    )

    with pytest.raises(RuleViolationError) as caught:
        await session.flush()
    await session.rollback()

    assert caught.value.constraint == "directive_versions_parent_is_another"


async def test_erasing_a_directive_takes_its_versions_and_erasing_a_user_does_not(session: ScopedSession) -> None:
    directives = DirectiveRepository(session)
    ann = await UserRepository(session).add(User(email="ann@acme.example", name="Ann"))
    directive = await directives.add(
        Directive(
            name="Manners",
            creator=ann,
            versions=[DirectiveVersion(version_number=1, content="Be kind.", created_by=ann.id)],
        )
    )

    await UserRepository(session).erase(ann.id)
    session.expunge_all()
    (version,) = await directives.history(directive.id)
    assert version.created_by is None
    await directives.erase(directive.id)

    with pytest.raises(NotFoundError):
        await directives.history(directive.id)
