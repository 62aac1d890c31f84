"""Whom a token speaks for, in one statement, and how often it was used, without a lock that anybody waits for.

A use is counted in memory.  Once a minute an authentication of the same
organization, of whichever token, writes what was counted within the statement
that looks its own token up; a row that another transaction has locked is left
out and stays in memory.  So a token that 64 requests show at once is read 64
times and written once, and nobody waits.  Closing the Database writes the rest;
a crash loses the uses that no row shows yet, and nothing else.
"""

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Row, Text, Uuid, bindparam, text

from ibex_db_core.errors import IbexError, InvalidTokenError
from ibex_db_core.identity import TokenIdentity, TokenKind
from ibex_db_core.tenant import ScopedSession
from ibex_db_tenancy.tokens import parse

if TYPE_CHECKING:
    from ibex_db_core.database import Database

_log = logging.getLogger("ibex_db.authentication")

# last_used_at answers "is this token still in use", for which a minute is exact,
# and one write a minute is nothing beside the reads that it stands for.
_FLUSH_EVERY = 60.0

# So that the one request that writes the others' counts is not held up by them.
_MOST_TOKENS = 500

# Some 200 bytes each.  Beyond it the organization that was silent for the longest loses its counts.
_MOST_ORGANIZATIONS = 100_000

# A dead server must not hold up the end of the service.
_CLOSING_SECONDS = 5.0

# Scalar subqueries, not joins: one index probe each, whatever the statistics say.
_FOUND = """
    SELECT t.id, t.prefix, t.kind, t.user_id, t.agent_id, t.permissions, t.expires_at
    FROM ibex_core.tokens t
    WHERE t.org_id = :org_id AND t.token_hash = :hash
      AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now())
      AND (SELECT o.status FROM ibex_core.organizations o
           WHERE o.id = :org_id AND o.deleted_at IS NULL) IN ('active', 'trial')
      AND (t.user_id IS NULL
           OR (SELECT u.status FROM ibex_core.users u
               WHERE u.org_id = :org_id AND u.id = t.user_id AND u.deleted_at IS NULL) = 'active')
      AND (t.agent_id IS NULL
           OR (SELECT a.status FROM ibex_core.agents a
               WHERE a.org_id = :org_id AND a.id = t.agent_id AND a.deleted_at IS NULL) IN ('active', 'paused'))
"""

_KEYS = (bindparam("org_id", type_=Uuid()), bindparam("hash", type_=Text()))

_LOOK_UP = text(_FOUND).bindparams(*_KEYS)

# The same, and the counts.  Half a millisecond more, most of it planning.
_LOOK_UP_AND_COUNT = text(f"""
    WITH found AS MATERIALIZED ({_FOUND}), used AS (
        -- What was counted in memory, and this use where the token is valid.
        SELECT token_hash,
               uses + CASE WHEN token_hash = :hash AND EXISTS (SELECT FROM found) THEN 1 ELSE 0 END AS uses,
               CASE WHEN token_hash = :hash AND EXISTS (SELECT FROM found) THEN 0 ELSE seconds_ago END AS seconds_ago
        FROM unnest(CAST(:hashes AS text[]), CAST(:uses AS bigint[]), CAST(:seconds_ago AS float8[]))
             AS given (token_hash, uses, seconds_ago)
    ), free AS MATERIALIZED (
        SELECT t.id, used.uses, used.seconds_ago
        FROM used JOIN ibex_core.tokens t ON t.org_id = :org_id AND t.token_hash = used.token_hash
        WHERE used.uses > 0
        FOR NO KEY UPDATE OF t SKIP LOCKED
    ), counted AS (
        UPDATE ibex_core.tokens t
        SET use_count = t.use_count + free.uses,
            last_used_at = GREATEST(t.last_used_at, now() - make_interval(secs => free.seconds_ago))
        FROM free WHERE t.org_id = :org_id AND t.id = free.id
        RETURNING t.token_hash
    )
    SELECT found.*,
           ARRAY(SELECT used.token_hash
                 FROM used JOIN ibex_core.tokens t ON t.org_id = :org_id AND t.token_hash = used.token_hash
                 WHERE used.uses > 0 AND NOT EXISTS (SELECT FROM counted WHERE counted.token_hash = used.token_hash)
           ) AS locked
    FROM (SELECT) AS always LEFT JOIN found ON true
""").bindparams(*_KEYS)


@dataclass(slots=True)
class _Use:
    """Uses of one token that no row shows yet, and when the last one was."""

    count: int = 0
    last: float = 0.0


@dataclass(slots=True)
class _Ledger:
    """Uses of one organization's tokens, by the tokens' hashes."""

    uses: dict[str, _Use] = field(default_factory=dict[str, _Use])
    flushed_at: float = -math.inf

    def take(self) -> dict[str, _Use]:
        """Take out what one statement writes."""
        return {token_hash: self.uses.pop(token_hash) for token_hash in list(islice(self.uses, _MOST_TOKENS))}

    def add(self, token_hash: str, count: int, last: float) -> None:
        """Count uses."""
        use = self.uses.setdefault(token_hash, _Use())
        use.count += count
        use.last = max(use.last, last)


