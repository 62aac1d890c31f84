"""The hash of a checkpoint's state."""

import json

import pytest
from hypothesis import given, strategies as st

from ibex_db_core.types import JsonObject
from ibex_db_memory.state import canonical_state, state_hash

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), _JSON))
def test_the_canonical_form_is_json_and_its_own_canonical_form(state: JsonObject) -> None:
    canonical = canonical_state(state)

    assert canonical_state(json.loads(canonical)) == canonical


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}),
        ({"n": 1e16}, {"n": 10000000000000000}),
        ({"n": 1e308}, {"n": 10**308}),
        ({"n": -0.0}, {"n": 0.0}),
        ({"n": [1.0, (2,)]}, {"n": [1, [2]]}),
    ],
)
def test_what_jsonb_changes_does_not_change_the_hash(sent: JsonObject, received: JsonObject) -> None:
    assert state_hash(sent) == state_hash(received)


@pytest.mark.parametrize("other", [{"n": 2}, {"n": "1"}, {"n": True}, {"m": 1}, {"n": 1.0000000000000002}])
def test_another_value_has_another_hash(other: JsonObject) -> None:
    assert state_hash(other) != state_hash({"n": 1})
