"""What a run found, for people: Markdown, plots, and the part of docs/benchmarks.md that a run writes."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.markdown import table
from benchmarks.projection import projection
from benchmarks.results import Case, Finding, Results
from benchmarks.targets import TARGETS

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "benchmarks.md"
KEPT = DOCS / "benchmarks" / "results.json"
BEGIN, END = "<!-- made by python -m benchmarks --docs: do not edit -->", "<!-- made: end -->"

Cell = Callable[[Mapping[str, float]], str]


def write(results: Results, out: Path, *, plots: bool, docs: bool) -> None:
    """Write results.json, results.md and the plots, and say the targets."""
    results.write(out / "results.json")
    text = markdown(results)
    (out / "results.md").write_text(text, encoding="utf-8")
    drawn: Sequence[Path] = []
    if plots:
        from benchmarks.plots import draw

        drawn = draw(results, out)
    Console().print(Markdown(targets(results)))
    print(f"written: {out}")
    if docs:
        KEPT.parent.mkdir(exist_ok=True)
        results.write(KEPT)
        for path in drawn:
            shutil.copy(path, KEPT.parent)
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page.replace(made(page), section(results)), encoding="utf-8")


def made(page: str) -> str:
    """Return the part of the page that a run wrote, its marks included."""
    return page[page.index(BEGIN) : page.index(END) + len(END)]


def section(results: Results) -> str:
    """Return what stands between the marks."""
    return f"{BEGIN}\n{markdown(results)}{END}"


def markdown(results: Results) -> str:
    """Return the targets and every measure's table."""
    parts = [_environment(results), "### Targets", targets(results)]
    for title, make in _TABLES.items():
        if made := make(results):
            parts += [f"### {title}", made]
    return "\n\n".join(parts) + "\n"


def targets(results: Results) -> str:
    """Return each target beside what was measured; a missed one says so."""
    rows: list[list[str]] = []
    for target in TARGETS:
        verdict = target.judge(results)
        if verdict is None:
            rows.append([target.name, target.bound, "", "not measured"])
        else:
            rows.append([target.name, target.bound, verdict.measured, "met" if verdict.met else "**missed**"])
    return table(["measure", "target", "measured", ""], rows)


def _environment(results: Results) -> str:
    made_with = results.environment
    server = ", ".join(f"{name} {value}" for name, value in made_with["server"].items())
    packages = ", ".join(f"{name} {version}" for name, version in made_with["packages"].items())
    lines = [
        (
            f"Size **{made_with['size']}**, commit {made_with['commit']}, Python {made_with['python']}, "
            f"{made_with['processors']} processors ({made_with['machine']}); {_when(made_with['measures'])}."
        ),
        f"- server: {server}",
        f"- ours: {packages}",
    ]
    for name, versions in made_with["peers"].items():
        known = ", ".join(f"{package} {version}" for package, version in versions.items() if package != "settings")
        lines.append(f"- {name}: {known}; {versions['settings']}")
    return "\n".join([lines[0], "", *lines[1:]])


def _when(measures: Mapping[str, Mapping[str, Any]]) -> str:
    """Say when the first and the last measure began, and how busy the machine was before each."""
    began = sorted(str(moment["began"]) for moment in measures.values())
    load = sorted(float(moment["load"]) for moment in measures.values() if "load" in moment)
    if not began:
        return "nothing measured"
    first, last = (moment[:16].replace("T", " ") for moment in (began[0], began[-1]))
    return f"measures began from {first} to {last} UTC, at a load of {load[0]:.1f} to {load[-1]:.1f}"


def _pivot(measure: str, column: str, cell: Cell, **case: int | str) -> Callable[[Results], str]:
    """Make a table with a line for each contestant and a column for each value of a part of the case."""

    def make(results: Results) -> str:
        found = [one for one in results.of(measure, None, **case) if column in one.case]
        columns = list(dict.fromkeys(one.case[column] for one in found))
        names = list(dict.fromkeys(one.contestant for one in found))
        if not found:
            return ""
        rows = [[name, *(_cell(found, name, column, value, cell) for value in columns)] for name in names]
        return table([f"by {column}", *(_number(value) for value in columns)], rows)

    return make


def _cell(found: Sequence[Finding], name: str, column: str, value: int | str, cell: Cell) -> str:
    matching = [one for one in found if one.contestant == name and one.case[column] == value]
    return "; ".join(cell(one.values) for one in matching)


def _lines(measure: str, **values: str) -> Callable[[Results], str]:
    """Make a table with a line for each finding, and these numbers of it, by heading."""

    def make(results: Results) -> str:
        found = [one for one in results.of(measure) if set(values.values()) & set(one.values)]
        if not found:
            return ""
        rows = [
            [one.contestant, _said(one.case), *(_value(one.values.get(name)) for name in values.values())]
            for one in found
        ]
        return table(["", "case", *(name.replace("_", " ") for name in values)], rows)

    return make


