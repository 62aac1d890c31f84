"""The metrics: names, units and what they mean; made once for each provider, however many Databases there are."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from ibex_db_core.telemetry.facts import Fact

__all__ = ["METRICS", "SCOPE", "Gauges", "Instruments", "instruments_of"]

SCOPE = "ibex_db"
"""The instrumentation scope of every span and metric."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric is.

    Attributes:
        kind: of instrument; ``observed`` is asked for by the reader.
        unit: in UCUM.
        meaning: for people.
        bounds: of a histogram's buckets.
    """

    kind: Literal["histogram", "counter", "updown", "observed"]
    unit: str
    meaning: str
    bounds: tuple[float, ...] | None = None


# What the database conventions advise for db.client.operation.duration.
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_ROWS = (0.0, 1.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
# Nobody alerts on a recall of a half: what matters lies near 1.
_SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)

METRICS: Mapping[str, Metric] = {
    "db.client.operation.duration": Metric("histogram", "s", "Duration of database client operations.", _SECONDS),
    "db.client.connection.count": Metric("observed", "{connection}", "Connections of the pool, by state."),
    "db.client.connection.max": Metric("observed", "{connection}", "The most connections that the pool opens."),
    "db.client.connection.idle.max": Metric("observed", "{connection}", "The most that it keeps open idle."),
    "db.client.connection.pending_requests": Metric("updown", "{request}", "Units of work that wait for one."),
    "db.client.connection.timeouts": Metric("counter", "{timeout}", "Units of work that waited in vain."),
    "db.client.connection.wait_time": Metric("histogram", "s", "Time to get a connection from the pool.", _SECONDS),
    "db.client.connection.create_time": Metric("histogram", "s", "Time to make a new connection.", _SECONDS),
    "db.client.connection.use_time": Metric("histogram", "s", "Time between taking and giving back one.", _SECONDS),
    "ibex.transaction.duration": Metric("histogram", "s", "Units of work, by outcome.", _SECONDS),
    "ibex.retries": Metric("counter", "{attempt}", "Attempts of db.run() after the first, by what had failed."),
    "ibex.errors": Metric("counter", "{error}", "Errors of verbs and units of work, by class, each once."),
    "ibex.search.duration": Metric("histogram", "s", "Searches of memories, by mode and plan.", _SECONDS),
    "ibex.search.rows.asked": Metric("histogram", "{row}", "The limit of searches.", _ROWS),
    "ibex.search.rows.returned": Metric("histogram", "{row}", "The hits of searches.", _ROWS),
    "ibex.search.recall": Metric("histogram", "1", "Share of the true hits that an index search found.", _SHARES),
    "ibex.memories.remembered": Metric("counter", "{memory}", "Memories that were kept, or known already."),
}


class Observed(Protocol):
    """What tells a number when it is asked."""

    def observe(self, metric: str) -> Iterable[Observation]:
        """Return what a metric is now."""
        ...


class Gauges:
    """What readers ask for: the pools of every Database that is open."""

    def __init__(self) -> None:
        self._sources: WeakSet[Observed] = WeakSet()

    def add(self, source: Observed) -> None:
        """Ask this one too, for as long as somebody else holds it."""
        self._sources.add(source)

    def discard(self, source: Observed) -> None:
        """Ask it no more."""
        self._sources.discard(source)

    def callback(self, metric: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """Return what a reader calls."""

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [found for source in list(self._sources) for found in source.observe(metric)]

        return observe


class Instruments:
    """The metrics of one provider."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(SCOPE)
        self.gauges = Gauges()
        self._record: dict[str, Callable[[float, Mapping[str, Fact]], None]] = {}
        for name, what in METRICS.items():
            if what.kind == "observed":
                meter.create_observable_up_down_counter(
                    name, callbacks=[self.gauges.callback(name)], unit=what.unit, description=what.meaning
                )
            elif what.kind == "histogram":
                self._record[name] = meter.create_histogram(
                    name,
                    unit=what.unit,
                    description=what.meaning,
                    explicit_bucket_boundaries_advisory=list(what.bounds or ()),
                ).record
            elif what.kind == "counter":
                self._record[name] = meter.create_counter(name, unit=what.unit, description=what.meaning).add
            else:
                self._record[name] = meter.create_up_down_counter(name, unit=what.unit, description=what.meaning).add

    def tell(self, metric: str, value: float, attributes: Mapping[str, Fact]) -> None:
        """Record or add a value."""
        self._record[metric](value, attributes)


_made: "WeakKeyDictionary[MeterProvider, Instruments]" = WeakKeyDictionary()


def instruments_of(provider: MeterProvider | None) -> Instruments:
    """Return the metrics of a provider; None: of the one that the service has set."""
    chosen = provider if provider is not None else metrics.get_meter_provider()
    if chosen not in _made:
        _made[chosen] = Instruments(chosen)
    return _made[chosen]
