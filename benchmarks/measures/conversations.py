"""Evidence recall and time of every kind of search on real conversations, where the run is given some."""

import statistics

from benchmarks import evidence_recall
from benchmarks.bench import Bench
from benchmarks.results import OURS, Finding

NAME = "conversations"
ALL, OTHERS = "all", "not chosen by"

# Of LoCoMo's: those by which the search's constants were chosen (decision 0020).
_CHOSEN_BY = frozenset({"26", "41", "47"})


async def measure(bench: Bench) -> list[Finding]:
    """Load every turn of ``--conversations``, and ask each question in each mode in turn.

    Raises:
        ValueError: there are none.
    """
    if bench.conversations is None:
        raise ValueError(NAME)
    asked, answers = await evidence_recall.ask_all(bench.cluster, bench.conversations, step=bench.steps)
    others = [question.conversation not in _CHOSEN_BY for question in asked]
    found: list[Finding] = []
    for whose, counts in ((ALL, [True] * len(asked)), (OTHERS, others)):
        times: dict[str, float] = {}
        for mode, given in answers.items():
            counted = [answer for answer, counting in zip(given, counts, strict=True) if counting]
            if not counted:
                continue
            times[mode] = statistics.median(answer.seconds for answer in counted)
            values = {
                "recall": statistics.fmean(answer.recall[-1] for answer in counted),
                "p50_ms": times[mode] * 1000,
                "ratio": times[mode] / times["vector"],
            }
            found.append(Finding(NAME, OURS, {"what": mode, "of": whose, "questions": len(counted)}, values))
    return found