def _said(case: Case) -> str:
    return ", ".join(
        str(value) if name in {"what", "how", "of", "verb", "query"} else f"{name} {_number(value)}"
        for name, value in case.items()
    )


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _timed(values: Mapping[str, float]) -> str:
    return f"{values['p50_ms']:.2f} ms (p95 {values['p95_ms']:.2f}), {values['ratio']:.2f}"


def _spent(values: Mapping[str, float]) -> str:
    return f"{_timed(values)}; {values.get('client_ms', 0):.2f}, {values.get('server_ms', 0):.2f} ms"


def _pages(values: Mapping[str, float]) -> str:
    return f"{values['pages_in_buffers']:,.0f}, {values['pages_read']:,.0f}"


def _searched(values: Mapping[str, float]) -> str:
    return f"{values['recall']:.3f}, {_timed(values)}"


_TABLES: Mapping[str, Callable[[Results], str]] = {
    "Search by vector: recall@10, p50, over hand-written asyncpg; by the tenant's memories": _pivot(
        "search", "tenant", _searched
    ),
    "Search, ours and the limit alone, call by call: p50, ratio; of a processor client and server spend": _pivot(
        "overhead", "tenant", _spent, how="call by call"
    ),
    "The same in blocks of twenty calls, and what its parts are": _pivot("overhead", "tenant", _spent, how="in blocks"),
    "Round trips": _pivot("round_trips", "verb", lambda values: f"{values['round_trips']:g}"),
    "Loading the data set": _lines("load", rows_a_second="rows_per_s", before_the_index="without_index_rows_per_s"),
    "Writing one memory": _lines("remember", p50_ms="p50_ms", p95_ms="p95_ms", ratio="ratio"),
    "Writing many into the indexed table": _lines(
        "remember_many",
        rows_a_second="rows_per_s",
        of_unnest="of_unnest",
        at_least="of_unnest_low",
        at_most="of_unnest_high",
        of_COPY="of_copy",
    ),
    "One remember_many of many": _lines(
        "streaming",
        MB_of_vectors="vectors_mb",
        MB_grown="grown_mb",
        after_the_first_tenth="grown_after_a_tenth_mb",
        bytes_a_row="bytes_kept_per_row",
    ),
    "Bookkeeping of ten hits: p50, over raw": _pivot("bookkeeping", "tenant", _timed),
    "Row-level security: p50, over policies off": _lines(
        "rls", p50_ms="p50_ms", ratio="ratio", at_least="ratio_low", at_most="ratio_high"
    ),
    "Search by words: p50, over policies off": _pivot("lexical", "tenant", _timed),
    "Hybrid search: p50, over the vector leg": _pivot("hybrid", "tenant", _timed),
    "Hybrid search: pages found in shared_buffers, and read from outside": _pivot("hybrid", "tenant", _pages),
    "Real conversations: evidence recall@10, p50, over the vector leg": _lines(
        "conversations", recall="recall", p50_ms="p50_ms", ratio="ratio"
    ),
    "Repository verbs: p50, over plain SQLAlchemy": _pivot("verbs", "verb", _timed),
    "Concurrency": _lines(
        "concurrency", a_second="per_s", of_raw="of_raw", of_apart="of_apart", p50_ms="p50_ms", p95_ms="p95_ms"
    ),
    "Growth": _lines("growth", recall="recall", p50_ms="p50_ms", over_the_smallest="ratio"),
    "Growth: the vector index": _lines(
        "growth",
        rows_a_second_before_it="written_per_s",
        build_seconds="build_seconds",
        rows_a_second="build_rows_per_s",
        MB="index_mb",
        bytes_a_row="index_bytes_per_row",
        rest_of_the_table="table_bytes_per_row",
        versions="versions_bytes_per_row",
    ),
    "To a billion memories": projection,
    "Partitions": _lines(
        "partitions", recall="recall", p50_ms="p50_ms", over_the_first="ratio", build_s="build_seconds", MB="index_mb"
    ),
    "hnsw.ef_search in the largest tenant, over 100": _lines(
        "ef_search", recall="recall", p50_ms="p50_ms", ratio="ratio"
    ),
    "hnsw's ef_construction: the data set's index, and batches written to its fullest partition": _lines(
        "construction",
        recall="recall",
        p50_ms="p50_ms",
        build_s="build_seconds",
        rows_written_a_second="written_per_s",
        slowest="slowest_per_s",
        fastest="fastest_per_s",
    ),
    "Start-up": _lines("start_up", p50_ms="p50_ms", ratio="ratio", modules="modules"),
    "Isolation under load": _lines(
        "isolation",
        wrong_rows="wrong_rows",
        lost_writes="lost_writes",
        rows_looked_at="rows_looked_at",
        writes="acknowledged_writes",
        units_of_work="units",
    ),
}
