"""Whether an engine's database is distributed, for those whose statements differ there."""

from typing import cast

from sqlalchemy import Dialect

SHARDED = "ibex_sharded"
"""What a Database leaves on its engine's dialect when it looks at the login."""


def is_sharded(bind: object) -> bool:
    """Tell whether statements go through Citus; an engine that no Database has looked at is taken not to."""
    return bool(getattr(cast("Dialect | None", getattr(bind, "dialect", None)), SHARDED, False))


def set_local(name: str, value: str) -> str:
    """Return SET LOCAL with a literal: what set_config() sets stays on the coordinator."""
    quoted = value.replace("'", "''")
    return f"SET LOCAL {name} = '{quoted}'"
