"""Database addresses: libpq's, asyncpg's and SQLAlchemy's spellings, made one."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

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

# A URL's authority after the login: names, addresses in brackets, each with or without a port.
_HOSTS = re.compile(r"(?:(?:\[[^\]]*\]|[^:,\[\]]*)(?::\d*)?(?:,|$))*")
# One pair of libpq's keywords, its value quoted or bare; a backslash escapes in both.
_PAIR = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:\\.|[^'\\])*)'|((?:\\.|[^\s'\\])*))(?:\s+|$)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is.

    Attributes:
        url: for people and for SQLAlchemy; its repr hides the password.
        dsn: for asyncpg, which understands sslmode and friends, unix sockets and several hosts.
        timeout: seconds to wait for a connection; None: no limit.
    """

    url: URL
    dsn: str
    timeout: float | None

    def __repr__(self) -> str:
        """Show the address without its password."""
        return f"Address({self.url.render_as_string(hide_password=True)!r})"


def parse(text: str | URL, *, timeout: float | None = 10.0) -> Address:
    """Read a database URL or a libpq connection string.

    Understands ``postgresql://``, ``postgres://``, ``postgresql+asyncpg://`` (any
    driver's name; asyncpg is used) and ``host=... dbname=...``; query parameters
    sslmode (or asyncpg's ``ssl``), sslrootcert, sslcert, sslkey, host, port, user, password,
    connect_timeout (seconds), application_name, options, target_session_attrs.

    Raises:
        ConfigurationError: it is no Postgres address, or asks for what asyncpg cannot do.
    """
    if not isinstance(text, (str, URL)):  # pyright: ignore[reportUnnecessaryIsInstance] - os.environ.get() gives None
        raise ConfigurationError(f"a database URL is a string such as postgresql://user@host/database, not {text!r}")
    spelled = text.render_as_string(hide_password=False) if isinstance(text, URL) else text.strip()
    if "://" not in spelled:
        spelled = _from_keywords(spelled)
    try:
        parts = urlsplit(spelled.replace("#", "%23"))  # libpq knows no fragment: a # belongs to the password
    except ValueError as exc:
        raise _unreadable() from exc
    if parts.scheme.split("+")[0] not in _SCHEMES:
        raise ConfigurationError(
            f"a database URL starts with postgresql://, not {parts.scheme!r}; "
            "for example postgresql://user:password@host:5432/database?sslmode=require"
        )
    login, _, hosts = parts.netloc.rpartition("@")
    if not _HOSTS.fullmatch(hosts):
        raise _unreadable()
    user, _, password = (unquote(part) for part in login.partition(":"))
    kept: list[tuple[str, str]] = []
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key == "user":
            user = value
        elif key == "password":
            password = value  # out of the query, which is shown, and into the login, which is masked
        elif key == "connect_timeout":
            timeout = _seconds(value)
        elif key == "ssl":
            kept.append(("sslmode", {"true": "require", "false": "disable"}.get(value.lower(), value)))
        elif key == "channel_binding":
            _check_channel_binding(value)
        elif key not in _CLIENT_ONLY:
            kept.append((key, value))
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    try:
        # SQLAlchemy reads one host in the usual place, and a list of them only in the query.
        several = [("host", hosts)] if "," in hosts else []
        url = make_url(_written("postgresql+asyncpg", login, "" if several else hosts, parts.path, several + kept))
    except (ArgumentError, ValueError):
        raise _unreadable() from None  # the cause would quote what may be a piece of the password
    return Address(url, _written("postgresql", login, hosts, parts.path, kept), timeout)


def _written(scheme: str, login: str, hosts: str, path: str, query: list[tuple[str, str]]) -> str:
    options = f"?{urlencode(query, quote_via=quote)}" if query else ""
    return f"{scheme}://{login}{'@' if login else ''}{hosts}{path}{options}"


def _unreadable() -> ConfigurationError:
    return ConfigurationError("the database URL cannot be read: check the port and the %-escapes")


def _check_channel_binding(value: str) -> None:
    if value == "require":
        raise ConfigurationError(
            "channel_binding=require is not supported by asyncpg: remove it, and use sslmode=verify-full"
        )


def _seconds(value: str) -> float | None:
    """Read connect_timeout as libpq does: zero or less is no limit."""
    try:
        seconds = float(value)
    except ValueError as exc:
        raise ConfigurationError(f"connect_timeout must be seconds, not {value!r}") from exc
    return seconds if seconds > 0 else None


def _from_keywords(text: str) -> str:
    """Turn libpq's ``key=value key='other value'`` into a URL."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            break
        key, quoted, bare = pair.groups()
        found[key] = _ESCAPED.sub(r"\1", quoted if quoted is not None else bare)
        at = pair.end()
    if not found or at < len(text):
        raise ConfigurationError(
            "a database address is a URL (postgresql://...) or key=value words (host=... dbname=...)"
        )
    user, password = found.pop("user", ""), found.pop("password", "")
    database = found.pop("dbname", "")
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    return _written("postgresql", login, "", f"/{quote(database, safe='')}", list(found.items()))
