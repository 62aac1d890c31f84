"""The file: a header, memories, relationships, a footer; one JSON object on each line, told apart by ``kind``.

The footer holds how many lines of each kind there are, and the SHA-256 of all
lines before it, each with one newline.  A file without it was cut off; one whose
lines give another hash was changed.  It guards against accidents: whoever
can write the file can write the footer.
"""

import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final, cast
from uuid import UUID

from ibex_db_core.errors import InvalidInputError
from ibex_db_memory.errors import ExportDamagedError
from ibex_db_memory.models import EMBEDDING_DIMENSIONS

FORMAT: Final = "ibex-db-memories"
VERSION: Final = 1

# Longer digits than Python turns into an int at once; such numbers stay decimal.
_MOST_DIGITS = 4000

Lines = Iterable[bytes | str] | AsyncIterable[bytes | str]
"""What import_ reads: an open file, a list of lines, the generator that export() returns."""


class Tally:
    """Counts and hashes lines as they pass."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._hash = sha256()

    def add(self, kind: str, one: bytes) -> bytes:
        """Count a line, newline included, and return it."""
        self.counts[kind] += 1
        self._hash.update(one)
        return one

    @property
    def digest(self) -> str:
        """SHA-256 of the lines so far, 64 hexadecimal digits."""
        return self._hash.hexdigest()


@dataclass(frozen=True, slots=True)
class Header:
    """What the first line says.

    Attributes:
        organization: whose memories they are: id, slug and name.
        agents: of each agent with a memory in the file: id, slug, name and description.
        memories: how many are to come.
        revisions: the newest migration of each wheel that wrote it; for people, nothing depends on it.
    """

    organization: Mapping[str, object]
    agents: list[Mapping[str, Any]]
    memories: int
    exported_at: str
    revisions: Mapping[str, str] = field(default_factory=dict[str, str])


def line(value: Mapping[str, object]) -> bytes:
    """Return one line of the file."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def header(told: Mapping[str, object], revisions: Mapping[str, str], dimensions: int = EMBEDDING_DIMENSIONS) -> bytes:
    """Return the first line."""
    start = {"kind": "header", "format": FORMAT, "version": VERSION, "revisions": dict(revisions)}
    return line({**start, "dimensions": dimensions, **told})


def footer(tally: Tally) -> bytes:
    """Return the last line."""
    counts = {"memories": tally.counts["memory"], "relationships": tally.counts["relationship"]}
    return line({"kind": "footer", "counts": counts, "sha256": tally.digest})


class Reader:
    """Reads the lines of a file, and tells a whole one from a damaged one.

    Args:
        given: the lines, with or without their newlines.
        dimensions: those of the organization that they are for.
    """

    def __init__(self, given: Lines, dimensions: int = EMBEDDING_DIMENSIONS) -> None:
        self._given = given
        self._dimensions = dimensions
        self._tally = Tally()
        self.number = 0

    async def records(self) -> AsyncGenerator[dict[str, Any]]:
        """Yield header, memories and relationships; return only where the footer says that this was all.

        Raises:
            ExportDamagedError: cut off, or changed since it was written.
            InvalidInputError: no export of ours, or one of a newer version.
        """
        footed = False
        async for raw in _each(self._given):
            one = (raw.encode() if isinstance(raw, str) else bytes(raw)).rstrip(b"\r\n")
            self.number += 1
            if not one:
                self.number -= 1
                continue
            if footed:
                raise ExportDamagedError(self.number, "there is more after the footer")
            record = self._parsed(one)
            kind = record.get("kind")
            if self.number == 1:
                self._check_header(record)
            elif kind == "footer":
                self._check_footer(record)
                footed = True
                continue
            elif kind not in {"memory", "relationship"}:
                raise ExportDamagedError(self.number, f"there is no line of kind {kind!r}")
            self._tally.add(cast("str", kind), one + b"\n")
            yield record
        if not footed:
            raise ExportDamagedError(self.number, "the footer is missing: the file was cut off")

    def _parsed(self, one: bytes) -> dict[str, Any]:
        try:
            record = cast("object", json.loads(one, parse_float=Decimal, parse_int=_integer))
        except (ValueError, RecursionError) as exc:
            why = "it is no JSON: the file was cut off or changed" if self.number > 1 else "it is no export of ibex-db"
            raise ExportDamagedError(self.number, why) from exc
        if not isinstance(record, dict):
            raise ExportDamagedError(self.number, "it is no JSON object")
        return cast("dict[str, Any]", record)

    def _check_header(self, record: Mapping[str, Any]) -> None:
        if record.get("kind") != "header" or record.get("format") != FORMAT:
            raise ExportDamagedError(self.number, "the header is missing: it is no export of ibex-db, or not its start")
        if record.get("version") != VERSION:
            raise InvalidInputError(
                "version", record.get("version"), f"must be {VERSION}: another version of ibex-db wrote this file"
            )
        if record.get("dimensions") != self._dimensions:
            raise InvalidInputError(
                "dimensions",
                record.get("dimensions"),
                f"must be {self._dimensions}, as the organization's vectors have: move one to the other's model first",
            )

    def _check_footer(self, record: Mapping[str, Any]) -> None:
        counts = {"memories": self._tally.counts["memory"], "relationships": self._tally.counts["relationship"]}
        if record.get("counts") != counts:
            raise ExportDamagedError(self.number, f"lines are missing: {counts} were read, not {record.get('counts')}")
        if record.get("sha256") != self._tally.digest:
            raise ExportDamagedError(self.number, "the lines do not give the footer's SHA-256: the file was changed")


def header_of(record: Mapping[str, Any]) -> Header:
    """Return what a header's record says.

    Raises:
        ExportDamagedError: it lacks what a header has.
    """
    try:
        return Header(
            organization=dict(record["organization"]),
            agents=[{**agent, "id": UUID(agent["id"])} for agent in record["agents"]],
            memories=int(record["memories"]),
            exported_at=str(record["exported_at"]),
            revisions=dict(record.get("revisions", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ExportDamagedError(1, "the header is not whole") from exc


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < _MOST_DIGITS else Decimal(digits)


async def _each(given: Lines) -> AsyncGenerator[bytes | str]:
    if isinstance(given, AsyncIterable):
        async for one in given:
            yield one
    else:
        for one in given:
            yield one
