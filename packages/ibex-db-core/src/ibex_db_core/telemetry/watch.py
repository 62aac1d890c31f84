"""Watch: what one Database tells of its units of work and of its repositories' verbs."""

import hashlib
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core.base import SCHEMA
from ibex_db_core.engine import EngineSettings
from ibex_db_core.errors import IbexError
from ibex_db_core.telemetry.call import Call
from ibex_db_core.telemetry.facts import Fact, kind_of
from ibex_db_core.telemetry.instruments import SCOPE, instruments_of
from ibex_db_core.telemetry.pool import WatchedPool, place_of
from ibex_db_core.telemetry.tally import CALL, Tally, count
from ibex_db_core.telemetry.unit import Run, Unit
from ibex_db_core.telemetry.verbs import watched
from ibex_db_core.url import Address

if TYPE_CHECKING:
    from ibex_db_core.scoped import Scoped
    from ibex_db_core.telemetry.settings import Telemetry
    from ibex_db_core.tenant import ScopedSession

__all__ = ["Watch"]


class Watch:
    """Tells OpenTelemetry what one Database does.

    Args:
        settings: what to tell, and whom.
    """

    def __init__(self, settings: "Telemetry") -> None:
        self.settings = settings
        self.tracer = trace.get_tracer(SCOPE, tracer_provider=settings.tracer_provider)
        self._instruments = instruments_of(settings.meter_provider)
        self._pools: WeakKeyDictionary[Engine, WatchedPool] = WeakKeyDictionary()
        self._places: WeakKeyDictionary[Engine, Mapping[str, Fact]] = WeakKeyDictionary()
        self._told: WeakSet[IbexError] = WeakSet()

    # -- engines

    def engine(
        self,
        role: str,
        address: Address,
        settings: EngineSettings,
        make: Callable[[Callable[[Any], Any]], AsyncEngine],
    ) -> AsyncEngine:
        """Make an engine whose pool and statements are watched.

        Args:
            role: whose connections they are.
            address: where to.
            settings: with the pool's sizes.
            make: makes it, given what wraps its way to connect.
        """
        place = place_of(address, SCHEMA)
        pool = WatchedPool(
            role, place, settings.pool_size + settings.max_overflow, settings.pool_size, self._instruments
        )
        engine = make(pool.connecting)
        pool.watch(engine.sync_engine)
        event.listen(engine.sync_engine, "after_cursor_execute", count)
        self._pools[engine.sync_engine], self._places[engine.sync_engine] = pool, place
        return engine

    def close(self) -> None:
        """Tell of no pool any more."""
        for pool in self._pools.values():
            pool.close()

    # -- what goes on

    @property
    def inside_a_verb(self) -> bool:
        """A verb is at work in this task."""
        return CALL.get() is not None

    def unit(self, session: "ScopedSession", *, read_only: bool, replica: bool = False) -> "Unit":
        """Watch a unit of work, for as long as it is entered."""
        return Unit(self, session, read_only=read_only, replica=replica)

    def run(self, org_id: UUID) -> "Run":
        """Watch a unit of work with its attempts, for as long as it is entered."""
        return Run(self, org_id)

    def repository(self, repository: "Scoped[Any]") -> None:
        """Watch the verbs of a repository."""
        repository.__class__ = watched(type(repository))

    def call(
        self,
        repository: "Scoped[Any]",
        name: str,
        limit: int | None,
        arguments: Mapping[str, object],
        *,
        current: bool = True,
    ) -> "Call":
        """Watch a call of a verb, for as long as it is entered."""
        asked = arguments.get("limit", limit)
        return Call(self, repository, name, asked if isinstance(asked, int) else None, arguments, current=current)

    @contextmanager
    def aside(self, name: str) -> Generator[Span]:
        """Do something for telemetry's own sake, in a span of its own; verbs in it are not told of."""
        with self.tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            outer = CALL.set(Tally())
            try:
                yield span
            finally:
                CALL.reset(outer)

    def guards_recall(self) -> bool:
        """Tell whether this search is one of those that are answered twice."""
        return random.random() < self.settings.recall_guard  # noqa: S311 - a sample

    # -- telling

    def tell(self, metric: str, value: float, attributes: Mapping[str, Fact]) -> None:
        """Record or add a value."""
        self._instruments.tell(metric, value, attributes)

    def org(self, org_id: UUID | None) -> Mapping[str, Fact]:
        """Name an organization as the settings want it."""
        if org_id is None or self.settings.org == "off":
            return {}
        if self.settings.org == "hashed":
            return {"ibex.org.id": hashlib.sha256(org_id.bytes).hexdigest()[:16]}
        return {"ibex.org.id": str(org_id)}

    def place(self, session: "ScopedSession") -> Mapping[str, Fact]:
        """Say where a session's database is."""
        return self._places.get(cast("Engine", session.sync_session.bind), {})

    def pool(self, session: "ScopedSession") -> Mapping[str, Fact]:
        """Name the pool of a session's connections."""
        found = self._pools.get(cast("Engine", session.sync_session.bind))
        return found.labels if found is not None else {}

    def failed(self, span: Span, exc: BaseException) -> Mapping[str, Fact]:
        """Say on a span what kind of error ended it; never its message, which may quote what a user gave."""
        kind: dict[str, Fact] = {"error.type": kind_of(exc)}
        span.set_status(StatusCode.ERROR)
        span.set_attributes(kind)
        if (sqlstate := getattr(exc, "sqlstate", None)) is not None:
            span.set_attribute("db.response.status_code", str(sqlstate))
        if isinstance(exc, IbexError) and exc not in self._told:
            self._told.add(exc)  # a verb's error usually ends its unit of work too: it is one
            self.tell("ibex.errors", 1, kind)
        return kind
