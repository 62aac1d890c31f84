"""Whether an engine's database is distributed, for those whose statements differ there."""

from typing import cast

from sqlalchemy import Dialect, text

SHARDED = "ibex_sharded"
"""What whoever looked first leaves on the engine's dialect: a Database with its login, or a repository."""

LOOK = text("SELECT pg_catalog.to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL")


def is_sharded(bind: object) -> bool | None:
    """Tell whether statements go through Citus; None where nobody has looked yet."""
    return cast("bool | None", getattr(_dialect(bind), SHARDED, None))


def note_sharded(bind: object, *, sharded: bool) -> None:
    """Remember it, for as long as the engine lives."""
    setattr(_dialect(bind), SHARDED, sharded)


def _dialect(bind: object) -> Dialect | None:
    return cast("Dialect | None", getattr(bind, "dialect", None))


def set_local(name: str, value: str) -> str:
    """Return SET LOCAL with a literal: what set_config() sets stays on the coordinator."""
    quoted = value.replace("'", "''")
    return f"SET LOCAL {name} = '{quoted}'"
