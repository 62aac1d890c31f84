"""The `ibex-db` command: one module per noun, over `ibex_db_core.console`.

Other packages add commands through the entry-point group ``ibex_db.commands``;
see `ibex_db_core.cli.app`.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run `ibex-db`; without the ``cli`` extra, say in one line how to get it."""
    try:
        import rich
        import typer
    except ModuleNotFoundError as exc:
        if exc.name not in {"rich", "typer"}:
            raise
        sys.stderr.write(f"ibex-db: the command line needs {exc.name}: install ibex-db-core[cli]\n")
        sys.exit(3)
    del rich, typer
    try:
        from ibex_db_core.cli.app import build

        build()(prog_name="ibex-db")
    except KeyboardInterrupt:
        sys.exit(130)
