"""Authentication: who a token speaks for."""

import asyncio
import importlib.metadata
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
import wire as wire_proxy
from sqlalchemy import text
from wire import Wire

from ibex_db_core import Database, EngineSettings, InvalidTokenError, ScopedSession, TokenIdentity, TokenKind
from ibex_db_core.provisioning import PLATFORM_LOGIN, SERVICE_LOGIN
from ibex_db_core.testing import TestDatabase
from ibex_db_tenancy import (
    Agent,
    AgentRepository,
    IssuedToken,
    Organization,
    OrganizationRepository,
    Token,
    TokenRepository,
    User,
    UserRepository,
)
from ibex_db_tenancy.authentication import TokenAuthenticator
from ibex_db_tenancy.tokens import mint

ALWAYS, NEVER = 0.0, 1e9
"""Seconds between two writes of the counts."""

Spoil = Callable[[ScopedSession, Token], Awaitable[object]]


def _count_every(db: Database, seconds: float) -> TokenAuthenticator:
    db._authenticator = authenticator = TokenAuthenticator(flush_every=seconds)  # pyright: ignore[reportPrivateUsage]
    return authenticator


async def _issue(db: Database, org: Organization, **options: object) -> IssuedToken:
    async with db.tenant(org.id) as session:
        return await TokenRepository(session).issue(**{"name": "CI", "kind": TokenKind.SERVICE, **options})  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def _issue_for_both(db: Database, org: Organization, **options: object) -> IssuedToken:
    async with db.tenant(org.id) as session:
        user = await UserRepository(session).add(User(email="ann@acme.example", name="Ann"))
        agent = await AgentRepository(session).add(Agent(name="Bot", slug="bot"))
    return await _issue(db, org, user_id=user.id, agent_id=agent.id, **options)


async def _row(db: Database, org: Organization, issued: IssuedToken) -> Token:
    async with db.tenant(org.id) as session:
        return await TokenRepository(session).get(issued.token.id)


async def _warm_up(db: Database, org: Organization, seconds: float) -> TokenAuthenticator:
    """Count every so many seconds, from now on: the organization's first uses are written."""
    authenticator = _count_every(db, seconds)
    issued = await _issue(db, org)
    for _ in range(2):
        await db.authenticate(issued.plaintext)
    return authenticator


async def test_a_valid_token_tells_whom_it_speaks_for(ibex_db: Database, org: Organization) -> None:
    expires_at = datetime.now(UTC) + timedelta(days=1)
    issued = await _issue_for_both(ibex_db, org, permissions=0b101, expires_at=expires_at)

    identity = await ibex_db.authenticate(issued.plaintext)

    assert identity == TokenIdentity(
        org_id=org.id,
        token_id=issued.token.id,
        prefix=issued.token.prefix,
        kind=TokenKind.SERVICE,
        user_id=issued.token.user_id,
        agent_id=issued.token.agent_id,
        permissions=0b101,
        expires_at=expires_at,
    )
    assert isinstance(identity.kind, TokenKind)


async def test_an_identity_cannot_be_changed(ibex_db: Database, org: Organization) -> None:
    identity = await ibex_db.authenticate((await _issue(ibex_db, org)).plaintext)

    with pytest.raises(FrozenInstanceError):
        identity.permissions = 2**63 - 1  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]


async def test_a_token_allows_what_all_its_bits_allow(ibex_db: Database, org: Organization) -> None:
    highest = 1 << 62
    identity = await ibex_db.authenticate((await _issue(ibex_db, org, permissions=highest | 0b101)).plaintext)

    assert identity.allows(0)
    assert identity.allows(0b100)
    assert identity.allows(highest | 0b001)
    assert not identity.allows(0b010)
    assert not identity.allows(0b111)


def _subject(ident: UUID | None) -> UUID:
    assert ident is not None
    return ident


SPOILT: dict[str, Spoil] = {
    "revoked": lambda session, token: TokenRepository(session).revoke(token.id),
    "expired": lambda session, token: session.execute(
        text("UPDATE ibex_core.tokens SET expires_at = now() - interval '1 millisecond' WHERE id = :id"),
        {"id": token.id},
    ),
    "erased": lambda session, token: TokenRepository(session).erase(token.id),
    "user suspended": lambda session, token: UserRepository(session).suspend(_subject(token.user_id)),
    "user deactivated": lambda session, token: UserRepository(session).deactivate(_subject(token.user_id)),
    "user deleted": lambda session, token: UserRepository(session).delete(_subject(token.user_id)),
    "agent suspended": lambda session, token: AgentRepository(session).suspend(_subject(token.agent_id)),
    "agent archived": lambda session, token: AgentRepository(session).archive(_subject(token.agent_id)),
    "agent deleted": lambda session, token: AgentRepository(session).delete(_subject(token.agent_id)),
    "organization suspended": lambda session, token: OrganizationRepository(session).suspend(token.org_id),
    "organization cancelled": lambda session, token: OrganizationRepository(session).cancel(token.org_id),
    "organization deleted": lambda session, token: OrganizationRepository(session).delete(token.org_id),
}


