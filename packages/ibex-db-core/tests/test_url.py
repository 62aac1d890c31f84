"""Addresses: every spelling that people paste, one meaning, and never a password in a message."""

import pytest
from sqlalchemy import make_url

from ibex_db_core.errors import ConfigurationError
from ibex_db_core.url import parse


@pytest.mark.parametrize(
    "spelling",
    [
        "postgresql://ann:secret@db.example:5433/ibex?sslmode=require",
        "postgres://ann:secret@db.example:5433/ibex?sslmode=require",
        "postgresql+asyncpg://ann:secret@db.example:5433/ibex?ssl=require",
        "postgresql+asyncpg://ann:secret@db.example:5433/ibex?ssl=true",
        "postgresql+psycopg://ann:secret@db.example:5433/ibex?sslmode=require",
        "postgresql+psycopg2://ann:secret@db.example:5433/ibex?sslmode=require",
        "  postgresql://ann:secret@db.example:5433/ibex?sslmode=require\n",
        "postgresql://db.example:5433/ibex?user=ann&password=secret&sslmode=require",
        "postgresql://ann:secret@db.example:5433/ibex?sslmode=require&channel_binding=prefer&gssencmode=disable",
        "postgresql://ann:secret@db.example:5433/ibex?keepalives=1&sslmode=require&client_encoding=utf8",
    ],
)
def test_spellings_of_one_address_mean_one_address(spelling: str) -> None:
    address = parse(spelling)

    assert address.dsn == "postgresql://ann:secret@db.example:5433/ibex?sslmode=require"
    assert address.url.drivername == "postgresql+asyncpg"
    assert (address.url.username, address.url.password) == ("ann", "secret")
    assert (address.url.host, address.url.port, address.url.database) == ("db.example", 5433, "ibex")


def test_a_sqlalchemy_url_object_keeps_its_password() -> None:
    address = parse(make_url("postgresql+psycopg://ann:se%40cret@db.example/ibex"))

    assert address.url.password == "se@cret"
    assert address.dsn == "postgresql://ann:se%40cret@db.example/ibex"


def test_libpq_keywords_are_understood() -> None:
    address = parse("host=db.example port=5433 dbname=ibex user=ann password='it\\'s a secret' sslmode=verify-full")

    assert address.url.password == "it's a secret"
    assert (address.url.username, address.url.database) == ("ann", "ibex")
    assert dict(address.url.query) == {"host": "db.example", "port": "5433", "sslmode": "verify-full"}


def test_a_unix_socket_is_named_by_host_in_the_query_or_escaped_in_its_place() -> None:
    in_query = parse("postgresql://ann@/ibex?host=/run/postgresql&port=5433")
    in_place = parse("postgresql://ann@%2Frun%2Fpostgresql:5433/ibex")

    assert in_query.dsn == "postgresql://ann@/ibex?host=%2Frun%2Fpostgresql&port=5433"
    assert in_place.dsn == "postgresql://ann@%2Frun%2Fpostgresql:5433/ibex"


def test_an_address_without_any_authority_keeps_its_slashes() -> None:
    assert parse("postgresql:///ibex").dsn == "postgresql:///ibex"
    assert parse("postgresql:///ibex?host=/run/x").dsn == "postgresql:///ibex?host=%2Frun%2Fx"


def test_several_hosts_are_all_tried() -> None:
    address = parse("postgresql://ann:secret@one.example:5432,two.example:5433/ibex?target_session_attrs=read-write")

    assert address.dsn == (
        "postgresql://ann:secret@one.example:5432,two.example:5433/ibex?target_session_attrs=read-write"
    )
    assert address.url.query["host"] == "one.example:5432,two.example:5433"
    assert address.url.database == "ibex"


def test_an_ipv6_host_keeps_its_brackets() -> None:
    address = parse("postgresql://ann@[::1]:5433/ibex")

    assert (address.url.host, address.url.port) == ("::1", 5433)
    assert address.dsn == "postgresql://ann@[::1]:5433/ibex"


@pytest.mark.parametrize(
    ("written", "password"),
    [("p%40ss", "p@ss"), ("p@ss", "p@ss"), ("p#ss", "p#ss"), ("p%23ss", "p#ss"), ("p%25ss", "p%ss"), ("a:b", "a:b")],
)
def test_a_password_is_read_with_its_special_characters(written: str, password: str) -> None:
    address = parse(f"postgresql://ann:{written}@db.example/ibex")

    assert address.url.password == password
    assert parse(address.dsn).url.password == password


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("", 10.0), ("?connect_timeout=3", 3.0), ("?connect_timeout=0", None), ("?connect_timeout=-1", None)],
)
def test_connect_timeout_counts_seconds_and_zero_is_no_limit(written: str, seconds: float | None) -> None:
    assert parse(f"postgresql://db.example/ibex{written}").timeout == seconds


@pytest.mark.parametrize(
    "spelling",
    [
        "postgresql://ann:geheim@db.example/ibex",
        "postgresql://db.example/ibex?user=ann&password=geheim",
        "user=ann password=geheim host=db.example",
        "postgresql://ann:geheim@one.example,two.example/ibex",
    ],
)
def test_a_password_is_never_shown(spelling: str) -> None:
    address = parse(spelling)

    assert address.url.password == "geheim"  # it is there
    assert "geheim" not in repr(address)
    assert "geheim" not in str(address.url)
    assert "geheim" not in repr(address.url)


@pytest.mark.parametrize(
    ("spelling", "told"),
    [
        ("mysql://ann@db.example/ibex", "starts with postgresql://"),
        ("ibex", "is a URL"),
        ("", "is a URL"),
        ("host='db", "is a URL"),
        ("postgresql://db.example:many/ibex", "check the port"),
        ("postgresql://[::1/ibex", "check the port"),
        ("postgresql://db.example/ibex?connect_timeout=soon", "connect_timeout must be seconds"),
        ("postgresql://db.example/ibex?channel_binding=require", "sslmode=verify-full"),
    ],
)
def test_what_is_no_address_is_refused_with_a_way_out(spelling: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        parse(spelling)


def test_an_unreadable_address_does_not_quote_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse("postgresql://ann:geheim/x@db.example/ibex")

    assert "geheim" not in f"{caught.value} {caught.value.__cause__}"
