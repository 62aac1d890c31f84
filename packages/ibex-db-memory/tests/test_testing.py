"""What the factories of the testing plugin take is what the drafts have."""

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import get_type_hints

import ibex_db_memory
from ibex_db_core.types import JsonObject, VectorLike
from ibex_db_memory import MemoryDraft, testing

# What annotations name that are not looked at until somebody asks.
NAMES = {
    **vars(ibex_db_memory),
    "Decimal": Decimal,
    "Iterable": Iterable,
    "JsonObject": JsonObject,
    "VectorLike": VectorLike,
    "array": list,  # the real one takes no index before Python 3.12, and on both sides it is the same
    "datetime": datetime,
}


def test_make_memory_takes_each_field_of_a_draft_and_its_type() -> None:
    own = {"agent_id", "content"}  # named in the signature
    fields = {name: kind for name, kind in get_type_hints(MemoryDraft, localns=NAMES).items() if name not in own}

    assert get_type_hints(testing.DraftFields, localns=NAMES) == fields