@pytest.mark.parametrize("why", SPOILT)
async def test_whatever_a_token_hangs_on_may_refuse_it_and_the_error_is_the_same(
    ibex_db: Database, org: Organization, why: str
) -> None:
    issued = await _issue_for_both(ibex_db, org)
    await ibex_db.authenticate(issued.plaintext)
    async with ibex_db.platform(reason="test") as session:
        await SPOILT[why](session, issued.token)

    with pytest.raises(InvalidTokenError) as caught:
        await ibex_db.authenticate(issued.plaintext)

    assert caught.value.args == ()
    assert str(caught.value) == str(InvalidTokenError())
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_an_invited_user_has_to_come_in_first(ibex_db: Database, org: Organization) -> None:
    async with ibex_db.tenant(org.id) as session:
        ann = await UserRepository(session).invite(email="ann@acme.example", name="Ann")
    issued = await _issue(ibex_db, org, user_id=ann.id)

    with pytest.raises(InvalidTokenError):
        await ibex_db.authenticate(issued.plaintext)


async def test_a_paused_agent_keeps_its_tokens_and_so_does_an_organization_on_trial(ibex_db: Database) -> None:
    async with ibex_db.platform(reason="test") as session:
        trial = await OrganizationRepository(session).create(name="Trial", slug="trial", trial=True)
    issued = await _issue_for_both(ibex_db, trial)
    async with ibex_db.tenant(trial.id) as session:
        await AgentRepository(session).pause(_subject(issued.token.agent_id))

    assert (await ibex_db.authenticate(issued.plaintext)).org_id == trial.id


async def test_a_reinstated_organizations_tokens_open_again(ibex_db: Database, org: Organization) -> None:
    issued = await _issue(ibex_db, org)
    async with ibex_db.platform(reason="test") as session:
        await OrganizationRepository(session).suspend(org.id)
        await OrganizationRepository(session).reinstate(org.id)

    assert (await ibex_db.authenticate(issued.plaintext)).token_id == issued.token.id


async def test_a_token_expires_by_the_databases_clock(ibex_db: Database, org: Organization) -> None:
    issued = await _issue(ibex_db, org, expires_at=datetime.now(UTC) + timedelta(seconds=1.5))
    await ibex_db.authenticate(issued.plaintext)

    await asyncio.sleep(1.7)

    with pytest.raises(InvalidTokenError):
        await ibex_db.authenticate(issued.plaintext)


async def test_one_organizations_token_cannot_be_moved_to_another(
    ibex_db: Database, org: Organization, rival: Organization
) -> None:
    """The secret of ours under the rival's id, with the checksum that anybody can compute."""
    from ibex_db_tenancy import tokens

    issued = await _issue(ibex_db, org)
    secret = issued.plaintext[: 5 + 43]
    body = secret + mint(rival.id).plaintext[5 + 43 : -6]
    forged = body + tokens._checksum(body)  # pyright: ignore[reportPrivateUsage]

    assert tokens.parse(forged).org_id == rival.id
    with pytest.raises(InvalidTokenError):
        await ibex_db.authenticate(forged)


@pytest.fixture
async def wire(ibex_test_database: TestDatabase) -> AsyncIterator[Wire]:
    async with wire_proxy.listen(ibex_test_database.cluster.admin) as opened:
        yield opened


@pytest_asyncio.fixture
async def wired(wire: Wire, ibex_test_database: TestDatabase, org: Organization) -> AsyncIterator[Database]:
    """A Database with one connection, whose messages the wire writes down; past its first connection's questions."""
    cluster, name = ibex_test_database.cluster, ibex_test_database.name
    database = Database(
        wire.address(cluster.url(name, user=SERVICE_LOGIN)),
        platform_url=wire.address(cluster.url(name, user=PLATFORM_LOGIN)),
        settings=EngineSettings(pool_size=1, max_overflow=0),
    )
    async with database:
        await _warm_up(database, org, NEVER)
        wire.clear()
        yield database


