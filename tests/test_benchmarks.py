"""The harness in benchmarks/, at its smallest: what it counts is right, whatever the machine's speed; and its page."""

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from benchmarks import report
from benchmarks.dataset import Tenant, clustered, nearest
from benchmarks.measures.isolation import Seen
from benchmarks.results import OURS, RAW, Finding, Results, Store
from benchmarks.sizes import SIZES
from benchmarks.timing import Shot, Times

from ibex_db import Memory

ROOT = Path(__file__).parents[1]
SMOKE = SIZES["smoke"]

# Not the repository verbs: their rivals come with the group bench.  Nor the peers: they come from PyPI as it runs.
# Nor start-up: tests/test_start_up.py counts what is imported.  Nor conversations, of which the project has none.
MEASURES = (
    *("search", "overhead", "round_trips", "remember", "remember_many", "bookkeeping", "rls", "lexical", "hybrid"),
    *("concurrency", "isolation", "streaming", "growth", "partitions", "ef_search", "construction"),
)


def harness(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603 - this interpreter, and our own words
        [sys.executable, "-m", "benchmarks", "--size", "smoke", "--no-plots", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def run(out: Path, *arguments: str) -> Results:
    done = harness("--peers", "", "--out", str(out), *arguments)
    assert done.returncode == 0, done.stderr
    return Results.read(out / "smoke" / "results.json")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def results(out: Path) -> Results:
    return run(out, "--only", ",".join(MEASURES), "--keep")


def test_everybody_finds_the_ten_nearest_in_tenants_of_every_size(results: Results) -> None:
    for name in (OURS, RAW):
        for rows in SMOKE.tenants:
            assert min(results.values("recall", "search", name, tenant=rows)) >= 0.99
            assert results.values("rows", "search", name, tenant=rows) == [10]
    assert all(recall >= 0.99 for recall in results.values("recall", "growth"))
    assert all(recall >= 0.99 for recall in results.values("recall", "partitions"))
    assert all(recall >= 0.99 for recall in results.values("recall", "construction", ef_construction=200))


def test_every_verb_costs_three_round_trips(results: Results) -> None:
    counted = {one.case["verb"]: one.values["round_trips"] for one in results.of("round_trips", OURS)}

    assert counted == {"search": 3, "remember": 3, "bookkeeping": 3}
    assert results.values("round_trips", "round_trips", RAW) == [3]


def test_every_row_that_was_written_is_counted(results: Results) -> None:
    assert results.values("created", "remember", OURS) == [SMOKE.writes]
    assert results.values("created", "remember", f"{OURS}, a duplicate") == [0]
    assert results.values("created", "remember", f"{OURS}, rolled back") == [SMOKE.writes] * len(SMOKE.tenants)
    assert set(results.values("rows", "remember_many")) == {SMOKE.batch * SMOKE.batches}
    assert results.values("created", "streaming") == [SMOKE.streamed]
    counted = 10 * SMOKE.searches
    assert [one.values["counted"] for one in results.of("bookkeeping", OURS) if "counted" in one.values] == [
        counted
    ] * len(SMOKE.tenants)


def test_bookkeeping_touches_no_index(results: Results) -> None:
    assert results.values("hot_share", "bookkeeping", OURS) == [1]


def test_policies_change_no_answer(results: Results) -> None:
    on, off = (results.values("rows", "rls", login) for login in ("policies on", "policies off"))

    assert on == off
    assert min(on) > 0
    for rows in SMOKE.tenants:
        assert len(set(results.values("rows", "lexical", tenant=rows))) == 1


def test_no_row_is_wrong_and_no_write_lost_under_load(results: Results) -> None:
    (found,) = results.of("isolation", OURS)

    assert (found.values["wrong_rows"], found.values["lost_writes"]) == (0, 0)
    assert found.values["rows_looked_at"] > 0
    assert found.values["acknowledged_writes"] > 0


def test_a_wrong_row_would_be_seen() -> None:
    tenant, other = Tenant(1, 0, 0), Tenant(2, 0, 0)
    seen = Seen()

    seen.look(tenant, Memory(org_id=tenant.org_id, agent_id=tenant.agent_id, content=f"{tenant.org_id} tea"))
    assert (seen.counts["rows"], seen.counts["wrong"]) == (1, 0)
    seen.look(tenant, Memory(org_id=other.org_id, agent_id=other.agent_id, content=f"{other.org_id} tea"))
    seen.look(tenant, Memory(org_id=tenant.org_id, agent_id=tenant.agent_id, content=f"{uuid4()} tea"))
    assert (seen.counts["rows"], seen.counts["wrong"]) == (3, 2)


def test_the_report_judges_every_target_whose_measure_was_made(results: Results) -> None:
    judged = report.targets(results).splitlines()[2:]

    assert [line.split(" | ")[0].strip("| ") for line in judged if "not measured" in line] == [
        "search p50 over the best peer with recall >= 0.99",
        "remember_many: rows/s over the best peer's",
        "conversations: evidence recall@10 of hybrid search, on all",
        "conversations: the same, on those that nothing was chosen by",
        "conversations: hybrid search p50 over its vector leg",
        "import ibex_db over import sqlalchemy.ext.asyncio, asyncpg",
    ]
    assert all(line.endswith(("| met |", "| **missed** |", "| not measured |")) for line in judged)


def test_a_finished_measure_is_not_made_again(results: Results, out: Path) -> None:
    assert (out / "smoke" / "server").exists()

    again = run(out, "--only", "search")

    assert again.findings == results.findings
    assert not (out / "smoke" / "server").exists()


def test_a_measure_that_was_made_with_other_things_is_made_again(tmp_path: Path) -> None:
    found, when = [Finding("search", OURS, {"tenant": 10}, {"recall": 1.0})], {"began": "2026-11-27T00:00:00+00:00"}
    made = Store(tmp_path, {"size": "smoke", "commit": "a", "peers": {}})
    made.keep("search", found, when)

    assert made.done("search")
    assert made.collect(["search", "overhead"], {}).findings == found
    assert made.collect(["search"], {}).environment["measures"] == {"search": when}
    changes: tuple[dict[str, object], ...] = ({"commit": "b"}, {"size": "small"}, {"peers": {"mem0": {}}})
    for others in changes:
        other = Store(tmp_path, {"size": "smoke", "commit": "a", "peers": {}, **others})
        assert not other.done("search")
        assert other.collect(["search"], {}).findings == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--peers", "mem0,langchian"), "no such peer: langchian; there are mem0, langgraph, langchain, llamaindex"),
        (("--only", "serach"), "no such measure: serach"),
        (("--conversations", "nowhere"), "--conversations nowhere: there is no turns.jsonl, no turn_embeddings.npy"),
        (("--docs",), "--docs writes the page of a whole run"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = harness("--out", str(tmp_path / "out"), *arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_truth_of_a_query_is_its_nearest() -> None:
    vectors = clustered(50, 1)

    assert nearest(vectors, vectors[7])[0] == 7
    assert len(set(nearest(vectors, vectors[7]))) == 10


def test_a_ratio_lies_in_its_interval() -> None:
    slow = Times([Shot(2.0 + at / 100, None) for at in range(50)])
    fast = Times([Shot(1.0 + at / 100, None) for at in range(50)])

    ratio = slow.over(fast)

    assert ratio["ratio_low"] <= ratio["ratio"] <= ratio["ratio_high"]
    assert ratio["ratio"] == pytest.approx(2.245 / 1.245)


def test_the_page_shows_what_the_run_found() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    kept = Results.read(report.KEPT)

    assert report.made(page) == report.section(kept)
    for plot in report.KEPT.parent.glob("*.png"):
        assert f"benchmarks/{plot.name})" in page
