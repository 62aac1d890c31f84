"""What the factories of the testing plugin take is what the models have."""

from datetime import datetime
from typing import get_args, get_type_hints

import pytest
from sqlalchemy import inspect

import ibex_db_tenancy
from ibex_db_core.base import Base
from ibex_db_core.types import JsonObject
from ibex_db_tenancy import Agent, Organization, User, testing

# What annotations name that are not looked at until somebody asks.
NAMES = {**vars(ibex_db_tenancy), "datetime": datetime, "JsonObject": JsonObject}


def columns_of(model: type[Base]) -> dict[str, object]:
    """Return the type of each column that an INSERT may give; org_id is the factories' own word."""
    hints = get_type_hints(model, localns=NAMES)
    return {
        attribute.key: get_args(hints[attribute.key])[0]
        for attribute in inspect(model).column_attrs
        if attribute.key != "org_id" and getattr(attribute.columns[0], "computed", None) is None
    }


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        (Organization, testing.OrganizationColumns),
        (User, testing.UserColumns),
        (Agent, testing.AgentColumns),
    ],
)
def test_a_factory_takes_each_column_and_its_type(model: type[Base], taken: type) -> None:
    assert get_type_hints(taken, localns=NAMES) == columns_of(model)
