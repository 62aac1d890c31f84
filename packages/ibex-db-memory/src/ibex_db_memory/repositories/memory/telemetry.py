"""What telemetry is told of memories: how searches were answered, what was known already, how good the index is."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from ibex_db_core.errors import IbexError
from ibex_db_core.telemetry.facts import Fact, Measure, Seen, Verb, seen
from ibex_db_memory.repositories.memory.finding import Finding
from ibex_db_memory.repositories.memory.writing import Kept, RememberedMany
from ibex_db_memory.search.query import Hits

if TYPE_CHECKING:
    from ibex_db_core.telemetry.watch import Watch

__all__ = ["guard_recall"]

# Similarities that differ by less are one: the same vectors, added up in another order.
_SAME = 1e-9


@seen.register
def _hits(result: Hits, verb: Verb) -> Seen:
    """A search: what was asked, what came back, and which plan gave it."""
    labels: dict[str, Fact] = {"ibex.search.mode": _mode(verb.arguments), "ibex.search.plan": _plan(result)}
    attributes = dict(labels)
    if result.plan.scope_rows is not None:
        attributes["ibex.search.scope_rows"] = result.plan.scope_rows
    measures = [
        Measure("ibex.search.duration", verb.seconds, labels),
        Measure("ibex.search.rows.returned", len(result), labels),
    ]
    if verb.asked is not None:
        measures.append(Measure("ibex.search.rows.asked", verb.asked, labels))
    return Seen(rows=len(result), attributes=attributes, measures=measures)


def _mode(arguments: Mapping[str, object]) -> str:
    if arguments.get("text") is None:
        return "vector"
    return "text" if arguments.get("embedding") is None else "hybrid"


def _plan(found: Hits) -> str:
    if found.plan.rescanned:
        return "rescanned"
    return "exact" if found.plan.exact else "hnsw"


@seen.register
def _kept(result: Kept, verb: Verb) -> Seen:  # noqa: ARG001 - as every such function
    """Tell of one memory that was remembered: is it new?"""
    outcome = "created" if result.created else "duplicate"
    attributes: dict[str, Fact] = {"ibex.dedup": outcome}
    if result.near_duplicate is not None:
        attributes["ibex.dedup.near"] = True
    return Seen(rows=1, attributes=attributes, measures=[_remembered(outcome, 1)])


@seen.register
def _kept_many(result: RememberedMany, verb: Verb) -> Seen:  # noqa: ARG001
    """Tell of many: how many are new, and how many were known."""
    told = {"created": result.created, "duplicate": result.duplicates}
    return Seen(
        attributes={f"ibex.dedup.{outcome}": count for outcome, count in told.items()},
        measures=[_remembered(outcome, count) for outcome, count in told.items() if count],
    )


def _remembered(outcome: str, count: int) -> Measure:
    return Measure("ibex.memories.remembered", count, {"ibex.dedup": outcome})


async def guard_recall(repository: Finding, watch: "Watch", found: Hits, arguments: Mapping[str, Any]) -> None:
    """Answer a sampled index search again by a full scan, and record what share of the truth it had found.

    In a savepoint of the same transaction, under the same policies: what fails here (the full scan may run into
    statement_timeout) is told as an error, and neither the search nor the transaction knows of it.
    """
    if found.plan.exact or not watch.guards_recall():
        return
    search = cast("Callable[..., Awaitable[Hits]]", repository.search)  # with the same arguments, whatever they were
    with watch.aside("ibex recall guard") as span:
        try:
            async with repository.session.begin_nested():
                truth = await search(**{**arguments, "exact": True, "explain": False})
        except IbexError as exc:
            watch.failed(span, exc)
            return
        if truth:
            by_distance = _mode(arguments) == "vector" and arguments.get("rank") is None
            recall = _recall(found, truth, ties=by_distance)
            span.set_attribute("ibex.search.recall", recall)
            watch.tell("ibex.search.recall", recall, {"ibex.search.mode": _mode(arguments)})


def _recall(found: Hits, truth: Hits, *, ties: bool) -> float:
    """Return the share of the true hits that were found.

    Args:
        found: by the index.
        truth: by a full scan.
        ties: one that is as near as the last of the truth counts as true; fused scores of two searches do not compare.
    """
    true = {hit.memory.id for hit in truth}
    last = truth[-1].score
    right = sum(hit.memory.id in true or (ties and hit.score >= last - _SAME) for hit in found)
    return min(right / len(truth), 1.0)
