"""The signing key and what a service signs with it; `ibex-db sign`.

What signing keeps out is shown in tests/isolation/test_signed.py.
"""

import asyncio
import hashlib
import hmac
import json
import pickle
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner, Result

from ibex_db_core import ConfigurationError, Database, InvalidInputError, MigrationError
from ibex_db_core.cli.app import build
from ibex_db_core.guards import Function
from ibex_db_core.policies import SIGNED_ORG, TENANT_EXPRESSION, sign_text, signed_function, unsign_text
from ibex_db_core.provisioning import Cluster
from ibex_db_core.signing import KEY_VARIABLE, Signer, SigningKey, key_of_environment
from ibex_db_core.testing import TestDatabase

KEY, OTHER = SigningKey.new(), SigningKey.new()
ACME = UUID("00000000-0000-4000-8000-00000000000a")


def test_a_mac_is_hmac_sha256() -> None:
    key = SigningKey(KEY)
    for message in ("", "one", "a" * 200, "database.é.1.2"):
        assert key.mac(message) == hmac.new(bytes.fromhex(KEY), message.encode(), hashlib.sha256).hexdigest()


def test_a_signature_says_when_for_whom_and_with_which_key() -> None:
    key = SigningKey(KEY.upper())

    mac, moment, pid, ident = key.sign(ACME, "shop", 1_700_000_000, 42).split(".")

    assert mac == key.mac(f"shop.{ACME}.1700000000.42")
    assert (moment, pid, ident) == ("1700000000", "42", key.id)
    assert ident == SigningKey(KEY).id != SigningKey(OTHER).id
    assert ident not in KEY


def test_a_key_is_shown_to_nobody() -> None:
    key = SigningKey(KEY)

    assert repr(key) == str(key) == f"<SigningKey {key.id}>"
    assert KEY not in repr(Signer(key))
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_the_environment_may_hold_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, " ")
    assert key_of_environment() is None
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    found = key_of_environment()
    assert found is not None
    assert found.id == SigningKey(KEY).id
    monkeypatch.setenv(KEY_VARIABLE, "hush")
    with pytest.raises(ConfigurationError, match=KEY_VARIABLE) as told:
        Database.from_env(url="postgresql://localhost/x")
    assert "hush" not in str(told.value)


def test_what_is_signed_can_be_unsigned() -> None:
    body = f"org CONSTANT uuid := {TENANT_EXPRESSION};"
    assert unsign_text(sign_text(body)) == body
    assert sign_text(body) == "org CONSTANT uuid := ibex_core.signed_org();"

    reader = Function("reader", body, options="PARALLEL SAFE ROWS 10")
    assert signed_function(reader).options == "PARALLEL RESTRICTED ROWS 10"
    assert signed_function(SIGNED_ORG) is SIGNED_ORG


@pytest.mark.parametrize("overlap", [-1, float("inf"), float("nan")])
async def test_an_overlap_that_is_none_is_refused(ibex_db: Database, overlap: float) -> None:
    async with ibex_db.migrator() as migrator:
        with pytest.raises(InvalidInputError, match="overlap"):
            await migrator.rotate(KEY, overlap=overlap)


async def test_nothing_is_rotated_where_signing_is_off(ibex_db: Database) -> None:
    async with ibex_db.migrator() as migrator:
        with pytest.raises(ConfigurationError, match="--enable"):
            await migrator.rotate(KEY)
        assert not (await migrator.signing()).enabled


async def test_a_schema_that_knows_nothing_of_signing_says_so(ibex_test_database: TestDatabase) -> None:
    async with ibex_test_database.connect(signing_key=KEY) as db, db.migrator() as migrator:
        await migrator.downgrade("core@-1", allow_destructive=True)
        for verb in (migrator.sign(KEY), migrator.unsign(), migrator.rotate(KEY), migrator.signing()):
            with pytest.raises(MigrationError, match="ibex-db upgrade"):
                await verb
        # A service with a key works on it as before.
        async with db.tenant(ACME):
            pass


async def test_the_function_is_not_taken_away_while_it_is_asked(ibex_test_database: TestDatabase) -> None:
    async with ibex_test_database.connect(signing_key=KEY) as db, db.migrator() as migrator:
        await migrator.sign(KEY)
        with pytest.raises(MigrationError, match="--disable"):
            await migrator.downgrade("core@-1", allow_destructive=True)
        assert (await migrator.signing()).enabled


# -- the command


@pytest.fixture
def migrated(ibex_cluster: Cluster, ibex_template: str) -> Iterator[str]:
    """Give the owner's address of a database with every revision applied."""
    name = f"ibex_test_{uuid4().hex[:12]}"
    asyncio.run(ibex_cluster.create_database(name, template=ibex_template))
    yield ibex_cluster.url(name).render_as_string(hide_password=False)
    asyncio.run(ibex_cluster.drop_database(name))


def invoke(*words: str, key: str = "") -> Result:
    return CliRunner().invoke(build(), ["sign", *words], env={KEY_VARIABLE: key})


def test_the_command_walks_from_a_new_key_to_none(migrated: str) -> None:
    key, new = (json.loads(invoke("--new-key", "--json").stdout)["key"] for _ in range(2))
    assert invoke("--new-key").stdout.strip() != key
    assert "off" in invoke("--status", "--url", migrated).stdout

    enabled = invoke("--enable", "--url", migrated, key=key)
    assert enabled.exit_code == 0
    assert SigningKey(key).id in enabled.stdout
    assert "demand a signature" in enabled.stdout

    rotated = json.loads(invoke("--rotate", "--overlap", "1", "--url", migrated, "--json", key=new).stdout)
    assert [one["id"] for one in rotated["signing"]["keys"]] == [SigningKey(new).id, SigningKey(key).id]
    assert rotated["signing"]["keys"][1]["valid_until"] is not None

    shown = invoke("--status", "--url", migrated).stdout + enabled.stdout + str(rotated)
    assert key not in shown
    assert new not in shown

    disabled = invoke("--disable", "--url", migrated)
    assert disabled.exit_code == 0
    assert "off" in disabled.stdout


@pytest.mark.parametrize("words", [(), ("--enable", "--disable"), ("--status", "--rotate", "--enable")])
def test_the_command_wants_one_thing_at_a_time(words: tuple[str, ...]) -> None:
    assert invoke(*words).exit_code == 2


@pytest.mark.parametrize("step", ["--enable", "--rotate"])
def test_a_key_comes_from_the_environment_only(migrated: str, step: str) -> None:
    without = invoke(step, "--url", migrated)
    bad = invoke(step, "--url", migrated, key="hush")

    assert (without.exit_code, bad.exit_code) == (3, 3)
    assert "--new-key" in without.stderr
    assert "hush" not in bad.stderr + bad.stdout
