"""Tags on statements, in sqlcommenter's format: who asked, for the eyes of pg_stat_activity and of slow query logs."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import Connection

from ibex_db_core import validation
from ibex_db_core.errors import ConfigurationError, InvalidInputError

__all__ = ["QueryTags", "tagged", "tagging"]

# Postgres keeps track_activity_query_size bytes of a statement, 1024 by default: most of it should be the statement.
_LONGEST = 200

_around: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("ibex_query_tags", default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryTags:
    """What every statement says of who sent it: ``/*application='billing',route='%2Fsearch'*/`` at its end.

    The text of a statement is what drivers know a prepared one by, so each combination of tags is prepared by itself,
    on each connection.  Tags take few values: a route's template, never its arguments, and never an organization.

    Attributes:
        always: on every statement, for example ``{"application": "billing"}``; ``tagged()`` adds to them.
        traceparent: also the current span's, of OpenTelemetry.  No two traces share one, so that no statement is found
            prepared: one round trip more for each.  For a service under investigation.

    Raises:
        InvalidInputError: a key or a value that is no text, or too long.
    """

    always: Mapping[str, str] = field(default_factory=dict[str, str])
    traceparent: bool = False

    def __post_init__(self) -> None:
        """Check the tags."""
        _checked(self.always)


@contextmanager
def tagged(**tags: str) -> Generator[None]:
    """Have the statements of this block, in this task and in tasks begun in it, carry these tags too.

    Where the Database has no QueryTags, they are not sent.

    Raises:
        InvalidInputError: a value that is no text, or is longer than 200 characters.

    Example:
        >>> with tagged(route="/agents/{id}"):
        ...     async with db.tenant(org.id) as session:
        ...         print((await AgentRepository(session).get(agent.id)).name)
        Support
    """
    token = _around.set((*_around.get(), *_checked(tags)))
    try:
        yield
    finally:
        _around.reset(token)


def tagging(settings: QueryTags) -> Callable[..., tuple[str, Any]]:
    """Return what adds the tags to a statement: SQLAlchemy's before_cursor_execute.

    Raises:
        ConfigurationError: traceparent is asked for, and OpenTelemetry is not installed.
    """
    always = _checked(settings.always)
    traceparent = _traceparent() if settings.traceparent else None

    def add(
        _connection: Connection, _cursor: object, statement: str, parameters: object, _context: object, _many: object
    ) -> tuple[str, object]:
        tags = (*always, *_around.get())
        if traceparent is not None and (current := traceparent()) is not None:
            tags = (*tags, ("traceparent", current))
        # Whoever wrote a comment of their own keeps it: the format forbids a second one.
        if not tags or "/*" in statement or "--" in statement:
            return statement, parameters
        return f"{statement} {_comment(tags)}", parameters

    return add


@lru_cache(maxsize=1024)
def _comment(tags: tuple[tuple[str, str], ...]) -> str:
    """Return the comment: sorted, percent-encoded, so that neither a quote nor the end of a comment gets through."""
    chosen = dict(tags)
    return "/*" + ",".join(f"{quote(key, safe='')}='{quote(chosen[key], safe='')}'" for key in sorted(chosen)) + "*/"


def _checked(tags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    for key, value in tags.items():
        if not key:
            raise InvalidInputError("tags", key, "must have a name for each value")
        validation.text(key, value, longest=_LONGEST)
    return tuple(tags.items())


def _traceparent() -> Callable[[], str | None]:
    try:
        from opentelemetry import trace
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            "QueryTags(traceparent=True) needs OpenTelemetry's API, which is not installed: uv add 'ibex-db-core[otel]'"
        ) from exc

    def current() -> str | None:
        found = trace.get_current_span().get_span_context()
        if not found.is_valid:
            return None
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{cast('int', found.trace_flags):02x}"

    return current
