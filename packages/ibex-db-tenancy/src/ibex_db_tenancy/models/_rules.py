"""Rules of text columns, said once: the check in Python and the CHECK in the table come from the same words."""

from dataclasses import dataclass

from sqlalchemy import CheckConstraint


@dataclass(frozen=True, slots=True)
class TextRule:
    """How long a text may be, and what it must look like.

    Attributes:
        shortest: characters, at least; from 1 on the text must not be blank either.
        longest: characters, at most.
        pattern: a regular expression that Python and Postgres read alike, and what it means.
    """

    shortest: int
    longest: int
    pattern: tuple[str, str] | None = None

    @property
    def info(self) -> dict[str, object]:
        """What validation.py reads from the column."""
        info: dict[str, object] = {"length": (self.shortest, self.longest)}
        if self.pattern is not None:
            info["pattern"] = self.pattern
        return info

    def checks(self, column: str) -> tuple[CheckConstraint, ...]:
        """Return the CHECK constraints ``<table>_<column>_length`` and, with a pattern, ``..._format``."""
        found: list[CheckConstraint] = []
        if self.shortest < self.longest:  # otherwise the pattern says the one length that is right
            length = f"char_length({column}) BETWEEN {self.shortest} AND {self.longest}"
            if self.shortest and self.pattern is None:
                length += rf" AND {column} ~ '\S'"
            found.append(CheckConstraint(length, name=f"{column}_length"))
        if self.pattern is not None:
            found.append(CheckConstraint(f"{column} ~ '{self.pattern[0]}'", name=f"{column}_format"))
        return tuple(found)


NAME = TextRule(1, 255)
DESCRIPTION = TextRule(0, 10_000)
SLUG = TextRule(1, 100, ("^[a-z0-9-]+$", "lower-case letters, digits and hyphens"))

# The shape only: whether anybody reads mail there, no pattern can tell.  320 is
# 64 for the local part, the @, and 255 for the domain (RFC 3696, section 3).
EMAIL = TextRule(3, 320, (r"^[^@\s]+@[^@\s]+\.[^@\s]+$", "an e-mail address, name@example.com"))

SHA256_HEX = TextRule(64, 64, ("^[0-9a-f]{64}$", "a SHA-256, 64 lower-case hexadecimal digits"))
