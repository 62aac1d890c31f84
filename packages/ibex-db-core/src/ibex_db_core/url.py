"""Database addresses: libpq's, asyncpg's and SQLAlchemy's spellings, made one."""

import shlex
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ibex_db_core.errors import ConfigurationError

# libpq knows these and asyncpg does not; left in, they would reach the server
# as settings and be refused there.  They tune the client only, so they may go.
_CLIENT_ONLY = frozenset(
    {
        "client_encoding",
        "fallback_application_name",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)
_SCHEMES = ("postgres", "postgresql")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is.

    Attributes:
        url: for people and for SQLAlchemy; its repr hides the password.
        dsn: for asyncpg, which understands sslmode and friends, unix sockets and several hosts.
        timeout: seconds to wait for a connection.
    """

    url: URL
    dsn: str
    timeout: float

    def __repr__(self) -> str:
        """Show the address without its password."""
        return f"Address({self.url.render_as_string(hide_password=True)!r})"


def parse(text: str | URL, *, timeout: float = 10.0) -> Address:
    """Read a database URL or a libpq connection string.

    Understands ``postgresql://``, ``postgres://``, ``postgresql+asyncpg://`` (any
    driver's name; asyncpg is used) and ``host=... dbname=...``; query parameters
    sslmode (or asyncpg's ``ssl``), sslrootcert, sslcert, sslkey, host, port,
    connect_timeout (seconds), application_name, options, target_session_attrs.

    Raises:
        ConfigurationError: it is no Postgres address, or asks for what asyncpg cannot do.
    """
    spelled = text.render_as_string(hide_password=False) if isinstance(text, URL) else text.strip()
    if "://" not in spelled:
        spelled = _from_keywords(spelled)
    parts = urlsplit(spelled)
    if parts.scheme.split("+")[0] not in _SCHEMES:
        raise ConfigurationError(
            f"a database URL starts with postgresql://, not {parts.scheme or spelled[:12]!r}; "
            "for example postgresql://user:password@host:5432/database?sslmode=require"
        )
    query = parse_qsl(parts.query, keep_blank_values=True)
    kept: list[tuple[str, str]] = []
    for key, value in query:
        if key == "connect_timeout":
            timeout = _seconds(value)
        elif key == "ssl":
            kept.append(("sslmode", {"true": "require", "false": "disable"}.get(value.lower(), value)))
        elif key == "channel_binding":
            if value == "require":
                raise ConfigurationError(
                    "channel_binding=require is not supported by asyncpg: remove it, and use sslmode=verify-full"
                )
        elif key not in _CLIENT_ONLY:
            kept.append((key, value))
    dsn = parts._replace(scheme="postgresql", query=urlencode(kept, quote_via=quote)).geturl()
    if not parts.netloc and "://" not in dsn:
        dsn = dsn.replace("postgresql:", "postgresql://", 1)  # geturl() drops an empty authority
    try:
        url = make_url(dsn).set(drivername="postgresql+asyncpg")
    except (ArgumentError, ValueError) as exc:
        raise ConfigurationError("the database URL cannot be read: check the port and the %-escapes") from exc
    return Address(url, dsn, timeout)


def _seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError as exc:
        raise ConfigurationError(f"connect_timeout must be seconds, not {value!r}") from exc


def _from_keywords(text: str) -> str:
    """Turn libpq's ``key=value key='other value'`` into a URL."""
    try:
        pairs = [cast("tuple[str, str]", tuple(word.split("=", 1))) for word in shlex.split(text)]
        found = dict(pairs)
    except ValueError as exc:
        raise ConfigurationError(
            "a database address is a URL (postgresql://...) or key=value words (host=... dbname=...)"
        ) from exc
    user, password = found.pop("user", ""), found.pop("password", "")
    database = found.pop("dbname", "")
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    return f"postgresql://{login}{'@' if login else ''}/{quote(database, safe='')}?{urlencode(found, quote_via=quote)}"
