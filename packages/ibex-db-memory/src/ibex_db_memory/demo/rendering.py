"""A report on a terminal: the verdict first, then what was seen, then the verdict again where a reader ends up."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from ibex_db_memory.demo.claim import Claim
from ibex_db_memory.demo.report import Report, SearchFacts
from ibex_db_memory.demo.searching import Answer

__all__ = ["rendered"]

_ANSWERS = 5
_HITS = 3


def rendered(report: Report) -> RenderableType:
    """Return the whole report."""
    return Group(
        _verdict(report),
        _chapters(report),
        *_section("Organizations", _organizations(report)),
        *(part for found in report.searches for part in _section(_searched(found), _answers(found))),
        *_section(f"Hot memories of {report.hot_of}: what to have at hand", _hot(report)),
        *_section("The history of one memory", _history(report)),
        *_section("Claims", _claims(_others(report))),
        *_section(f"Isolation: {report.proof_of[0]} tries to reach {report.proof_of[1]}", _proof(report)),
        _ending(report),
    )


def _section(title: str, body: RenderableType) -> Sequence[RenderableType]:
    return Text(), Rule(Text(title, style="bold"), align="left", style="dim"), body


def _mark(holds: bool) -> Text:  # noqa: FBT001 - there is nothing else to say to it
    return Text("ok", style="bold green") if holds else Text("NO", style="bold red")


def _plain(columns: Iterable[Column | str], rows: Iterable[Sequence[RenderableType]], *, header: bool = True) -> Table:
    made = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=header)
    for row in rows:
        made.add_row(*row)
    return made


def _one_line(header: str, *, ratio: int | None = None, style: str = "") -> Column:
    return Column(header, no_wrap=True, overflow="ellipsis", ratio=ratio, style=style)


# -- the verdict, and what was done


def _verdict(report: Report) -> RenderableType:
    claims = report.claims
    held = sum(claim.holds for claim in claims)
    memories = sum(organization.memories for organization in report.organizations)
    lines = [
        Text(
            f"{len(report.organizations)} organizations share one database and {memories:,} memories. Checked on them: "
            "what one keeps, no other can reach; nothing is kept twice; searches find the right memory; "
            "every change leaves a version."
        ),
        Text.assemble(
            (f"{held} of {len(claims)} claims hold", "bold green" if report.holds else "bold red"),
            f", each tried just now, in {report.seconds:.1f} s on {report.server}.",
        ),
    ]
    return Panel(
        Group(*lines),
        title=Text("ibex-db demo", style="bold"),
        title_align="left",
        border_style="green" if report.holds else "red",
    )


def _chapters(report: Report) -> RenderableType:
    rows = [
        (_mark(chapter.holds), chapter.title, chapter.outcome, f"{chapter.seconds:.2f}") for chapter in report.chapters
    ]
    return _plain(["", Column("What it did", no_wrap=True), "What came out", Column("s", justify="right")], rows)


def _organizations(report: Report) -> RenderableType:
    rows = [
        (organization.name, organization.slug, ", ".join(organization.agents), f"{organization.memories:,}")
        for organization in report.organizations
    ]
    return _plain(["Name", "Slug", "Agents", Column("Memories", justify="right")], rows)


def _ending(report: Report) -> RenderableType:
    failed = [claim for claim in report.claims if not claim.holds]
    reasons = "; ".join(dict.fromkeys(report.platform_sessions))
    crossed = Text(
        f"The walls were crossed on purpose {len(report.platform_sessions)} times, as ibex_platform: {reasons}.",
        style="dim",
    )
    if not failed:
        verdict = Text(f"All {len(report.claims)} claims hold.", style="bold green")
        return Group(Text(), crossed, verdict)
    verdict = Text(f"{len(failed)} of {len(report.claims)} claims do NOT hold:", style="bold red")
    return Group(Text(), crossed, verdict, _claims(failed))


# -- what was seen


def _searched(found: SearchFacts) -> str:
    recall = found.evidence_recall_at_10
    told = "" if recall is None else f", evidence recall@10 {recall:.3f}"
    return f"Some of {found.questions:,} questions{told} (<- is expected)"


def _answers(found: SearchFacts) -> RenderableType:
    return Group(*(_answer(answer) for answer in found.few(_ANSWERS)))


def _answer(answer: Answer) -> RenderableType:
    asked = Text.assemble((answer.question, "bold"), (f"  {answer.agent or 'all agents'}", "cyan"))
    columns = [Column(no_wrap=True, width=5), Column(no_wrap=True, width=2), _one_line("", ratio=1)]
    rows = [
        (f"{hit.score:.3f}", Text("<-" if hit.expected else "", style="bold green"), Text(hit.content))
        for hit in answer.hits[:_HITS]
    ]
    hits = Table(*columns, box=None, show_header=False, pad_edge=False, expand=True)
    for row in rows:
        hits.add_row(*row)
    return Group(asked, Padding(hits, (0, 0, 0, 2)))


_DATED = (
    "Ages and uses are the corpus's own, written in raw SQL in its organization's session; "
    "the API dates a memory, and counts its uses, as they happen."
)


def _hot(report: Report) -> RenderableType:
    made = _plain(["Score", "Category", Column("Uses", justify="right"), "Last used", _one_line("Memory", ratio=1)], ())
    made.expand = True
    for one in report.hot:
        last = "never" if one.days_since_use is None else f"{one.days_since_use:.0f} days ago"
        made.add_row(f"{one.score:.3f}", one.category, str(one.uses), last, Text(one.content))
    return Group(made, Text(_DATED, style="dim"))


def _history(report: Report) -> RenderableType:
    rows = [(str(one.number), one.operation, one.content, one.reason or "") for one in report.history]
    return _plain([Column("#", justify="right"), "What", "Content after it", "Reason"], rows)


def _proof(report: Report) -> RenderableType:
    both = next(chapter.claims for chapter in reversed(report.chapters))
    back = both[len(report.proof) :]
    held = sum(claim.holds for claim in back)
    told = Text(
        f"The other way, from {report.proof_of[1]} to {report.proof_of[0]}: {held} of {len(back)} hold.",
        style="green" if held == len(back) else "red",
    )
    intro = Text(
        "Each road is walked by the rows' owner too, who must arrive: the rows exist, and only the tenant differs."
    )
    failed = [claim for claim in back if not claim.holds]
    return Group(intro, _claims(report.proof), told, *([_claims(failed)] if failed else []))


def _others(report: Report) -> Sequence[Claim]:
    return [claim for chapter in report.chapters[:-1] for claim in chapter.claims]


def _claims(claims: Sequence[Claim]) -> RenderableType:
    rows = [(_mark(claim.holds), claim.statement, Text(claim.evidence, style="dim")) for claim in claims]
    return _plain(["", Column("Claim", ratio=1), Column("Evidence", ratio=1)], rows)
