"""Claim: something said, whether it holds, and what shows it."""

from dataclasses import dataclass

__all__ = ["Claim"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One checked statement; nothing is told to hold that was not tried.

    Attributes:
        statement: what is claimed, a sentence.
        holds: whether it was found to be so.
        evidence: what was seen, and what would have been seen if the statement were empty.
    """

    statement: str
    holds: bool
    evidence: str
