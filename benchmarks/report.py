"""placeholder"""
from pathlib import Path
from benchmarks.results import Results
def write(results: Results, out: Path, *, plots: bool, docs: bool) -> None:
    results.write(out / "results.json")
