"""The memory wheel's commands of `ibex-db`; need the ``cli`` extra."""

import typer

from ibex_db_memory.commands import bench, demo, expire, repartition, transfer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands, in the order of ``--help``."""
    for commands in (demo, bench, expire, repartition, transfer):
        commands.register(app)
