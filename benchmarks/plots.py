"""The plots: small PNGs, one idea each."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.results import OURS, RAW, Finding, Results

_WIDTH, _HEIGHT, _DPI = 9.0, 3.6, 80
_OTHERS = ("#888888", "#b07aa1", "#59a14f", "#edc948", "#9c755f", "#76b7b2")


def draw(results: Results, out: Path) -> Sequence[Path]:
    """Draw what was measured; return the files."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = import_module("matplotlib.pyplot")
    drawn: list[Path] = []
    for name, plot in {
        "recall": _recall,
        "rows": _rows,
        "growth": _growth,
        "overhead": _overhead,
        "concurrency": _concurrency,
    }.items():
        figure = plot(pyplot, results)
        if figure is not None:
            drawn.append(out / f"{name}.png")
            figure.savefig(drawn[-1], dpi=_DPI)
            pyplot.close(figure)
    return drawn


def _canvas(pyplot: Any, columns: int = 1, width: float = _WIDTH) -> tuple[Any, Any]:
    """Return a figure and its row of panels."""
    figure, panels = pyplot.subplots(1, columns, figsize=(width, _HEIGHT), squeeze=False, layout="constrained")
    return figure, panels[0]


def _log(pyplot: Any, panel: Any, axis: str, numbers: Sequence[float]) -> None:
    """Scale an axis by its logarithm, with plain numbers on it where there is room for them."""
    ticks = [tick for power in range(-2, 8) for tick in (10**power, 3 * 10**power)]
    shown = [tick for tick in ticks if min(numbers) * 0.7 <= tick <= max(numbers) * 1.4]
    panel.set(**{f"{axis}scale": "log", f"{axis}lim": (min(numbers) * 0.7, max(numbers) * 1.4)})
    side = panel.xaxis if axis == "x" else panel.yaxis
    side.set_minor_locator(pyplot.NullLocator())
    side.set_major_locator(pyplot.FixedLocator(shown))
    side.set_major_formatter(_plain)


def _plain(value: float, _place: int) -> str:
    return f"{value:,g}" if value < 10_000 else f"{value / 1000:,g}k"


def _colour(names: Sequence[str], name: str) -> str:
    fixed = {OURS: "#e15759", RAW: "#4e79a7"}
    others = [other for other in names if other not in fixed]
    return fixed[name] if name in fixed else _OTHERS[others.index(name) % len(_OTHERS)]


def _names(found: Sequence[Finding]) -> list[str]:
    return list(dict.fromkeys(one.contestant.removesuffix(", tuned") for one in found))


def _recall(pyplot: Any, results: Results) -> Any:
    """Recall against latency, a panel for each size of tenant: above and to the left is better."""
    found = results.of("search")
    sizes = sorted({int(one.case["tenant"]) for one in found})
    if not sizes:
        return None
    names = _names(found)
    figure, panels = _canvas(pyplot, len(sizes), _WIDTH + 2)
    for panel, rows in zip(panels, sizes, strict=True):
        for one in results.of("search", tenant=rows):
            name = one.contestant.removesuffix(", tuned")
            tuned = name != one.contestant
            panel.plot(
                one.values["p50_ms"],
                one.values["recall"],
                "o" if not tuned else "^",
                color=_colour(names, name),
                markerfacecolor="none" if tuned else _colour(names, name),
                label=one.contestant if rows == sizes[0] else None,
            )
        panel.set(title=f"{rows:,} memories", xlabel="p50, ms", ylim=(-0.05, 1.05))
        _log(pyplot, panel, "x", [one.values["p50_ms"] for one in found])
        panel.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("recall@10")
    figure.legend(loc="outside lower center", ncols=5, fontsize=7)
    return figure


def _rows(pyplot: Any, results: Results) -> Any:
    """Rows a second into the indexed table."""
    found = sorted(results.of("remember_many"), key=lambda one: one.values["rows_per_s"])
    if not found:
        return None
    names = _names(found)
    figure, (panel,) = _canvas(pyplot)
    panel.barh(
        [one.contestant for one in found],
        [one.values["rows_per_s"] for one in found],
        color=[_colour(names, one.contestant) for one in found],
    )
    panel.set(xlabel="rows a second, into the table with all its indexes")
    panel.grid(visible=True, axis="x", alpha=0.3)
    return figure


