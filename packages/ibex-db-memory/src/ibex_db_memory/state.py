"""The canonical form of a checkpoint's state, and its hash.

jsonb keeps values, not text: 1e16 comes back as 10000000000000000, -0.0 as 0.0,
and keys in another order.  A hash of plain ``json.dumps`` would thus
call intact states damaged.  The canonical form is one that survives the trip:
compact JSON in ASCII, keys sorted, whole numbers as integers.
"""

import json
from decimal import Decimal
from hashlib import sha256

from ibex_db_core.types import JsonObject


def canonical_state(state: JsonObject) -> bytes:
    """Return the canonical form: equal for a state and for what jsonb makes of it."""
    plain = json.loads(json.dumps(state, allow_nan=False), parse_float=_number)
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def state_hash(state: JsonObject) -> str:
    """Return the SHA-256 of the canonical form, 64 hexadecimal digits in lower case."""
    return fingerprint(state)[0]


def fingerprint(state: JsonObject) -> tuple[str, int]:
    """Return state_hash and the length of the canonical form in bytes."""
    canonical = canonical_state(state)
    return sha256(canonical).hexdigest(), len(canonical)


def _number(text: str) -> int | float:
    exact = Decimal(text)
    return int(exact) if exact == exact.to_integral_value() else float(text)
