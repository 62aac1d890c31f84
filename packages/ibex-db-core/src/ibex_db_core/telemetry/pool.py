"""The pool of one engine, watched by its events: how many connections, how long they are waited for, made and held."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import perf_counter
from typing import Any, cast

import asyncpg
from opentelemetry.metrics import Observation
from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection

from ibex_db_core.telemetry.facts import Fact
from ibex_db_core.telemetry.instruments import Instruments
from ibex_db_core.url import Address

__all__ = ["WatchedPool", "place_of"]

_NAME = "db.client.connection.pool.name"
_TAKEN = "ibex_taken_at"

Connect = Callable[[], Awaitable[asyncpg.Connection]]


def place_of(address: Address, schema: str) -> Mapping[str, Fact]:
    """Return where a database is, in the words of the database conventions."""
    url = address.url
    port = url.port or url.query.get("port")
    place: dict[str, Fact] = {"db.system.name": "postgresql", "db.namespace": f"{url.database or ''}|{schema}"}
    if host := url.host or url.query.get("host"):
        place["server.address"] = host if isinstance(host, str) else ",".join(host)
    if isinstance(port, int | str) and str(port).isdecimal():
        place["server.port"] = int(port)
    return place


class WatchedPool:
    """The pool of one engine.

    Args:
        role: whose connections they are: ``service``, ``platform``, ``replica 1``.
        place: of the database.
        most: connections that it opens.
        idle: connections that it keeps open.
        instruments: that it tells.
    """

    def __init__(self, role: str, place: Mapping[str, Fact], most: int, idle: int, instruments: Instruments) -> None:
        where = f"{place.get('server.address', 'localhost')}:{place.get('server.port', 5432)}/{place['db.namespace']}"
        self.labels: Mapping[str, Fact] = {_NAME: f"{role}@{where}"}
        self._limits = {"db.client.connection.max": most, "db.client.connection.idle.max": idle}
        self._instruments = instruments
        self._engine: Engine | None = None

    def connecting(self, connect: Connect) -> Connect:
        """Return the same, with the time that it takes told."""

        async def timed() -> asyncpg.Connection:
            began = perf_counter()
            connection = await connect()
            self._instruments.tell("db.client.connection.create_time", perf_counter() - began, self.labels)
            return connection

        return timed

    def watch(self, engine: Engine) -> None:
        """Watch the pool that an engine has, and those that it will have."""
        self._engine = engine
        event.listen(engine, "checkout", self._taken)
        event.listen(engine, "checkin", self._given_back)
        self._instruments.gauges.add(self)

    def close(self) -> None:
        """Tell of it no more."""
        self._instruments.gauges.discard(self)

    def _taken(self, _connection: DBAPIConnection, entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        cast("dict[str, object]", entry.info)[_TAKEN] = perf_counter()

    def _given_back(self, _connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        taken = cast("float | None", cast("dict[str, Any]", entry.info).pop(_TAKEN, None))
        if taken is not None:
            self._instruments.tell("db.client.connection.use_time", perf_counter() - taken, self.labels)

    def observe(self, metric: str) -> Iterable[Observation]:
        """Return what the pool holds now."""
        if metric in self._limits:
            return [Observation(self._limits[metric], self.labels)]
        pool = cast("AsyncAdaptedQueuePool", self._engine.pool) if self._engine is not None else None
        if pool is None:
            return []
        return [
            Observation(count, {**self.labels, "db.client.connection.state": state})
            for state, count in (("used", pool.checkedout()), ("idle", pool.checkedin()))
        ]
