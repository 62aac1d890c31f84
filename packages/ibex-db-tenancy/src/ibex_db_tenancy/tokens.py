"""Plaintext tokens: made once, shown once, kept only as their hash.

A token is 76 characters that survive URLs, shells and double clicks::

    ibex_ <secret, 43> <organization, 22> <checksum, 6>

Each part is a number in base 62, of fixed width: 256 random bits, the
organization's id, and the CRC-32 of all that stands before it.  So a secret
scanner finds tokens (:data:`TOKEN_PATTERN`), a typing error is told from a
stranger without a query, and the look-up goes to one organization: a forged id
finds nothing there.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from ibex_db_core.errors import InvalidTokenError

__all__ = ["TOKEN_PATTERN", "Minted", "ParsedToken", "matches", "mint", "parse", "token_hash"]

TOKEN_PATTERN: Final = r"ibex_[0-9A-Za-z]{71}"  # noqa: S105 - the shape, no token
"""What every token looks like, for secret scanners and log filters."""

_BRAND = "ibex_"
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_VALUES = {char: value for value, char in enumerate(_ALPHABET)}

# The fewest base-62 digits that hold 256, 128 and 32 bits.
_SECRET, _ORG, _CHECKSUM = 43, 22, 6
_PARTS = re.compile(rf"{_BRAND}([0-9A-Za-z]{{{_SECRET}}})([0-9A-Za-z]{{{_ORG}}})[0-9A-Za-z]{{{_CHECKSUM}}}")

# Eight digits of the secret tell the tokens of a list apart (47 bits) and leave
# 208 bits to guess.
_SHOWN = len(_BRAND) + 8


@dataclass(frozen=True, slots=True)
class Minted:
    """A new token.

    Attributes:
        plaintext: hand it to its owner and forget it; left out of repr().
        prefix: its first 13 characters, safe to store, show and log.
        hash: what the database keeps, see :func:`token_hash`.
    """

    plaintext: str = field(repr=False)
    prefix: str
    hash: str


@dataclass(frozen=True, slots=True)
class ParsedToken:
    """What a well-formed token says; whether it is known, only its organization's rows can tell.

    Attributes:
        org_id: where to look it up.
        hash: what to look up.
    """

    org_id: UUID
    hash: str


def mint(org_id: UUID) -> Minted:
    """Make a token of an organization, with 256 bits from the operating system's generator."""
    body = _BRAND + _encode(secrets.randbits(256), _SECRET) + _encode(org_id.int, _ORG)
    plaintext = body + _checksum(body)
    return Minted(plaintext=plaintext, prefix=plaintext[:_SHOWN], hash=token_hash(plaintext))


def parse(plaintext: str) -> ParsedToken:
    """Read a token's organization and hash, without a query.

    Nothing is trimmed or repaired: a token is right to the last character.

    Raises:
        InvalidTokenError: another length, brand or alphabet, or a checksum that does not match; never says which.
    """
    try:
        found = _PARTS.fullmatch(plaintext)
    except TypeError:  # None or bytes: what a header held, whatever the annotation promised
        raise InvalidTokenError from None
    if found is None:
        raise InvalidTokenError
    secret, organization = _decode(found[1]), _decode(found[2])
    body, checksum = plaintext[:-_CHECKSUM], plaintext[-_CHECKSUM:]
    # 22 digits reach beyond 128 bits and 43 beyond 256: no token of ours does.
    if not hmac.compare_digest(checksum, _checksum(body)) or organization >> 128 or secret >> 256:
        raise InvalidTokenError
    return ParsedToken(org_id=UUID(int=organization), hash=token_hash(plaintext))


def token_hash(plaintext: str) -> str:
    """Return the SHA-256 of a token, 64 lower-case hexadecimal digits.

    Fast and unsalted on purpose: slow hashes protect what people choose, and
    256 random bits cannot be guessed at any speed.
    """
    return hashlib.sha256(plaintext.encode(errors="surrogatepass")).hexdigest()


def matches(plaintext: str, stored_hash: str) -> bool:
    """Tell whether a token is the one behind a stored hash, in time that does not depend on where they differ."""
    return hmac.compare_digest(token_hash(plaintext).encode(), stored_hash.encode())


def _checksum(body: str) -> str:
    return _encode(zlib.crc32(body.encode()), _CHECKSUM)


def _encode(number: int, width: int) -> str:
    digits: list[str] = []
    for _ in range(width):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _decode(digits: str) -> int:
    number = 0
    for char in digits:
        number = number * len(_ALPHABET) + _VALUES[char]
    return number