def _growth(pyplot: Any, results: Results) -> Any:
    """Cost as the whole table grows, and as one tenant does."""
    found = [one for one in results.of("growth") if one.case["what"] != "index"]
    if not found:
        return None
    figure, (left, right) = _canvas(pyplot, 2)
    lines: dict[str, list[Finding]] = {}
    for one in found:
        tenant = (
            f", {'one' if 'how' in one.case else 'tenant'} of {one.case['tenant']:,}" if "tenant" in one.case else ""
        )
        lines.setdefault(f"{one.case['what']}{tenant}", []).append(one)
    for label, line in lines.items():
        left.plot([one.case["rows"] for one in line], [one.values["ratio"] for one in line], "o-", label=label)
    left.axhline(1.3, linestyle=":", color="grey")
    left.set(xlabel="memories in the table", ylabel="p50 over the smallest table's", ylim=(0, None))
    _log(pyplot, left, "x", [float(one.case["rows"]) for one in found])
    left.legend(loc="lower right", ncols=2, fontsize=7)
    searched = results.of("overhead", how="call by call")
    for name in _names(searched):
        line = [one for one in searched if one.contestant == name]
        right.plot(
            [one.case["tenant"] for one in line],
            [one.values["p50_ms"] for one in line],
            "o-",
            color=_colour(_names(searched), name),
            label=name,
        )
    right.set(xlabel="memories of the tenant", ylabel="search, p50 ms")
    if searched:
        _log(pyplot, right, "x", [float(one.case["tenant"]) for one in searched])
        _log(pyplot, right, "y", [one.values["p50_ms"] for one in searched])
        right.legend(fontsize=7)
    for panel in (left, right):
        panel.grid(visible=True, alpha=0.3)
    return figure


def _overhead(pyplot: Any, results: Results) -> Any:
    """What ibex-db adds to hand-written asyncpg, with the interval that 95 % of resamples lie in."""
    found = [one for measure in ("overhead", "remember", "bookkeeping") for one in results.of(measure, OURS)]
    found = [one for one in found if "ratio" in one.values and one.case.get("how") != "in blocks"]
    if not found:
        return None
    figure, (panel,) = _canvas(pyplot)
    for place, one in enumerate(found):
        ratio, low, high = (one.values[name] for name in ("ratio", "ratio_low", "ratio_high"))
        panel.bar(place, ratio, color="#e15759", yerr=[[max(ratio - low, 0)], [max(high - ratio, 0)]], capsize=3)
    names = {"overhead": "search", "remember": "remember", "bookkeeping": "record_\nretrieval"}
    labels = [names[one.measure] + (f"\n{one.case['tenant']:,}" if "tenant" in one.case else "") for one in found]
    panel.set_xticks(range(len(found)), labels, fontsize=7)
    panel.axhline(1, color="#4e79a7")
    panel.axhline(1.25, linestyle=":", color="grey")
    panel.set(ylabel="p50 over hand-written asyncpg")
    return figure


def _concurrency(pyplot: Any, results: Results) -> Any:
    """Searches a second over tasks, a panel for each pool."""
    found = results.of("concurrency", what="searches")
    pools = sorted({int(one.case["pool"]) for one in found})
    if not pools:
        return None
    figure, panels = _canvas(pyplot, len(pools))
    for panel, pool in zip(panels, pools, strict=True):
        for name in (RAW, OURS):
            line = results.of("concurrency", name, what="searches", pool=pool)
            tasks = [one.case["tasks"] for one in line]
            rates = [one.values["per_s"] for one in line]
            panel.plot(tasks, rates, "o-", color=_colour((), name), label=name)
        panel.set(title=f"pool of {pool}", xlabel="tasks")
        _log(pyplot, panel, "x", [float(one.case["tasks"]) for one in found])
        panel.grid(visible=True, alpha=0.3)
    highest = max(one.values["per_s"] for one in found)
    for panel in panels:
        panel.set(ylim=(0, highest * 1.05))
    panels[0].set(ylabel="searches a second")
    panels[0].legend(fontsize=7)
    return figure
