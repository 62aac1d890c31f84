"""Units of work, as they are told: one transaction, or one with its attempts."""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Self
from uuid import UUID

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ibex_db_core.errors import CommitUnknownError, PoolExhaustedError
from ibex_db_core.telemetry.facts import Fact, kind_of
from ibex_db_core.telemetry.tally import UNIT, Tally

if TYPE_CHECKING:
    from ibex_db_core.telemetry.watch import Watch
    from ibex_db_core.tenant import ScopedSession

__all__ = ["Run", "Unit"]


class Unit:
    """One unit of work: a span that is the current one inside it, and how it ended.

    Attributes:
        outcome: ``commit``, ``rollback`` or ``unknown``.
        tally: its statements.
    """

    def __init__(self, watch: "Watch", session: "ScopedSession", *, read_only: bool, replica: bool) -> None:
        self._watch = watch
        self._session = session
        self._kind = "platform" if session.org_id is None else "tenant"
        self._read_only = read_only
        self.outcome = "rollback"
        self.tally = Tally()
        attributes: dict[str, Fact] = {
            **watch.place(session),
            **watch.org(session.org_id),
            "ibex.unit": self._kind,
            "ibex.read_only": read_only,
            "ibex.replica": replica,
        }
        self._span = watch.tracer.start_span(f"ibex {self._kind}", kind=SpanKind.INTERNAL, attributes=attributes)
        self._began = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        self._began = perf_counter()
        self._token = context.attach(trace.set_span_in_context(self._span))
        self._outer = UNIT.set(self.tally)
        return self

    async def connect(self) -> None:
        """Get a connection, and tell how long that took."""
        pool = self._watch.pool(self._session)
        began = perf_counter()
        self._watch.tell("db.client.connection.pending_requests", 1, pool)
        try:
            await self._session.connection()
        except (PoolTimeoutError, PoolExhaustedError):
            self._watch.tell("db.client.connection.timeouts", 1, pool)
            raise
        finally:
            waited = perf_counter() - began
            self._watch.tell("db.client.connection.pending_requests", -1, pool)
            self._watch.tell("db.client.connection.wait_time", waited, pool)
            self._span.set_attribute("ibex.connection.wait", waited)

    def committed(self) -> None:
        """Say that COMMIT was answered."""
        self.outcome = "commit"

    def __exit__(self, kind: object, exc: BaseException | None, trace_: object) -> None:
        """End it, with what came of it."""
        seconds = perf_counter() - self._began
        if isinstance(exc, CommitUnknownError) and self.outcome != "commit":
            self.outcome = "unknown"
        labels: dict[str, Fact] = {"ibex.unit": self._kind, "ibex.outcome": self.outcome}
        if exc is not None:
            labels.update(self._watch.failed(self._span, exc))
        self._span.set_attributes({"ibex.outcome": self.outcome, "ibex.statements": self.tally.statements})
        if self.tally.written:
            self._span.set_attribute("ibex.rows.written", self.tally.written)
        self._watch.tell("ibex.transaction.duration", seconds, {**labels, "ibex.read_only": self._read_only})
        if UNIT.get() is self.tally:
            # Of a child of its task, as asyncio.wait_for() makes one before Python 3.12, the context is a copy: there
            # is nothing to go back to, and it ends with the child.
            with suppress(ValueError):
                UNIT.reset(self._outer)
                context.detach(self._token)
        # Else it is left in another task than it was entered in, whose context is its own.
        self._span.end()


class Run:
    """A unit of work that is tried again: a span around its attempts."""

    def __init__(self, watch: "Watch", org_id: UUID) -> None:
        self._watch = watch
        self._attributes = {"db.system.name": "postgresql", **watch.org(org_id)}
        self._attempts = 0
        self._last: BaseException | None = None

    @contextmanager
    def entered(self) -> Generator["Run"]:
        """Be the current span."""
        with self._watch.tracer.start_as_current_span(
            "ibex run", attributes=self._attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            self._span = span
            try:
                yield self
            except BaseException as exc:
                self._watch.failed(span, exc)
                raise
            finally:
                span.set_attribute("ibex.attempts", self._attempts)

    @contextmanager
    def attempt(self) -> Generator[None]:
        """Begin one of its attempts; the second and later ones count as retries of what failed before."""
        self._attempts += 1
        if self._last is not None:
            self._watch.tell("ibex.retries", 1, {"error.type": kind_of(self._last)})
        try:
            yield
        except Exception as exc:
            self._last = exc
            self._span.add_event("ibex.attempt.failed", {"ibex.attempt": self._attempts, "error.type": kind_of(exc)})
            raise
