"""What should be reached, and whether it was: the bounds that the design sets, beside what one run measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.measures import (
    bookkeeping,
    conversations,
    growth,
    hybrid,
    isolation,
    lexical,
    overhead,
    remember,
    remember_many,
    rls,
    round_trips,
    search,
    start_up,
    streaming,
)
from benchmarks.results import OURS, RAW, Finding, Results

RECALL = 0.99

# A row's outcome is an id and whether it is new, in Python some 150 bytes; its vector alone would be 1,536.
_OUTCOME_BYTES = 512


@dataclass(frozen=True)
class Verdict:
    """What was measured, in words, and whether the bound holds."""

    measured: str
    met: bool


@dataclass(frozen=True)
class Target:
    """One bound.

    Attributes:
        name: what is measured.
        bound: in words.
        judge: None where the run did not measure it.
    """

    name: str
    bound: str
    judge: Callable[[Results], Verdict | None]


def _worst(found: Sequence[Finding], name: str, bound: float, *, least: bool = False) -> Verdict | None:
    """Judge by the case that is worst, and show all."""
    if not found:
        return None
    values = [one.values[name] for one in found]
    worst = min(values) if least else max(values)
    shown = ", ".join(f"{_case(one)} {one.values[name]:.3g}" for one in found)
    return Verdict(shown, worst >= bound if least else worst <= bound)


def _plain(found: Sequence[float], bound: float) -> Verdict | None:
    return Verdict(f"{found[0]:.2f}", found[0] <= bound) if found else None


def _case(one: Finding) -> str:
    said = [value for name, value in one.case.items() if name != "how"]
    return " ".join(f"{value:,}" if isinstance(value, int) else value for value in said) + ":"


def _overhead(results: Results) -> Verdict | None:
    ways = [
        _worst(results.of(overhead.NAME, OURS, how=how), "ratio", 1.25)
        for how in (overhead.IN_TURN, overhead.IN_BLOCKS)
    ]
    measured = [way for way in ways if way is not None]
    if not measured:
        return None
    return Verdict("; ".join(way.measured for way in measured), all(way.met for way in measured))


def _peers(results: Results) -> Verdict | None:
    shown: list[str] = []
    worst, judged = 0.0, False
    for mine in results.of(search.NAME, OURS):
        rivals = [
            one
            for one in results.of(search.NAME, None, **mine.case)
            if one.contestant not in {OURS, RAW} and one.values["recall"] >= RECALL
        ]
        if rivals:
            judged = True
            best = min(rivals, key=lambda one: one.values["p50_ms"])
            ratio = mine.values["p50_ms"] / best.values["p50_ms"]
            by_hand = results.values("p50_ms", search.NAME, RAW, **mine.case)[0] / best.values["p50_ms"]
            worst = max(worst, ratio)
            shown.append(f"{_case(mine)} {ratio:.2f} of {best.contestant} (by hand {by_hand:.2f})")
        elif len(results.of(search.NAME, None, **mine.case)) > 2:
            shown.append(f"{_case(mine)} no peer reaches that recall")
    return Verdict("; ".join(shown), worst <= 0.5) if judged else None


def _round_trips(results: Results) -> Verdict | None:
    mine = results.of(round_trips.NAME, OURS)
    if not mine:
        return None
    others = [one for one in results.of(round_trips.NAME) if one.contestant != OURS]
    shown = [f"{one.case['verb']} {one.values['round_trips']:g}" for one in mine]
    shown += [f"{one.contestant} {one.values['round_trips']:g}" for one in others]
    return Verdict(", ".join(shown), all(one.values["round_trips"] == 3 for one in mine))


def _many(name: str, bound: float) -> Callable[[Results], Verdict | None]:
    def judge(results: Results) -> Verdict | None:
        found = results.of(remember_many.NAME, OURS)
        if not found:
            return None
        ratio, low, high = (found[0].values.get(f"{name}{end}", 0) for end in ("", "_low", "_high"))
        return Verdict(f"{ratio:.2f}" + (f" (95 %: {low:.2f} to {high:.2f})" if high else ""), ratio >= bound)

    return judge


def _many_over_peers(results: Results) -> Verdict | None:
    mine = results.values("rows_per_s", remember_many.NAME, OURS)
    raw = {OURS, remember_many.UNNEST, remember_many.COPY}
    peers = [one for one in results.of(remember_many.NAME) if one.contestant not in raw]
    if not mine or not peers:
        return None
    best = max(peers, key=lambda one: one.values["rows_per_s"])
    ratio = mine[0] / best.values["rows_per_s"]
    # Not like for like: a row enters an index of 200 for 3.5 times what it takes to enter one of 64 (decision 0052).
    told = "whose index is built with ef_construction 64, ours with 200"
    return Verdict(f"{ratio:.2f} of {best.contestant}, {told}", ratio >= 3)


def _flat(results: Results) -> Verdict | None:
    found = results.of(streaming.NAME, OURS)
    if not found:
        return None
    kept, rows = found[0].values["bytes_kept_per_row"], found[0].case["rows"]
    grown = found[0].values["grown_after_a_tenth_mb"]
    return Verdict(f"{rows:,} rows: {grown:.1f} MB more at the end, {kept:.0f} bytes a row", kept <= _OUTCOME_BYTES)


def _hot(results: Results) -> Verdict | None:
    found = results.values("hot_share", bookkeeping.NAME, OURS)
    return Verdict(f"{found[0]:.1%}", found[0] == 1) if found else None


def _lexical(results: Results) -> Verdict | None:
    found = results.of(lexical.NAME, lexical.BOUND)
    if not found:
        return None
    mine = min(found, key=lambda one: abs(int(one.case["tenant"]) - 10_000))
    naive = results.values("ratio", lexical.NAME, lexical.NAIVE, **mine.case)
    whole = results.values("ratio", lexical.NAME, OURS, **mine.case)
    shown = f"{_case(mine)} {mine.values['ratio']:.2f}; with our client {whole[0]:.2f}" + (
        f"; naive {naive[0]:.1f}" if naive else ""
    )
    return Verdict(shown, mine.values["ratio"] <= 1.2)


def _rls(results: Results) -> Verdict | None:
    found = results.of(rls.NAME, rls.ON)
    if not found:
        return None
    worst = max(found, key=lambda one: one.values["ratio"])
    missed = [one for one in found if one.values["ratio"] > 1.05]
    low, high = worst.values["ratio_low"], worst.values["ratio_high"]
    shown = f"{len(found) - len(missed)} of {len(found)} queries within it; the worst, {_case(worst)}"
    return Verdict(f"{shown} {worst.values['ratio']:.2f} (95 %: {low:.2f} to {high:.2f})", not missed)


def _evidence(whose: str, least: float) -> Callable[[Results], Verdict | None]:
    def judge(results: Results) -> Verdict | None:
        legs = {str(one.case["what"]): one.values for one in results.of(conversations.NAME, OURS, of=whose)}
        if not legs:
            return None
        shown = ", ".join(f"{what} {values['recall']:.3f}" for what, values in legs.items())
        return Verdict(shown, legs["hybrid"]["recall"] >= least)

    return judge


def _conversed(results: Results) -> Verdict | None:
    return _plain(results.values("ratio", conversations.NAME, OURS, what="hybrid", of=conversations.ALL), 2)


def _import(results: Results) -> Verdict | None:
    found = results.of(start_up.NAME, OURS, what="import")
    return Verdict(f"{found[0].values['ratio']:.2f}", found[0].values["ratio"] < 2) if found else None


def _growth(what: str) -> Callable[[Results], Verdict | None]:
    def judge(results: Results) -> Verdict | None:
        found = results.of(growth.NAME, OURS, what=what)
        lines: dict[str, list[Finding]] = {}
        for one in found:
            whose = [str(one.case["how"])] if "how" in one.case else []
            said = [f"{one.case['tenant']:,}", *whose] if "tenant" in one.case else []
            lines.setdefault(" ".join(said), []).append(one)
        steps = {name: [growth.tenfold(*pair) for pair in pairwise(line)] for name, line in lines.items()}
        shown = [
            (f"{name}: " if name else "") + ", ".join(f"{step:.2f}" for step in each) for name, each in steps.items()
        ]
        worst = max((step for each in steps.values() for step in each), default=None)
        return Verdict(f"{'; '.join(shown)} for each ten times", worst <= 1.3) if worst is not None else None

    return judge


def _isolation(results: Results) -> Verdict | None:
    found = results.of(isolation.NAME, OURS)
    if not found:
        return None
    values = found[0].values
    wrong, lost = values["wrong_rows"], values["lost_writes"]
    looked, written, seconds = values["rows_looked_at"], values["acknowledged_writes"], values["seconds"]
    shown = f"{wrong:g} wrong of {looked:,.0f} rows, {lost:g} lost of {written:,.0f} writes, in {seconds:g} s"
    return Verdict(shown, wrong == lost == 0)


TARGETS = (
    Target(
        "recall@10, tenant-filtered, by the tenant's memories",
        f">= {RECALL} each",
        lambda results: _worst(results.of(search.NAME, OURS), "recall", RECALL, least=True),
    ),
    Target(
        "search p50 over hand-written asyncpg, same plan, whole path: call by call; in blocks of twenty calls",
        "<= 1.25",
        _overhead,
    ),
    Target(f"search p50 over the best peer with recall >= {RECALL}", "<= 0.5", _peers),
    Target("round trips of a tenant transaction with one statement", "3", _round_trips),
    Target(
        "remember over a bare INSERT in the same transaction shape",
        "<= 1.3",
        lambda results: _plain(results.values("ratio", remember.NAME, OURS), 1.3),
    ),
    Target("remember_many: rows/s of a raw unnest INSERT's", ">= 0.9", _many("of_unnest", 0.9)),
    Target("remember_many: rows/s of COPY's, into the same indexed table", ">= 0.8", _many("of_copy", 0.8)),
    Target("remember_many: rows/s over the best peer's", ">= 3", _many_over_peers),
    Target(
        "remember_many: memory while many pass, but for what it returns",
        f"flat: <= {_OUTCOME_BYTES} bytes a row",
        _flat,
    ),
    Target("bookkeeping of ten hits: HOT updates", "100 %", _hot),
    Target(
        "bookkeeping of ten hits: what it adds to the search that it follows",
        "< 0.25",
        lambda results: _worst(results.of(bookkeeping.NAME, bookkeeping.TOGETHER), "added_to_search", 0.25),
    ),
    Target("policies on over policies off, every hot query", "<= 1.05", _rls),
    Target("search by words under policies over the same without", "<= 1.2", _lexical),
    Target(
        "conversations: evidence recall@10 of hybrid search, on all",
        ">= 0.70",
        _evidence(conversations.ALL, 0.70),
    ),
    Target(
        "conversations: the same, on those that nothing was chosen by",
        ">= 0.65",
        _evidence(conversations.OTHERS, 0.65),
    ),
    Target("conversations: hybrid search p50 over its vector leg", "<= 2", _conversed),
    Target(
        "hybrid search p50 over its vector leg, by the tenant's memories (the design asks it of conversations)",
        "<= 2",
        lambda results: _worst(results.of(hybrid.NAME, OURS), "ratio", 2),
    ),
    Target(f"import ibex_db over import {start_up.DRIVERS}", "< 2", _import),
    Target("search as the table grows tenfold, tenant fixed", "<= 1.3", _growth("search")),
    Target("remember as the table grows tenfold", "<= 1.3", _growth("remember")),
    Target("isolation under load: wrong rows, lost writes", "0 and 0", _isolation),
)
