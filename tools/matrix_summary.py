"""What the matrix's sessions left behind, as one table: a suite a row, a way to run it a column."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path


def cell(report: Path) -> str:
    """Say how one session's tests went, from pytest's JUnit report; a session that was not run left none."""
    if not report.exists():
        return "not run"
    # Our own pytest wrote it.
    suites = list(ET.parse(report).getroot().iter("testsuite"))  # noqa: S314

    def count(what: str) -> int:
        return sum(int(suite.get(what, 0)) for suite in suites)

    bad, skipped = count("failures") + count("errors"), count("skipped")
    said = f"{bad} FAILED" if bad else f"{count('tests') - skipped} passed"
    seconds = sum(float(suite.get("time", 0)) for suite in suites)
    return said + (f", {skipped} skipped" if skipped else "") + f", {seconds:.0f} s"


def table(rows: Sequence[str], columns: Sequence[str], reports: Path) -> str:
    """Draw the table; the report of a cell is ``<column>.<row>.xml``."""
    drawn = [["", *columns]]
    drawn += [[row, *(cell(reports / f"{column}.{row}.xml") for column in columns)] for row in rows]
    widths = [max(len(line[at]) for line in drawn) for at in range(len(drawn[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in drawn]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
