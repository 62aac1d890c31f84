"""What a service's OpenTelemetry would have been told, kept in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

Labels = Mapping[str, object]


@dataclass(frozen=True)
class Point:
    """One number of a metric: of a histogram how many values, and their sum."""

    labels: Labels
    count: int
    total: float


@dataclass
class Ear:
    """Both providers, and what they were told."""

    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)

    def __post_init__(self) -> None:
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """Every span that has ended, in the order in which they began."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def tree(self, under: int | None = None) -> list[object]:
        """Return the names of spans: each followed by the list of those inside it, where there are any."""
        told: list[object] = []
        for span in self.spans:
            if (span.parent.span_id if span.parent else None) == under:
                told.append(span.name)
                if inside := self.tree(span.context.span_id if span.context else 0):
                    told.append(inside)
        return told

    def span(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def attributes(self, name: str) -> Labels:
        return self.span(name).attributes or {}

    def points(self, metric: str) -> Sequence[Point]:
        """Every number of a metric, as it stands."""
        data = self.reader.get_metrics_data()
        found: list[Point] = []
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for one in scope.metrics:
                    if one.name == metric:
                        for point in one.data.data_points:
                            total = getattr(point, "sum", None)
                            value = getattr(point, "value", total)
                            found.append(Point(point.attributes or {}, getattr(point, "count", 1), float(value or 0)))
        return found

    def everything(self) -> str:
        """All that was told, as one text, for a search in it."""
        data = self.reader.get_metrics_data()
        return "\n".join([*(span.to_json() for span in self.spans), data.to_json() if data is not None else ""])
