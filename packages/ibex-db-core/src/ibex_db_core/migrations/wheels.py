"""The installed wheels: what each brings to the schema.

Nothing here needs Alembic, which takes as long to import as SQLAlchemy's core
and is wanted by the migrations alone.
"""

from dataclasses import dataclass
from importlib.metadata import entry_points

from sqlalchemy import MetaData

from ibex_db_core.base import Base

WHEELS_GROUP = "ibex_db.wheels"


@dataclass(frozen=True, slots=True)
class Revision:
    """One migration of one wheel.

    Attributes:
        id: the revision's id, for example ``memory_0001``.
        wheel: its branch label: core, tenancy or memory.
        message: the first line of its docstring.
        applied: the database is at it or past it.
    """

    id: str
    wheel: str
    message: str
    applied: bool


def wheels() -> dict[str, str]:
    """Return the installed wheels, branch label to package name, lower wheels first."""
    found = {point.name: point.value for point in entry_points(group=WHEELS_GROUP)}
    order = {"core": 0, "tenancy": 1, "memory": 2}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def newest() -> dict[str, str]:
    """Return the newest revision of each installed wheel, branch label to revision; asks no database."""
    from ibex_db_core.migrations.runner import revisions

    return {step.wheel: step.id for step in revisions(())}  # oldest first, so the last one stays


def metadata() -> MetaData:
    """Return the tables of every installed wheel."""
    for point in entry_points(group=WHEELS_GROUP):
        point.load()
    return Base.metadata