async def test_every_reason_costs_three_round_trips_and_the_same_statements(
    ibex_db: Database, wired: Database, wire: Wire, org: Organization, rival: Organization
) -> None:
    tokens = {
        "valid": await _issue(ibex_db, org),
        "revoked": await _issue(ibex_db, org),
        "expired": await _issue(ibex_db, org),
    }
    async with ibex_db.platform(reason="test") as session:
        await SPOILT["revoked"](session, tokens["revoked"].token)
        await SPOILT["expired"](session, tokens["expired"].token)
    shown = {
        **{why: issued.plaintext for why, issued in tokens.items()},
        "unknown": mint(org.id).plaintext,
        "of another organization": mint(rival.id).plaintext,
        "of no organization": mint(uuid4()).plaintext,
    }

    seen: dict[str, tuple[int, tuple[str, ...], bool]] = {}
    for why, plaintext in shown.items():
        wire.clear()
        try:
            await wired.authenticate(plaintext)
        except InvalidTokenError:
            refused = True
        else:
            refused = False
        begin, *rest = wire.statements
        assert begin.startswith("BEGIN")
        seen[why] = (wire.round_trips, tuple(rest), refused)

    assert {trips for trips, _, _ in seen.values()} == {3}
    assert len({statements for _, statements, _ in seen.values()}) == 1
    assert [why for why, (_, _, refused) in seen.items() if not refused] == ["valid"]
    assert seen["valid"][1][-1].startswith("COMMIT")


@pytest.mark.parametrize("shape", ["", "ibex_", "Bearer x", "ibex_" + "0" * 71, "{}x", " {}"])
async def test_what_is_no_token_is_refused_without_a_query(
    wired: Database, wire: Wire, org: Organization, shape: str
) -> None:
    plaintext = shape.format(mint(org.id).plaintext)

    with pytest.raises(InvalidTokenError):
        await wired.authenticate(plaintext)

    assert wire.messages == []


