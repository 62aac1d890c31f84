"""What the wheel exports."""

from sqlalchemy.orm import configure_mappers

import ibex_db_tenancy
from ibex_db_core.base import Base


def test_all_is_sorted_and_true() -> None:
    assert ibex_db_tenancy.__all__ == sorted(ibex_db_tenancy.__all__)
    assert all(hasattr(ibex_db_tenancy, name) for name in ibex_db_tenancy.__all__)


def test_every_model_of_the_wheel_is_exported() -> None:
    models = {
        mapper.class_.__name__ for mapper in Base.registry.mappers if mapper.class_.__module__.startswith("ibex_db_ten")
    }

    assert models <= set(ibex_db_tenancy.__all__)


def test_the_mappers_configure_without_a_warning() -> None:
    configure_mappers()
