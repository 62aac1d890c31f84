"""Files that are refused: every message names the file, the line and the rule."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ibex_db_core.errors import ConfigurationError, IbexError, InvalidInputError
from ibex_db_memory.demo.corpus import own
from ibex_db_memory.demo.lines import FileInputError, read_lines, read_vectors

GOOD: dict[str, object] = {"text": "The garage closes at ten."}


def lines(folder: Path, *values: object, name: str = "memories.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values), encoding="utf-8")
    return path


def array(folder: Path, rows: int, *, name: str = "vectors.npy", width: int = 384, kind: Any = np.float32) -> Path:
    path = folder / name
    np.save(path, np.ones((rows, width), dtype=kind))
    return path


def refusal(folder: Path, *values: object) -> str:
    with pytest.raises(FileInputError) as told:
        own(lines(folder, *values), array(folder, len(values)))
    return str(told.value)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ({"agent": "a"}, "content is required"),
        ({"text": ""}, "content must not be blank"),
        ({"content": "x" * 9000}, "content must have at most 8192 characters"),
        ({"content": 7}, "content must be a string"),
        ({"content": "nul \x00"}, "content must not contain a NUL byte"),
        (GOOD | {"category": "gossip"}, "category must be one of"),
        (GOOD | {"confidence": 2}, "confidence must lie in [0, 1]"),
        (GOOD | {"usefulness": "much"}, "usefulness_score must be a number"),
        (GOOD | {"tags": "a,b"}, "tags must be a list"),
        (GOOD | {"metadata": "none"}, "metadata must be a dict"),
        (GOOD | {"age_days": -1}, "age_days must lie in"),
        (GOOD | {"retrievals": 1.5}, "retrievals must be a whole number"),
        (GOOD | {"agent": ""}, "name must not be blank"),
        (GOOD | {"organization": ["x"]}, "name must be a string"),
        (["not", "an", "object"], "line must be a JSON object"),
    ],
)
def test_a_bad_line_is_named_with_its_rule(tmp_path: Path, line: object, rule: str) -> None:
    """Whoever prepared the file finds the line in an editor."""
    told = refusal(tmp_path, GOOD, line)

    assert told.startswith("memories.jsonl, line 2: ")
    assert rule in told


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    """Line 1 is the first."""
    path = tmp_path / "memories.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')

    with pytest.raises(FileInputError, match=r"memories\.jsonl, line 2: line must be JSON"):
        read_lines(path)


def test_blank_lines_at_the_end_and_a_byte_order_mark_are_nothing(tmp_path: Path) -> None:
    """Editors and spreadsheets leave both."""
    path = tmp_path / "memories.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n\r\n')

    assert [line.fields["text"] for line in read_lines(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "rule"), [(b"", "at least one JSON object"), (b"\xff\xfe", "must be UTF-8"), (None, "must be readable")]
)
def test_a_file_that_holds_nothing_readable_is_refused(tmp_path: Path, content: bytes | None, rule: str) -> None:
    """Empty, of another encoding, or absent."""
    path = tmp_path / "memories.jsonl"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(FileInputError, match=rule):
        read_lines(path)


def test_vectors_must_be_one_row_for_each_line(tmp_path: Path) -> None:
    """A row too few would move every vector to its neighbour's text."""
    with pytest.raises(FileInputError, match=r"vectors\.npy: shape must be \(3, 384\).*memories\.jsonl"):
        read_vectors(array(tmp_path, 2), lines=3, of="memories.jsonl")


def test_vectors_of_another_width_or_type_are_refused(tmp_path: Path) -> None:
    """A model of 768 numbers, and NumPy's default of float64."""
    with pytest.raises(FileInputError, match="shape must be"):
        read_vectors(array(tmp_path, 1, width=768), lines=1, of="m")
    with pytest.raises(FileInputError, match="dtype must be float32"):
        read_vectors(array(tmp_path, 1, kind=np.float64), lines=1, of="m")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_vector_that_no_search_could_use_is_named(tmp_path: Path, value: float) -> None:
    """NaN, infinity, and the zero vector, whose cosine distance is undefined."""
    found = np.ones((3, 384), dtype=np.float32)
    found[2] = value
    np.save(tmp_path / "v.npy", found)

    with pytest.raises(FileInputError, match=r"v\.npy, line 3: vector must be finite and not all zeros"):
        read_vectors(tmp_path / "v.npy", lines=3, of="m")


def test_what_is_no_array_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    """Text, an archive, and a pickle."""
    (tmp_path / "text.npy").write_text("not an array")
    np.savez(tmp_path / "many.npz", a=np.ones(1))
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)

    for name in ("text.npy", "many.npz", "pickled.npy", "absent.npy"):
        with pytest.raises(FileInputError, match="file must be"):
            read_vectors(tmp_path / name, lines=1, of="m")


def test_without_numpy_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel alone does not need it."""
    monkeypatch.setitem(sys.modules, "numpy", None)

    with pytest.raises(ConfigurationError, match=r"ibex-db-memory\[cli\]"):
        read_vectors(tmp_path / "v.npy", lines=1, of="m")


def test_the_error_is_bad_input_with_facts_and_survives_pickling() -> None:
    """As every error of ours."""
    told = FileInputError("m.jsonl", 4, "content", 7, "must be a string")

    again = pickle.loads(pickle.dumps(told))  # noqa: S301 - our own

    assert isinstance(told, InvalidInputError)
    assert isinstance(told, IbexError)
    assert str(again) == str(told) == "m.jsonl, line 4: content must be a string; got int"
    assert (again.file, again.line, again.field, again.rule) == ("m.jsonl", 4, "content", "must be a string")
