"""What OpenTelemetry is told of one request: its spans, a metric, and a log line without the token that was in it."""

import asyncio
import logging
import sys
from tempfile import TemporaryDirectory

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ibex_db import (
    Agent,
    AgentRepository,
    Database,
    EngineSettings,
    MemoryRepository,
    Organization,
    QueryTags,
    Redaction,
    ScopedSession,
    Telemetry,
    tagged,
)

# A service exports to a collector: OTLPSpanExporter in a BatchSpanProcessor, OTLPMetricExporter in a
# PeriodicExportingMetricReader, both handed to trace.set_tracer_provider() and metrics.set_meter_provider().
SPANS, METRICS = InMemorySpanExporter(), InMemoryMetricReader()
TRACERS, METERS = TracerProvider(), MeterProvider([METRICS])
TRACERS.add_span_processor(SimpleSpanProcessor(SPANS))

SHOWN = ("ibex.outcome", "db.response.returned_rows", "ibex.dedup", "ibex.search.plan", "ibex.attempts")


async def main(db: Database) -> None:
    """Handle a request that remembers and searches, and look at what was told of it."""
    await db.upgrade()
    async with db.platform(reason="sign-up") as session:
        org = Organization(name="Acme", slug="acme")
        session.add(org)
    SPANS.clear()

    async def work(session: ScopedSession) -> None:
        agent = await AgentRepository(session).add(Agent(name="Support", slug="support"))
        memories = MemoryRepository(session)
        for said in ("Prefers tea.", "prefers  TEA."):
            await memories.remember(agent_id=agent.id, content=said, category="preference")
        await memories.search(text="tea", limit=5)

    with TRACERS.get_tracer("service").start_as_current_span("POST /messages"), tagged(route="/messages"):
        await db.run(org.id, work)

    for span, depth in tree(SPANS.get_finished_spans()):
        told = {name: value for name, value in (span.attributes or {}).items() if name in SHOWN}
        print("  " * depth + span.name, *(f"{name}={value}" for name, value in told.items()))
    print(*remembered())

    log = logging.getLogger("service")
    log.warning("refused a request with %s", "Bearer ibex_" + "a1" * 35 + "b")


def tree(spans: tuple[ReadableSpan, ...], under: int | None = None, depth: int = 0) -> list[tuple[ReadableSpan, int]]:
    """Return the spans in the order in which they began, each with how deep it lies."""
    found: list[tuple[ReadableSpan, int]] = []
    for span in sorted(spans, key=lambda one: one.start_time or 0):
        if (span.parent.span_id if span.parent else None) == under:
            found += [(span, depth), *tree(spans, span.context.span_id if span.context else 0, depth + 1)]
    return found


def remembered() -> list[str]:
    """Return what the metric of memories says: how many were kept, how many were known."""
    data = METRICS.get_metrics_data()
    return [
        f"{metric.name}{{{(point.attributes or {})['ibex.dedup']!s}}}={point.value}"
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "ibex.memories.remembered"
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    ]


async def throw_away() -> None:
    """Run on an embedded Postgres that is gone afterwards."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(Redaction())
    logging.basicConfig(handlers=[handler], format="%(levelname)s %(name)s %(message)s")
    telemetry = Telemetry(tracer_provider=TRACERS, meter_provider=METERS, recall_guard=0.01)
    settings = EngineSettings(query_tags=QueryTags(always={"application": "messages"}))
    with TemporaryDirectory(prefix="ibex-telemetry-", ignore_cleanup_errors=True) as home:
        async with Database.embedded(home, settings=settings, telemetry=telemetry) as db:
            await main(db)


if __name__ == "__main__":
    asyncio.run(throw_away())
