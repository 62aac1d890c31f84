"""Logs without contents, tokens, vectors and passwords: a filter for handlers, and what it is made of.

What a pattern can tell (a token, a vector, an address with its password, what
SQLAlchemy and Postgres quote) is taken out of any text.  A content looks like
any other text, so of an error of ours or of the driver's nothing is kept but
what it is made of: its class, its field, its rule, its constraint, its SQLSTATE.
"""

import logging
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from ibex_db_core.errors import UNSHOWN, IbexError, InvalidInputError, size_of

__all__ = ["Redaction", "redact"]

# In the order in which they are applied: what Postgres and SQLAlchemy quote may hold any of the others.
# A text may be of any length, and whoever wrote it may wish us ill: where a pattern begins to match and does not end,
# it takes the rest (which was cut off), or is stopped by its next beginning, so that none reads a text twice.
_PATTERNS: Sequence[tuple[re.Pattern[str], str]] = (
    # SQLAlchemy, and Postgres in its fields after the first line.
    (re.compile(r"\[parameters: .*?(?=\n\(Background on this error|\Z)", re.DOTALL), "[parameters: removed]"),
    (
        re.compile(r"(DETAIL|CONTEXT|QUERY|INTERNAL QUERY):\s.*?(?=\n(?:HINT|\(Background|\[SQL)|\Z)", re.DOTALL),
        r"\1: removed",
    ),
    (re.compile(r"Failing row contains \((?:.*\)|.*)", re.DOTALL), "Failing row contains (removed)"),
    (
        re.compile(r"\bKey \(((?:[^()]++|\([^()]*+\))*+)\)=\(.*?(?:\)(?= (?:already|is|conflicts))|\Z)", re.DOTALL),
        r"Key (\1)=(removed)",
    ),
    (
        re.compile(r"(invalid input syntax for [^:]{0,200}|invalid input for query argument \$\d+): .*", re.DOTALL),
        r"\1: removed",
    ),
    # A token (ibex_db_tenancy.tokens.TOKEN_PATTERN; whatever is longer too), and the hashes of tokens and contents.
    (re.compile(r"ibex_[0-9A-Za-z]{60,}"), "ibex_(token removed)"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "(hash removed)"),
    # Passwords in addresses, as a URL and as libpq has them.
    (re.compile(r"(?<=://)([^\s:/@]*):[^\s/]*@"), r"\1:***@"),
    (
        re.compile(r"""(\bpassword['"]?\s*[=:]\s*)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s'"&,}]+)""", re.IGNORECASE),
        r"\1***",
    ),
    # Eight numbers in a row are a vector, whatever it is written in; and one that was cut off.
    (
        re.compile(r"[\[({]\s*(?:[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?[,\s]+){7}[^\])}]*[\])}]?", re.IGNORECASE),
        "(vector removed)",
    ),
)

_SECRETS = re.compile(
    r"passw(?:or)?d|passphrase|secret|(?:^|[-_])tokens?$|authorization|cookie|api[-_]?key|private[-_]?key",
    re.IGNORECASE,
)
"""In the name of whatever is no number: of a key in a mapping, or of an extra of a record."""

_REMOVED = "(message removed)"
_DRIVERS = ("sqlalchemy", "asyncpg", "pgvector")

# What the standard library puts into a record; whatever else is there is an extra of the caller's.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "exc_text"}


class Redaction(logging.Filter):
    """Takes contents, tokens, vectors and passwords out of every record of the handler that it is added to.

    Of an error of ibex-db, SQLAlchemy or the driver it keeps the class and the facts, and of its traceback the
    places; of other errors the message, as far as no pattern finds anything in it.  The record itself is changed,
    for every handler after this one.  Add it to handlers, not to loggers: a logger's filters do not see what comes
    from the loggers below it.

    Example:
        >>> import logging
        >>> handler = logging.StreamHandler()
        >>> handler.addFilter(Redaction())
        >>> record = logging.makeLogRecord({"msg": "connects to %s", "args": ("postgresql://me:secret@db/ibex",)})
        >>> handler.filter(record) and record.getMessage()
        'connects to postgresql://me:***@db/ibex'
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record, and let it pass."""
        message = cast("object", record.msg)
        if isinstance(message, Mapping) and not record.args:
            record.msg = _value("", cast("object", message))  # structlog's formatter wants it as it is
        else:
            record.msg, record.args = self._message(record), None
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = "".join(_told(record.exc_info[1], set())).rstrip("\n")
        elif record.exc_text:
            record.exc_text = redact(record.exc_text)
        record.exc_info = None  # formatters and exporters would read the messages from it
        for name in record.__dict__.keys() - _OWN:
            setattr(record, name, _value(name, record.__dict__[name]))
        return True

    @staticmethod
    def _message(record: logging.LogRecord) -> str:
        args = record.args
        if isinstance(args, Mapping):
            args = {key: _argument(value, str(key)) for key, value in args.items()}
        elif args:
            args = tuple(_argument(value) for value in args)
        try:
            said = redact(record.msg)
            return redact(said % args) if args else said
        except (TypeError, ValueError, KeyError):  # logging would print it with its arguments, to stderr
            return f"{redact(record.msg)} (its arguments do not fit)"


