"""Tokens, the records."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import selectinload

from ibex_db_core.database import Database
from ibex_db_core.errors import (
    ConflictError,
    ForeignKeyError,
    InvalidInputError,
    InvalidTokenError,
    NotFoundError,
    RuleViolationError,
    TenantMissingError,
)
from ibex_db_core.tenant import ScopedSession
from ibex_db_tenancy import (
    Agent,
    AgentRepository,
    Organization,
    Token,
    TokenKind,
    TokenRepository,
    TokenState,
    User,
    UserRepository,
)
from ibex_db_tenancy.tokens import Minted, mint, parse


def _token(org: Organization, minted: Minted | None = None, **fields: object) -> Token:
    minted = minted or mint(org.id)
    return Token(**{"name": "CI", "prefix": minted.prefix, "token_hash": minted.hash, **fields})


async def test_what_is_left_out_is_filled_in(session: ScopedSession, org: Organization) -> None:
    token = await TokenRepository(session).add(_token(org))

    assert (token.kind, token.permissions, token.use_count) == (TokenKind.PERSONAL, 0, 0)
    assert (token.user_id, token.agent_id, token.expires_at, token.revoked_at) == (None, None, None, None)


async def test_the_database_fills_in_the_same_for_raw_sql(session: ScopedSession, org: Organization) -> None:
    await session.execute(
        text("INSERT INTO ibex_core.tokens (org_id, name, prefix, token_hash) VALUES (:org, 'CI', 'ibex_', :hash)"),
        {"org": org.id, "hash": "0" * 64},
    )
    raw = (await session.scalars(select(Token))).one()

    assert (raw.kind, raw.permissions, raw.use_count) == (TokenKind.PERSONAL, 0, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token_hash", "0" * 63),
        ("token_hash", "G" * 64),
        ("token_hash", "0" * 65),
        ("prefix", ""),
        ("prefix", "x" * 33),
        ("permissions", -1),
        ("permissions", 2**63),
        ("use_count", True),
        ("kind", "root"),
        ("expires_at", datetime(2030, 1, 1)),  # noqa: DTZ001 - naive, on purpose
    ],
)
def test_bad_input_is_refused_before_sql(field: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Token(**{field: value})

    assert caught.value.field == field


async def test_the_database_holds_raw_sql_to_the_same_rules(session: ScopedSession, org: Organization) -> None:
    await TokenRepository(session).add(_token(org))

    for change, constraint in (
        ("permissions = -1", "tokens_permissions_range"),
        ("use_count = -1", "tokens_use_count_range"),
        ("kind = 'root'", "tokens_token_kind_known"),
        ("revoke_reason = 'leaked'", "tokens_revoked_has_moment"),
    ):
        with pytest.raises(RuleViolationError) as caught:
            async with session.begin_nested():
                await session.execute(text(f"UPDATE ibex_core.tokens SET {change}"))
        assert caught.value.constraint == constraint


@pytest.mark.parametrize(
    ("prefix", "token_hash", "constraint"),
    [("ibex_", "abc", "tokens_token_hash_format"), ("", "0" * 64, "tokens_prefix_length")],
)
async def test_the_database_holds_the_secret_of_raw_sql_to_the_same_rules(
    session: ScopedSession, org: Organization, prefix: str, token_hash: str, constraint: str
) -> None:
    statement = text("INSERT INTO ibex_core.tokens (org_id, name, prefix, token_hash) VALUES (:org, 'CI', :pre, :hash)")

    with pytest.raises(RuleViolationError) as caught:
        async with session.begin_nested():
            await session.execute(statement, {"org": org.id, "pre": prefix, "hash": token_hash})

    assert caught.value.constraint == constraint


async def test_all_63_permission_bits_can_be_kept(session: ScopedSession, org: Organization) -> None:
    token = await TokenRepository(session).add(_token(org, permissions=2**63 - 1))
    await session.refresh(token)

    assert token.permissions == 2**63 - 1


async def test_a_minted_token_is_found_by_what_its_plaintext_says(session: ScopedSession, org: Organization) -> None:
    tokens = TokenRepository(session)
    minted = mint(org.id)
    token = await tokens.add(_token(org, minted))

    parsed = parse(minted.plaintext)

    assert parsed.org_id == org.id
    assert await tokens.by_hash(parsed.hash) is token
    assert await tokens.by_hash(mint(org.id).hash) is None


async def test_a_hash_is_unique_in_its_organization(session: ScopedSession, org: Organization) -> None:
    minted = mint(org.id)
    await TokenRepository(session).add(_token(org, minted))

    with pytest.raises(ConflictError) as caught:
        async with session.begin_nested():
            await TokenRepository(session).add(_token(org, minted))

    assert caught.value.constraint == "tokens_org_id_token_hash_key"


async def test_tokens_go_with_the_user_and_the_agent_that_they_speak_for(
    session: ScopedSession, org: Organization
) -> None:
    tokens, users, agents = TokenRepository(session), UserRepository(session), AgentRepository(session)
    ann = await users.add(User(email="ann@acme.example", name="Ann"))
    bob = await users.add(User(email="bob@acme.example", name="Bob"))
    bot = await agents.add(Agent(name="Bot", slug="bot"))
    hers = await tokens.add(_token(org, user_id=ann.id))
    its = await tokens.add(_token(org, agent_id=bot.id, kind=TokenKind.SERVICE))
    kept = await tokens.add(_token(org, revoked_at=datetime.now(UTC), revoked_by=ann.id, user_id=bob.id))

    assert await tokens.of_user(ann.id) == [hers]
    assert await tokens.of_agent(bot.id) == [its]
    await users.erase(ann.id)
    await agents.erase(bot.id)
    session.expunge_all()

    left = (await tokens.list()).items
    assert [token.id for token in left] == [kept.id]
    assert left[0].revoked_by is None


async def test_user_agent_and_revoker_are_three_relationships(session: ScopedSession, org: Organization) -> None:
    ann, bob = User(email="ann@acme.example", name="Ann"), User(email="bob@acme.example", name="Bob")
    token = _token(org, revoked_at=datetime.now(UTC), user=ann, revoker=bob, agent=Agent(name="Bot", slug="bot"))
    await TokenRepository(session).add(token)
    session.expunge_all()

    options = [selectinload(link) for link in (Token.user, Token.revoker, Token.agent, Token.organization)]
    found = await TokenRepository(session).get(token.id, options=options)

    assert (found.user and found.user.name, found.revoker and found.revoker.name) == ("Ann", "Bob")
    assert found.agent is not None
    assert found.organization.id == org.id


async def _user(session: ScopedSession) -> User:
    return await UserRepository(session).add(User(email="ann@acme.example", name="Ann"))


async def test_an_issued_token_opens_its_own_row_and_its_plaintext_is_not_kept(
    session: ScopedSession, org: Organization
) -> None:
    ann = await _user(session)
    tokens = TokenRepository(session)

    issued = await tokens.issue(name="Laptop", user_id=ann.id, permissions=0b101)

    assert parse(issued.plaintext).org_id == org.id
    assert await tokens.by_hash(parse(issued.plaintext).hash) is issued.token
    assert issued.plaintext.startswith(issued.token.prefix)
    assert issued.plaintext not in repr(issued)
    row = (await session.execute(text("SELECT to_jsonb(t)::text FROM ibex_core.tokens t"))).scalar_one()
    assert issued.plaintext not in row
    assert issued.plaintext[len(issued.token.prefix) :][:20] not in row


async def test_a_token_that_could_never_open_anything_is_not_issued(session: ScopedSession) -> None:
    tokens = TokenRepository(session)

    with pytest.raises(InvalidInputError, match="user_id"):
        await tokens.issue(name="Nobody's")
    with pytest.raises(InvalidInputError, match="future"):
        await tokens.issue(
            name="Late", kind=TokenKind.ORGANIZATION, expires_at=datetime.now(UTC) - timedelta(seconds=1)
        )
    with pytest.raises(ForeignKeyError):
        async with session.begin_nested():
            await tokens.issue(name="Stranger's", user_id=uuid4())


async def test_rotating_revokes_the_old_and_hands_on_all_but_the_secret(session: ScopedSession) -> None:
    ann = await _user(session)
    tokens = TokenRepository(session)
    expires_at = datetime.now(UTC) + timedelta(days=30)
    old = await tokens.issue(name="Laptop", user_id=ann.id, permissions=7, expires_at=expires_at)

    new = await tokens.rotate(old.token.id)

    assert new.plaintext != old.plaintext
    assert (new.token.name, new.token.user_id, new.token.permissions) == ("Laptop", ann.id, 7)
    assert new.token.expires_at == expires_at
    assert new.token.revoked_at is None
    assert old.token.revoked_at is not None
    assert old.token.revoke_reason == "rotated"
    with pytest.raises(InvalidInputError, match="must be live"):
        await tokens.rotate(old.token.id)
    with pytest.raises(NotFoundError):
        await tokens.rotate(uuid4())


async def test_of_two_who_rotate_one_token_one_succeeds(ibex_db: Database, org: Organization) -> None:
    async with ibex_db.tenant(org.id) as session:
        old = await TokenRepository(session).issue(name="CI", kind=TokenKind.SERVICE)

    async def rotate() -> None:
        async with ibex_db.tenant(org.id) as session:
            await TokenRepository(session).rotate(old.token.id)

    told = await asyncio.gather(rotate(), rotate(), return_exceptions=True)

    assert sorted(type(one).__name__ for one in told) == ["InvalidInputError", "NoneType"]
    async with ibex_db.tenant(org.id) as session:
        assert await TokenRepository(session).count() == 2


async def test_the_first_revocation_stands(session: ScopedSession) -> None:
    ann = await _user(session)
    tokens = TokenRepository(session)
    issued = await tokens.issue(name="Laptop", user_id=ann.id)

    revoked = await tokens.revoke(issued.token.id, by=ann.id, reason="lost in a train")
    again = await tokens.revoke(issued.token.id, reason="once more")

    assert again is revoked
    assert (again.revoked_by, again.revoke_reason) == (ann.id, "lost in a train")
    with pytest.raises(NotFoundError):
        await tokens.revoke(uuid4())
    with pytest.raises(InvalidInputError, match="revoke_reason"):
        await tokens.revoke(issued.token.id, reason="nul\x00")


async def test_a_platform_session_must_name_the_organization_of_a_new_token(ibex_db: Database) -> None:
    async with ibex_db.platform(reason="test") as session:
        with pytest.raises(TenantMissingError):
            await TokenRepository(session).issue(name="CI", kind=TokenKind.SERVICE)


async def test_tokens_are_listed_by_state_and_by_whom_they_speak_for(session: ScopedSession) -> None:
    ann = await _user(session)
    bot = await AgentRepository(session).add(Agent(name="Bot", slug="bot"))
    tokens = TokenRepository(session)
    hers = await tokens.issue(name="Hers", user_id=ann.id)
    its = await tokens.issue(name="Its", kind=TokenKind.SERVICE, agent_id=bot.id)
    lost = await tokens.issue(name="Lost", user_id=ann.id, expires_at=datetime.now(UTC) + timedelta(days=1))
    old = await tokens.issue(name="Old", user_id=ann.id, expires_at=datetime.now(UTC) + timedelta(days=1))
    await tokens.revoke(lost.token.id)
    past = {"ids": [lost.token.id, old.token.id]}
    await session.execute(
        text("UPDATE ibex_core.tokens SET expires_at = now() - interval '1 second' WHERE id = ANY (:ids)"), past
    )

    async def names(**filters: Any) -> list[str]:
        return sorted(token.name for token in (await tokens.list(**filters)).items)

    assert await names(state=TokenState.LIVE) == ["Hers", "Its"]
    assert await names(state="expired") == ["Old"]
    assert await names(state=TokenState.REVOKED) == ["Lost"]
    assert await names(user_id=ann.id) == ["Hers", "Lost", "Old"]
    assert await names(agent_id=bot.id, state=TokenState.LIVE) == ["Its"]
    assert await names(user_id=uuid4()) == []
    page = await tokens.list(Token.kind == TokenKind.PERSONAL, user_id=ann.id, limit=2)
    rest = await tokens.list(Token.kind == TokenKind.PERSONAL, user_id=ann.id, limit=2, cursor=page.next_cursor)
    assert {token.id for token in (*page.items, *rest.items)} == {hers.token.id, lost.token.id, old.token.id}
    assert its.token not in page.items
    with pytest.raises(InvalidInputError, match="state"):
        await names(state="gone")


async def test_an_expired_token_is_not_rotated_and_a_bad_expiry_changes_nothing(session: ScopedSession) -> None:
    tokens = TokenRepository(session)
    issued = await tokens.issue(name="CI", kind=TokenKind.SERVICE)

    with pytest.raises(InvalidInputError, match="future"):
        await tokens.rotate(issued.token.id, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await session.refresh(issued.token)
    assert issued.token.revoked_at is None
    await session.execute(text("UPDATE ibex_core.tokens SET expires_at = now() - interval '1 second'"))
    with pytest.raises(InvalidInputError, match="must be live"):
        await tokens.rotate(issued.token.id)

    await session.refresh(issued.token)
    assert issued.token.revoked_at is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("revoked_at", None),
        ("revoked_by", None),
        ("revoke_reason", "found again"),
        ("token_hash", "0" * 64),
        ("prefix", "ibex_"),
        ("use_count", 0),
        ("last_used_at", None),
        ("kind", TokenKind.SERVICE),
        ("user_id", None),
        ("agent_id", None),
    ],
)
async def test_an_update_brings_no_token_back_and_gives_it_no_other_secret(
    ibex_db: Database, org: Organization, field: str, value: object
) -> None:
    async with ibex_db.tenant(org.id) as session:
        tokens = TokenRepository(session)
        issued = await tokens.issue(name="CI", kind=TokenKind.SERVICE)
        await tokens.revoke(issued.token.id)

        with pytest.raises(InvalidInputError, match="cannot be changed by update") as caught:
            await tokens.update(issued.token.id, **{field: value, "permissions": 2**62})

    assert caught.value.field == field
    with pytest.raises(InvalidTokenError):
        await ibex_db.authenticate(issued.plaintext)


async def test_name_permissions_and_expiry_may_change(session: ScopedSession) -> None:
    tokens = TokenRepository(session)
    issued = await tokens.issue(name="CI", kind=TokenKind.SERVICE)
    later = datetime.now(UTC) + timedelta(days=1)

    token = await tokens.update(issued.token.id, name="Build", permissions=2**62, expires_at=later)

    assert (token.name, token.permissions, token.expires_at) == ("Build", 2**62, later)


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("revoked_at = NULL, revoke_reason = NULL, revoked_by = NULL", "tokens_revocation_final"),
        ("revoked_at = now() + interval '1 day'", "tokens_revocation_final"),
        ("revoke_reason = 'another'", "tokens_revocation_final"),
        ("revoked_by = gen_random_uuid()", "tokens_revocation_final"),
        ("token_hash = repeat('0', 64)", "tokens_secret_immutable"),
        ("prefix = 'ibex_'", "tokens_secret_immutable"),
    ],
)
async def test_a_revocation_is_final_for_raw_sql_and_for_the_platform_as_well(
    ibex_db: Database, org: Organization, change: str, constraint: str
) -> None:
    async with ibex_db.tenant(org.id) as session:
        tokens = TokenRepository(session)
        issued = await tokens.issue(name="CI", kind=TokenKind.SERVICE)
        await tokens.revoke(issued.token.id, reason="lost")

    for way in (ibex_db.tenant(org.id), ibex_db.platform(reason="test")):
        with pytest.raises(RuleViolationError) as caught:
            async with way as session:
                # Every value here is a literal of this file.
                await session.execute(text(f"UPDATE ibex_core.tokens SET {change}"))
        assert caught.value.constraint == constraint

    with pytest.raises(InvalidTokenError):
        await ibex_db.authenticate(issued.plaintext)


async def test_a_revoked_token_outlives_the_user_who_revoked_it(session: ScopedSession) -> None:
    user = await UserRepository(session).add(User(email="dana@example.com", name="Dana"))
    tokens = TokenRepository(session)
    issued = await tokens.issue(name="CI", kind=TokenKind.SERVICE)
    await tokens.revoke(issued.token.id, by=user.id)

    await UserRepository(session).erase(user.id)
    await session.refresh(issued.token)

    assert issued.token.revoked_at is not None
    assert issued.token.revoked_by is None
