"""Read replicas: which of them serves a read-only transaction, and when none may."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.types import String

from ibex_db_core import validation
from ibex_db_core.errors import (
    ConfigurationError,
    ConnectionLostError,
    InvalidInputError,
    PoolExhaustedError,
    UnsafeRoleError,
)
from ibex_db_core.translation import translated
from ibex_db_core.url import Address

__all__ = ["Replica", "ReplicaStatus", "Replicas", "check_position"]

_log = logging.getLogger("ibex_db.replicas")

Verify = Callable[[AsyncEngine], Awaitable[None]]

# A replica that answered this lately is taken at its word; a position is asked for each time.
_FRESH_SECONDS = 1.0

# One that failed is left alone for so long, and twice as long each time it fails again.
_REST_SECONDS = 1.0
_LONGEST_REST_SECONDS = 60.0

# How often a replica is asked whether it has come to a position: its walreceiver acts within milliseconds.
_POLL_SECONDS = 0.005

_STATE = text(
    "SELECT pg_is_in_recovery(), COALESCE(pg_last_wal_replay_lsn() >= CAST(CAST(:after AS text) AS pg_lsn), false), "
    # A replica that has replayed all it received is not behind, however long the primary has been silent.
    "CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0.0 "
    "ELSE COALESCE(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()), 0.0) END::float8"
).bindparams(bindparam("after", type_=String()))


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What is known of a replica.

    Attributes:
        address: without the password.
        healthy: it may be asked now.
        why: what was wrong with it when it was last asked; None: nothing.
        lag: seconds that it was behind when it was last asked; None: not asked yet.
    """

    address: str
    healthy: bool
    why: str | None
    lag: float | None


class Replica:
    """One of them, and how it has fared."""

    def __init__(self, address: Address, engine: AsyncEngine) -> None:
        self.engine = engine
        self._address = address.url.render_as_string(hide_password=True)
        self._verified = False
        self._asked_at = float("-inf")
        self._lag: float | None = None
        self._why: str | None = None
        self._rests_until = float("-inf")
        self._rest = _REST_SECONDS

    @property
    def rests(self) -> bool:
        """It failed a moment ago, and is left alone."""
        return time.monotonic() < self._rests_until

    @property
    def status(self) -> ReplicaStatus:
        """What is known of it."""
        return ReplicaStatus(self._address, not self.rests, self._why, self._lag)

    def failed(self, why: str) -> None:
        """Leave it alone for a while."""
        self._why = why
        self._asked_at = float("-inf")
        if self.rests:
            return  # one outage, which others met at the same time, is one failure
        self._rests_until = time.monotonic() + self._rest
        facts = {"replica": self._address, "rest_seconds": self._rest}
        _log.warning("read replica %s is left alone for %g s: %s", self._address, self._rest, why, extra=facts)
        self._rest = min(2 * self._rest, _LONGEST_REST_SECONDS)

    async def serves(self, verify: Verify, after: str | None, deadline: float, most_lag: float | None) -> bool:
        """Tell whether it can be asked now, and has come to a position; waits for that until the deadline."""
        if after is None and time.monotonic() < self._asked_at + _FRESH_SECONDS:
            return most_lag is None or (self._lag or 0.0) <= most_lag
        try:
            if not self._verified:
                await verify(self.engine)
                self._verified = True
            return await self._asked(after, deadline, most_lag)
        except UnsafeRoleError:
            raise  # no outage: a login that must not be used is told as loudly as the primary's
        except PoolExhaustedError:
            return False  # it is busy, not ill
        except (ConnectionLostError, ConfigurationError) as exc:
            self.failed(str(exc))
            return False

    async def _asked(self, after: str | None, deadline: float, most_lag: float | None) -> bool:
        while True:
            with translated():
                async with self.engine.connect() as connection:
                    standby, there, lag = (await connection.execute(_STATE, {"after": after or "0/0"})).one()
            if not standby:
                # Promoted: it writes a history of its own, which must not be taken for the primary's.
                self.failed("it is no replica: it has been promoted, or was never one")
                return False
            self._lag, self._asked_at = lag, time.monotonic()
            if there or after is None:
                self._why, self._rest = None, _REST_SECONDS
                if most_lag is None or lag <= most_lag:
                    return True
                self._why = f"it is {lag:.1f} s behind, more than {most_lag:g}"
                return False
            if time.monotonic() >= deadline:
                self._why = f"it did not come to {after} in time"
                return False
            await asyncio.sleep(_POLL_SECONDS)


class Replicas:
    """All of them, asked in turn.

    Args:
        every: in the order given.
        verify: raises where an engine's login could read past the policies.
        wait: seconds to wait for a replica to come to a position.
        most_lag: seconds that a replica may be behind; None: any.
    """

    def __init__(self, every: Sequence[Replica], verify: Verify, *, wait: float, most_lag: float | None) -> None:
        self._every = every
        self._verify = verify
        self._wait = wait
        self._most_lag = most_lag
        self._next = 0

    async def choose(self, after: str | None) -> Replica | None:
        """Return one that is well and has come to a position; None where the primary must be asked.

        All that are left share one deadline: a position that none has come to costs its wait once.
        """
        deadline = time.monotonic() + self._wait
        first = self._next
        self._next = (first + 1) % len(self._every)
        for number in range(len(self._every)):
            replica = self._every[(first + number) % len(self._every)]
            if not replica.rests and await replica.serves(self._verify, after, deadline, self._most_lag):
                return replica
        return None

    @property
    def statuses(self) -> Sequence[ReplicaStatus]:
        """What is known of each."""
        return [replica.status for replica in self._every]

    async def dispose(self) -> None:
        """Close every pool."""
        for replica in self._every:
            await replica.engine.dispose()


def check_position(after: str) -> str:
    """Check a position of the write-ahead log, as Database.position() gives it.

    Raises:
        InvalidInputError: it is none.
    """
    validation.text("after", after, shortest=1)
    high, slash, low = after.partition("/")
    if not slash or not all(0 < len(part) <= 8 and set(part) <= _HEX for part in (high, low)):  # noqa: PLR2004 - of 32 bits
        raise InvalidInputError("after", after, "must be a position as `await db.position()` gives it: 16/B374D848")
    return after


_HEX = frozenset("0123456789abcdefABCDEF")