def redact(value: object) -> str:
    """Return a text without tokens, vectors, passwords and what databases quote; an error without its message's values.

    For places that a logging filter does not reach: a hook of an error reporter, a processor of structlog.

    Args:
        value: a text, an error, or anything whose text is asked for.

    Example:
        >>> redact("sent ibex_" + "a1" * 40)
        'sent ibex_(token removed)'
    """
    if isinstance(value, BaseException):
        return _error(value)
    said = str(value)
    for pattern, instead in _PATTERNS:
        said = pattern.sub(instead, said)
    return said


def _error(exc: BaseException) -> str:
    if isinstance(exc, InvalidInputError):
        where = "" if exc.index is None else f"item {exc.index}: "
        return f"{where}{exc.field} {redact(exc.rule)}; got {size_of(exc.value)}"
    if isinstance(exc, IbexError):
        facts = [
            f"{name}={redact(found)}"
            for name in ("model", "constraint", "table", "sqlstate", "entity", "from_state", "to_state", "index")
            if isinstance(found := getattr(exc, name, None), str | int) and not isinstance(found, bool)
        ]
        return ", ".join(facts) or (type(exc).__doc__ or "").splitlines()[0]
    if type(exc).__module__.partition(".")[0] in _DRIVERS:
        sqlstate = getattr(exc, "sqlstate", None) or getattr(getattr(exc, "orig", None), "sqlstate", None)
        return f"sqlstate={sqlstate}" if sqlstate else _REMOVED
    return redact(str(exc))


def _told(exc: BaseException, met: set[int], *, of_value: bool = False) -> Iterator[str]:
    """Yield a traceback's lines as Python writes them, but for the errors' messages.

    Args:
        exc: the error, told after what it was raised from.
        met: the errors that have been told.
        of_value: a value was refused because of it, so that its message may quote it, as an enum's ValueError does.
    """
    met.add(id(exc))
    before = exc.__cause__ if exc.__cause__ is not None else None if exc.__suppress_context__ else exc.__context__
    if before is not None and id(before) not in met:
        yield from _told(before, met, of_value=of_value or isinstance(exc, InvalidInputError))
        yield (
            "\nThe above exception was the direct cause of the following exception:\n\n"
            if exc.__cause__ is not None
            else "\nDuring handling of the above exception, another exception occurred:\n\n"
        )
    if exc.__traceback__ is not None:
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(exc.__traceback__)
    kind = type(exc)
    said = _REMOVED if of_value and not isinstance(exc, IbexError) else _error(exc)
    yield f"{kind.__module__}.{kind.__qualname__}: {said}\n"
    for note in cast("Sequence[object]", getattr(exc, "__notes__", ())):
        yield f"{redact(note)}\n"
    if isinstance(exc, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", exc).exceptions:
            yield from (f"  | {line}" for line in _told(one, met))


def _argument(value: object, name: str = "") -> object:
    """Return what a message is formatted with: numbers as they are, for %d; errors and texts as they may be told."""
    told = _value(name, value)
    return told if told is None or isinstance(told, bool | int | float) else _Text(redact(told))


class _Text(str):
    """A text that is shown as it is, by %s and by %r."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _value(name: str, value: object) -> object:
    """Return a value as it may be told under a name: an extra of a record, or what lies in a mapping."""
    if name in UNSHOWN:
        return size_of(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if _SECRETS.search(name):
        return _Text("***")
    if isinstance(value, Mapping):
        return {str(key): _value(str(key), found) for key, found in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        if any(isinstance(item, Mapping | list | tuple) for item in items):
            return [_value("", item) for item in items]
        return redact(items)
    return redact(value)