class TokenAuthenticator:
    """Looks tokens up for one Database, and counts their uses.

    Not authenticated: a token that is revoked or has expired; one of an
    organization that is suspended, cancelled or deleted; one of a user who is
    not active; one of an agent that is suspended, archived or deleted.  An agent that is
    paused keeps its tokens: it may ask whether it is to go on.

    Args:
        flush_every: seconds between two writes of one organization's counts, from this process.
    """

    def __init__(self, *, flush_every: float = _FLUSH_EVERY) -> None:
        self._flush_every = flush_every
        self._ledgers: OrderedDict[UUID, _Ledger] = OrderedDict()

    async def authenticate(self, database: "Database", plaintext: str) -> TokenIdentity:
        """Return whom a token speaks for.

        Raises:
            InvalidTokenError: it opens nothing; why is not told.
        """
        parsed = parse(plaintext)
        org_id, now = parsed.org_id, monotonic()
        # Only a token that was found opens a ledger: forged organizations leave
        # nothing behind, and what is due depends on no token that is refused.
        ledger = self._ledgers.get(org_id)
        given: dict[str, _Use] = {}
        if ledger is not None and now - ledger.flushed_at >= self._flush_every:
            given = ledger.take()
            if not ledger.uses:  # otherwise the next one writes more of them
                ledger.flushed_at = now
            given.setdefault(parsed.hash, _Use(last=now))
        identity, locked = await self._look_up(database, org_id, parsed.hash, given)
        # Raised after the transaction, so that what it counted for others is committed.
        if identity is None:
            raise InvalidTokenError
        ledger = self._ledger(org_id)
        if not given or parsed.hash in locked:
            ledger.add(parsed.hash, 1, now)
        return identity

    async def flush(self, database: "Database") -> None:
        """Write every use that no row shows yet; gives up after 5 seconds, and raises nothing."""
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                for org_id, ledger in list(self._ledgers.items()):
                    for _ in range(0, len(ledger.uses), _MOST_TOKENS):
                        await self._look_up(database, org_id, "", ledger.take())
        except (IbexError, TimeoutError) as exc:
            why = str(exc) or "it took too long"
            _log.warning("uses of tokens were not counted: %s", why, extra={"error_type": type(exc).__name__})

    async def _look_up(
        self, database: "Database", org_id: UUID, token_hash: str, given: dict[str, _Use]
    ) -> tuple[TokenIdentity | None, set[str]]:
        """Look one token up and write the uses of others; return also whose rows were locked."""
        try:
            async with database.tenant(org_id) as session:
                identity, locked = await _run(session, org_id, token_hash, given)
        except BaseException:
            self._put_back(org_id, given, given)
            raise
        self._put_back(org_id, given, locked)
        return identity, locked

    def _put_back(self, org_id: UUID, given: dict[str, _Use], hashes: Iterable[str]) -> None:
        ledger = self._ledgers.get(org_id)
        for token_hash in hashes:
            if ledger is not None and (use := given[token_hash]).count:
                ledger.add(token_hash, use.count, use.last)

    def _ledger(self, org_id: UUID) -> _Ledger:
        ledger = self._ledgers.setdefault(org_id, _Ledger())
        self._ledgers.move_to_end(org_id)
        if len(self._ledgers) > _MOST_ORGANIZATIONS:
            self._ledgers.popitem(last=False)
        return ledger


async def _run(
    session: ScopedSession, org_id: UUID, token_hash: str, given: dict[str, _Use]
) -> tuple[TokenIdentity | None, set[str]]:
    key = {"org_id": org_id, "hash": token_hash}
    if not given:
        row = (await session.execute(_LOOK_UP, key)).one_or_none()
        return (None if row is None else _identity(org_id, row)), set()
    now = monotonic()
    counts = {
        "hashes": list(given),
        "uses": [use.count for use in given.values()],
        # Ages, not moments: the server's clock is the only one that counts.
        "seconds_ago": [max(0.0, now - use.last) for use in given.values()],
    }
    row = (await session.execute(_LOOK_UP_AND_COUNT, key | counts)).one()
    return (None if row.id is None else _identity(org_id, row)), set(row.locked)


def _identity(org_id: UUID, row: Row[*tuple[Any, ...]]) -> TokenIdentity:
    return TokenIdentity(
        org_id=org_id,
        token_id=row.id,
        prefix=row.prefix,
        kind=TokenKind(row.kind),
        user_id=row.user_id,
        agent_id=row.agent_id,
        permissions=row.permissions,
        expires_at=row.expires_at,
    )
