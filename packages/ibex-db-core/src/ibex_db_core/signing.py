"""The signed tenant: the key that services share with the database, and what each transaction signs with it.

With signing on (``ibex-db sign --enable``), ``app.current_org_id`` opens
nothing by itself.  The restrictive floor of every tenant table asks
``ibex_core.signed_org()``, which believes the setting only beside

    app.current_org_signature = <mac>.<moment>.<pid>.<key id>
    mac = HMAC-SHA256(key, database '.' organization '.' moment '.' pid)

of the backend it runs on, made within WINDOW seconds of the transaction's
beginning.  SQL injected under the app role can set both settings and sign
nothing.  What that leaves is said in decision 30.
"""

import hashlib
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from ibex_db_core.errors import ConfigurationError
from ibex_db_core.policies import SIGNATURE_SETTING

__all__ = ["ASK", "KEY_VARIABLE", "Signer", "SigningKey", "key_of_environment"]

KEY_VARIABLE = "IBEX_SIGNING_KEY"

_BLOCK = 64  # bytes that SHA-256 takes at a time
_FORMAT = re.compile(r"[0-9a-fA-F]{64}")
_DISTINCT = 8  # hexadecimal digits that 32 random bytes surely have

ASK = "SELECT current_database()::text, floor(extract(epoch FROM now()))::bigint, pg_backend_pid()"
"""What a signature is made from, asked of the server: for connections whose backend we do not know."""

_CLOCK = "SELECT current_database()::text AS database, extract(epoch FROM clock_timestamp())::float8 AS moment"


class SigningKey:
    """A key of 32 bytes, written as 64 hexadecimal digits; it shows itself to nobody.

    Args:
        digits: the key, for example from ``ibex-db sign --new-key``.

    Attributes:
        id: 8 digits that tell keys apart, safe to show.
        inner: HMAC's first block; with it, as good as the key.
        outer: HMAC's second block.

    Raises:
        ConfigurationError: not 64 hexadecimal digits, or nothing that chance would make.
    """

    __slots__ = ("_started", "id", "inner", "outer")

    def __init__(self, digits: object) -> None:
        if not isinstance(digits, str) or not _FORMAT.fullmatch(digits.strip()):
            raise ConfigurationError(
                f"the signing key ({KEY_VARIABLE}) must be 64 hexadecimal digits: `ibex-db sign --new-key` makes one"
            )
        if len(set(digits.strip().lower())) < _DISTINCT:
            raise ConfigurationError(
                f"the signing key ({KEY_VARIABLE}) is too regular to be random: `ibex-db sign --new-key` makes one"
            )
        key = bytes.fromhex(digits.strip())
        padded = key.ljust(_BLOCK, b"\0")
        self.inner = bytes(byte ^ 0x36 for byte in padded)
        self.outer = bytes(byte ^ 0x5C for byte in padded)
        self.id = hashlib.sha256(b"ibex-db signing key " + key).hexdigest()[:8]
        self._started = hashlib.sha256(self.inner), hashlib.sha256(self.outer)

    @staticmethod
    def new() -> str:
        """Return the digits of a new key, from the system's randomness."""
        return secrets.token_hex(32)

    def mac(self, message: str) -> str:
        """Return HMAC-SHA256 of a message, in hexadecimal."""
        inner, outer = (started.copy() for started in self._started)
        inner.update(message.encode())
        outer.update(inner.digest())
        return outer.hexdigest()

    def sign(self, org_id: UUID, database: str, moment: int, pid: int) -> str:
        """Return the signature of a tenant, for the transaction of one backend that begins at a moment (in epoch s)."""
        return f"{self.mac(f'{database}.{org_id}.{moment}.{pid}')}.{moment}.{pid}.{self.id}"

    def __repr__(self) -> str:
        """Show which key it is, never the key."""
        return f"<SigningKey {self.id}>"

    def __reduce__(self) -> str | tuple[object, ...]:
        """Refuse to be pickled: a key has no business in a queue or a cache."""
        raise TypeError("a SigningKey is not pickled: give the other process its own")


@dataclass(slots=True)
class Signer:
    """Signs for one connection.

    Attributes:
        key: what it signs with.
        asks: the backend is not known before the transaction has one (PgBouncer): ask each time.
    """

    key: SigningKey
    asks: bool = False
    _database: str = ""
    _offset: float = field(default=0.0)

    async def learn(self, connection: asyncpg.Connection) -> None:
        """Learn the database's name and how far its clock is from ours, once for a connection."""
        before = time.time()
        (row,) = await connection.fetch(_CLOCK)
        self._database, self._offset = row["database"], row["moment"] - (before + time.time()) / 2

    def now(self) -> int:
        """Return the server's time, in epoch seconds, as well as we know it."""
        return int(time.time() + self._offset)

    def sign(self, org_id: UUID, moment: int, pid: int) -> str:
        """Return the signature for a transaction that begins at a moment."""
        return self.key.sign(org_id, self._database, moment, pid)


def set_signature(signature: str) -> str:
    """Return the statement that carries a signature; made of digits and dots by us, so a literal is safe."""
    return f"SET LOCAL {SIGNATURE_SETTING} = '{signature}'"


def key_of_environment() -> SigningKey | None:
    """Return the key that IBEX_SIGNING_KEY holds, if it holds any.

    Raises:
        ConfigurationError: it holds something else.
    """
    digits = os.environ.get(KEY_VARIABLE, "").strip()
    return SigningKey(digits) if digits else None
