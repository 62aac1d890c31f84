"""What a memory may say, and when two memories say the same: limits, normal form and hash.

The rule, stated once: two contents are the same when their normal forms are
equal.  The normal form of a text is

1. Unicode NFC, so that ``e`` + combining acute equals ``é``;
2. case-folded (``str.casefold``: ``ß`` equals ``ss``), and NFC again, because
   folding can take composed characters apart;
3. every run of white space (``str.split``) made one space, both ends trimmed.

``content_hash`` is the SHA-256 of the normal form's UTF-8, in hexadecimal.
Nothing else computes it: the database stores it, but SQL has no case folding
that agrees with Python's.
"""

import unicodedata
from hashlib import sha256
from typing import Final

from ibex_db_core import validation

MIN_CONTENT_LENGTH: Final = 1
"""Shortest content, in characters; content of nothing but white space is refused, too."""

MAX_CONTENT_LENGTH: Final = 8192
"""Longest content, in characters (code points) as given, before it is normalised."""

MAX_TAG_LENGTH: Final = 64
"""Longest tag, in characters, after it is normalised."""


def normalise(content: str) -> str:
    """Return the normal form, which is its own normal form."""
    if content.isascii():  # a third of the time, and the same result: NFC leaves ASCII alone
        return " ".join(content.casefold().split())
    folded = unicodedata.normalize("NFC", content).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def content_hash(content: str) -> str:
    """Return the SHA-256 of the normal form, 64 hexadecimal digits in lower case."""
    return sha256(normalise(content).encode()).hexdigest()


def normalise_tag(tag: str) -> str:
    """Return a tag as it is stored: the normal form of its text, 1 to 64 characters.

    Raises:
        InvalidInputError: not a string, blank, or too long.
    """
    return validation.text("tag", normalise(validation.text("tag", tag)), shortest=1, longest=MAX_TAG_LENGTH)