async def test_the_plaintext_is_in_no_log_error_repr_row_or_message_to_the_server(
    wired: Database, wire: Wire, org: Organization, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wire.clear()
    issued = await _issue(wired, org)
    secret = issued.plaintext[len(issued.token.prefix) : 5 + 43]

    told = [repr(issued), repr(issued.token), repr(await wired.authenticate(issued.plaintext))]
    async with wired.tenant(org.id) as session:
        await TokenRepository(session).revoke(issued.token.id)
    with pytest.raises(InvalidTokenError) as caught:
        await wired.authenticate(issued.plaintext)
    told += [str(caught.value), repr(caught.value), "".join(traceback.format_exception(caught.value))]
    async with wired.tenant(org.id) as session:
        told.extend((await session.scalars(text("SELECT to_jsonb(t)::text FROM ibex_core.tokens t"))).all())
        activity = "SELECT query FROM pg_stat_activity WHERE query IS NOT NULL"
        told.extend((await session.scalars(text(activity))).all())
    told.extend(record.getMessage() for record in caplog.records)

    assert secret not in "\n".join(told)
    assert secret.encode() not in wire.sent


async def test_64_requests_with_one_token_wait_for_nobody_and_are_all_counted(
    ibex_test_database: TestDatabase, org: Organization
) -> None:
    settings = EngineSettings(pool_size=16, max_overflow=0, lock_timeout=0.001)  # whoever waited would fail
    async with ibex_test_database.connect(settings) as db:
        authenticator = _count_every(db, ALWAYS)
        issued = await _issue(db, org)

        found = await asyncio.gather(*(db.authenticate(issued.plaintext) for _ in range(64)))

        assert {identity.token_id for identity in found} == {issued.token.id}
        await authenticator.flush(db)
        assert (await _row(db, org, issued)).use_count == 64


async def test_a_locked_row_is_read_all_the_same_and_counted_later(ibex_db: Database, org: Organization) -> None:
    _count_every(ibex_db, ALWAYS)
    issued = await _issue(ibex_db, org)

    async with ibex_db.tenant(org.id) as session:
        await TokenRepository(session).update(issued.token.id, name="Held")
        async with asyncio.timeout(5):
            for _ in range(3):
                await ibex_db.authenticate(issued.plaintext)
    assert (await _row(ibex_db, org, issued)).use_count == 0
    await ibex_db.authenticate(issued.plaintext)

    row = await _row(ibex_db, org, issued)
    assert row.use_count == 4
    assert row.last_used_at is not None


async def test_the_second_use_is_written_with_the_first_and_the_next_ones_wait(
    ibex_db: Database, org: Organization
) -> None:
    _count_every(ibex_db, NEVER)
    issued = await _issue(ibex_db, org)

    counts: list[int] = []
    for _ in range(5):
        await ibex_db.authenticate(issued.plaintext)
        counts.append((await _row(ibex_db, org, issued)).use_count)

    assert counts == [0, 2, 2, 2, 2]


async def test_closing_writes_what_is_still_in_memory(
    ibex_test_database: TestDatabase, ibex_db: Database, org: Organization
) -> None:
    async with ibex_test_database.connect() as db:
        await _warm_up(db, org, NEVER)
        one, other = await _issue(db, org), await _issue(db, org)
        for issued in (one, other, other):
            await db.authenticate(issued.plaintext)
        assert (await _row(ibex_db, org, other)).use_count == 0

    assert (await _row(ibex_db, org, one)).use_count == 1
    row = await _row(ibex_db, org, other)
    assert row.use_count == 2
    assert row.last_used_at is not None
    assert datetime.now(UTC) - row.last_used_at < timedelta(seconds=30)


async def test_an_authentication_that_is_due_writes_for_the_organizations_other_tokens_too(
    ibex_db: Database, org: Organization
) -> None:
    authenticator = await _warm_up(ibex_db, org, NEVER)
    one, other = await _issue(ibex_db, org), await _issue(ibex_db, org)
    for issued in (one, other, other):
        await ibex_db.authenticate(issued.plaintext)
    authenticator._flush_every = ALWAYS  # pyright: ignore[reportPrivateUsage]

    with pytest.raises(InvalidTokenError):
        await ibex_db.authenticate(mint(org.id).plaintext)

    assert (await _row(ibex_db, org, one)).use_count == 1
    assert (await _row(ibex_db, org, other)).use_count == 2


async def test_refused_tokens_are_not_counted(ibex_db: Database, org: Organization) -> None:
    await _warm_up(ibex_db, org, ALWAYS)
    issued = await _issue(ibex_db, org)
    async with ibex_db.tenant(org.id) as session:
        await TokenRepository(session).revoke(issued.token.id)

    with pytest.raises(InvalidTokenError):
        await ibex_db.authenticate(issued.plaintext)

    row = await _row(ibex_db, org, issued)
    assert (row.use_count, row.last_used_at) == (0, None)


async def test_uses_of_a_token_that_was_erased_meanwhile_are_forgotten(ibex_db: Database, org: Organization) -> None:
    authenticator = await _warm_up(ibex_db, org, NEVER)
    issued = await _issue(ibex_db, org)
    await ibex_db.authenticate(issued.plaintext)
    async with ibex_db.tenant(org.id) as session:
        await TokenRepository(session).erase(issued.token.id)

    await authenticator.flush(ibex_db)

    assert not authenticator._ledgers[org.id].uses  # pyright: ignore[reportPrivateUsage]


async def test_the_last_use_is_when_it_was_not_when_it_was_written(ibex_db: Database, org: Organization) -> None:
    authenticator = await _warm_up(ibex_db, org, NEVER)
    issued = await _issue(ibex_db, org)
    await ibex_db.authenticate(issued.plaintext)
    used = datetime.now(UTC)
    await asyncio.sleep(1.0)

    await authenticator.flush(ibex_db)

    last_used_at = (await _row(ibex_db, org, issued)).last_used_at
    assert last_used_at is not None
    assert abs(last_used_at - used) < timedelta(seconds=0.9)


async def test_forged_organizations_leave_nothing_in_memory(ibex_db: Database, org: Organization) -> None:
    authenticator = _count_every(ibex_db, ALWAYS)

    for plaintext in (mint(uuid4()).plaintext, mint(org.id).plaintext):
        with pytest.raises(InvalidTokenError):
            await ibex_db.authenticate(plaintext)

    assert not authenticator._ledgers  # pyright: ignore[reportPrivateUsage]


async def test_what_could_not_be_counted_ends_in_a_warning_not_in_an_error(
    ibex_test_database: TestDatabase, org: Organization, caplog: pytest.LogCaptureFixture
) -> None:
    async with ibex_test_database.connect() as db:
        await _warm_up(db, org, NEVER)
        issued = await _issue(db, org)
        await db.authenticate(issued.plaintext)
        await ibex_test_database.cluster.drop_database(ibex_test_database.name)

    assert "uses of tokens were not counted" in caplog.text
    assert issued.plaintext not in caplog.text


def test_the_wheel_registers_its_authenticator() -> None:
    (point,) = importlib.metadata.entry_points(group="ibex_db.authenticator")

    assert point.load() is TokenAuthenticator


async def test_without_the_wheel_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ibex_db_core.identity.AUTHENTICATOR_GROUP", "ibex_db.nobody")

    with pytest.raises(ImportError, match="uv add ibex-db-tenancy"):
        await Database("postgresql:///nowhere").authenticate("ibex_")
