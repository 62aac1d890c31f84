"""Calls of repositories' verbs, as they are told."""

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self, cast

from opentelemetry import context, trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from ibex_db_core.telemetry.facts import Fact, Verb, seen
from ibex_db_core.telemetry.tally import CALL, Tally

if TYPE_CHECKING:
    from ibex_db_core.scoped import Scoped
    from ibex_db_core.telemetry.watch import Watch
    from ibex_db_core.tenant import ScopedSession

__all__ = ["Call"]


class Call:
    """One call of a verb: a span, and what its result says.

    Attributes:
        rows: that were yielded so far, of a verb that yields them.
        tally: its statements.
    """

    def __init__(
        self,
        watch: "Watch",
        repository: "Scoped[Any]",
        name: str,
        asked: int | None,
        arguments: Mapping[str, object],
        *,
        current: bool,
    ) -> None:
        self._watch = watch
        self._name = name
        self._asked = asked
        self._arguments = arguments
        self._current = current
        self._result: object = None
        self.rows = 0
        self.tally = Tally()
        session = cast("ScopedSession", repository.session)
        table = str(repository.model.__tablename__)
        self._labels: dict[str, Fact] = {
            **watch.place(session),
            "db.operation.name": name,
            "db.collection.name": table,
        }
        self._span: Span = INVALID_SPAN
        if watch.settings.verbs:
            self._span = watch.tracer.start_span(
                f"{name} {table}",
                kind=SpanKind.CLIENT,
                attributes={**self._labels, **watch.org(repository.org_id)},
            )

    def __enter__(self) -> Self:
        """Begin."""
        self._began = perf_counter()
        if self._current:
            self._outer = CALL.set(self.tally)
            self._token = context.attach(trace.set_span_in_context(self._span)) if self._watch.settings.verbs else None
        return self

    def returned(self, result: object) -> None:
        """Say what it returned."""
        self._result = result

    def __exit__(self, kind: object, exc: BaseException | None, trace_: object) -> None:
        """End it, with what came of it."""
        seconds = perf_counter() - self._began
        if self._current:
            CALL.reset(self._outer)
            if self._token is not None:
                context.detach(self._token)
        labels = self._labels
        if exc is not None and not isinstance(exc, GeneratorExit):
            labels = {**labels, **self._watch.failed(self._span, exc)}
        else:
            self._facts(seconds)
        self._watch.tell("db.client.operation.duration", seconds, labels)
        self._span.set_attribute("ibex.statements", self.tally.statements)
        if self.tally.written:
            self._span.set_attribute("ibex.rows.written", self.tally.written)
        self._span.end()

    def _facts(self, seconds: float) -> None:
        found = seen(self._result, Verb(self._name, seconds, self._asked, self._arguments))
        rows = found.rows if self._current else self.rows
        if self._asked is not None:
            self._span.set_attribute("ibex.rows.asked", self._asked)
        if rows is not None:
            self._span.set_attribute("db.response.returned_rows", rows)
        self._span.set_attributes(dict(found.attributes))
        for measure in found.measures:
            self._watch.tell(measure.metric, measure.value, measure.attributes)
