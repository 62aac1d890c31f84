"""The measures, one module each, in the order in which a run makes them."""

from collections.abc import Awaitable, Callable, Mapping

from benchmarks import loading
from benchmarks.bench import Bench
from benchmarks.measures import (
    bookkeeping,
    concurrency,
    construction,
    conversations,
    ef_search,
    growth,
    hybrid,
    isolation,
    lexical,
    overhead,
    partitions,
    remember,
    remember_many,
    rls,
    round_trips,
    search,
    start_up,
    streaming,
    verbs,
)
from benchmarks.results import Finding

Measure = Callable[[Bench], Awaitable[list[Finding]]]

MEASURES: Mapping[str, Measure] = {
    module.NAME: module.measure
    for module in (
        loading,
        search,
        overhead,
        round_trips,
        remember,
        remember_many,
        bookkeeping,
        rls,
        lexical,
        hybrid,
        conversations,
        verbs,
        concurrency,
        isolation,
        ef_search,
        construction,
        streaming,
        growth,
        partitions,
        start_up,
    )
}

CROWDED = {loading.NAME, concurrency.NAME, isolation.NAME}
"""Measures of how much gets done by many, who may use every processor."""
