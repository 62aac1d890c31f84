"""Crossings of the walls that a command's help tells of: collected, instead of a warning each on stderr."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["collected"]


@contextmanager
def collected() -> Generator[list[str]]:
    """Keep db.platform()'s warnings off stderr, and give their reasons."""
    log = logging.getLogger("ibex_db.platform")
    reasons: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        reasons.append(str(getattr(record, "reason", record.getMessage())))
        return False

    log.addFilter(collect)
    try:
        yield reasons
    finally:
        log.removeFilter(collect)
